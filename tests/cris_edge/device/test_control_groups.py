from __future__ import annotations

from pathlib import Path

import pytest

from cris_edge.device.control_groups import cpu_quota, memory_limit
from cris_edge.device.memory import memory_bytes
from cris_edge.device.processor import default_threads, physical_cores

V2 = "sys/fs/cgroup"
V1 = "4:memory:/docker/1\n2:cpu,cpuacct:/docker/1\n0::/\n"


def system(root: Path, groups: str, **files: str) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {f"{V2}/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {f"{V2}/cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {f"{V2}/a/cpu.max": "50000 100000", f"{V2}/a/b/cpu.max": "200000 100000"}, 0.5),
        ("0::/a/b\n", {f"{V2}/cpu.max": "50000 100000"}, 0.5),  # the path is that on the host
        ("0::/../x\n", {f"{V2}/cpu.max": "100000 100000"}, 1.0),
        (V1, {f"{V2}/cpu,cpuacct/docker/1/cpu.cfs_quota_us": "300000",
              f"{V2}/cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000"}, 3.0),
        (V1, {f"{V2}/cpu/cpu.cfs_quota_us": "20000", f"{V2}/cpu/cpu.cfs_period_us": "100000"}, 0.2),
        (V1, {f"{V2}/cpu/cpu.cfs_quota_us": "-1", f"{V2}/cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {f"{V2}/cpu.max": "0 0"}, None),
        ("nonsense", {f"{V2}/cpu.max": "x"}, None),
        ("", {}, None),
    ],
)  # fmt: skip
def test_the_quota_of_the_cpu(tmp_path: Path, groups: str, files: dict[str, str], expected: float | None) -> None:
    root = system(tmp_path, groups, **files)
    assert cpu_quota(root) == expected
    threads = default_threads(root)
    assert 1 <= threads <= physical_cores()
    if expected is None:
        assert threads == physical_cores()
    elif expected <= 1:
        assert threads == 1


def test_the_limit_of_memory(tmp_path: Path) -> None:
    two = system(tmp_path / "2", "0::/a\n", **{f"{V2}/a/memory.max": "268435456\n", f"{V2}/memory.max": "max\n"})
    assert memory_limit(two) == memory_bytes(two) == 1 << 28
    one = system(tmp_path / "1", V1, **{f"{V2}/memory/docker/1/memory.limit_in_bytes": "134217728"})
    assert memory_limit(one) == 1 << 27
    none = system(tmp_path / "0", V1, **{f"{V2}/memory/memory.limit_in_bytes": "9223372036854771712"})
    assert memory_limit(none) is None
    assert memory_limit(tmp_path / "absent") is None
