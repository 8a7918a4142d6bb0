"""Limits of the control group (cgroup) that this process is in, which containers are confined by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Version 1 states a number near 2 ** 63, rounded to pages, for no limit.
_NO_LIMIT = 1 << 60


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPUs' time that this process may use, such as 1.5 for one and a half CPUs; None without a quota.

    The least of the process's group and its parents, in version 2 (``cpu.max``) or 1 (``cpu.cfs_quota_us``).

    Args:
        root: The root of the file system, for tests.
    """
    quotas = []
    for folder in _folders(root, "cpu"):
        words = _read(folder / "cpu.max").split()
        if len(words) != 2:
            words = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if all(word.isdecimal() and int(word) > 0 for word in words):  # else "max" or -1: no quota
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process may use; None without a limit.

    Args:
        root: The root of the file system, for tests.
    """
    limits = []
    for folder in _folders(root, "memory"):
        text = (_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")).strip()
        if text.isdecimal() and 0 < int(text) < _NO_LIMIT:
            limits.append(int(text))
    return min(limits, default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group and its parents that have the controller, in both versions."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", "", ""][:3]
        if controllers == "":
            base = mount
        elif controller in controllers.split(","):
            base = mount / controllers if (mount / controllers).is_dir() else mount / controller
        else:
            continue
        # In a container, the path may be that on the host, of which only the root is mounted.
        group = PurePosixPath(path.lstrip("/"))
        for part in (group, *group.parents):
            if ".." not in part.parts:
                yield base / part


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
