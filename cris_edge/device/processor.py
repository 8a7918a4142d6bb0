"""The CPU: name, instruction sets, and cores available to this process."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

from cris_edge.device.control_groups import cpu_quota

# Flags of the Linux kernel and names in reports, of those that determine the speed of float32, bfloat16 and int8.
_INSTRUCTION_SETS = (
    ("sse4_2", "SSE4.2"),
    ("avx", "AVX"),
    ("avx2", "AVX2"),
    ("fma", "FMA"),
    ("f16c", "F16C"),
    ("avx_vnni", "AVX-VNNI"),
    ("avx512f", "AVX-512F"),
    ("avx512bw", "AVX-512BW"),
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx512_bf16", "AVX-512 BF16"),
    ("avx512_fp16", "AVX-512 FP16"),
    ("amx_tile", "AMX"),
    ("amx_bf16", "AMX BF16"),
    ("amx_int8", "AMX int8"),
    ("asimd", "NEON"),
    ("asimdhp", "NEON FP16"),
    ("asimddp", "NEON dot product"),
    ("i8mm", "NEON int8 matrix"),
    ("bf16", "NEON BF16"),
    ("sve", "SVE"),
    ("sve2", "SVE2"),
    ("sme", "SME"),
)


def platform_name() -> str:
    """Return operating system and architecture, such as "Linux x86_64"."""
    return f"{platform.system()} {platform.machine()}"


def processor_name() -> str:
    """Return the CPU's own name; its architecture if unknown."""
    if sys.platform == "linux":
        names = _cpuinfo("model name")
        if names:
            return names[0]
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Return the CPU's relevant vector instruction sets; empty if unknown."""
    if sys.platform == "linux":
        lines = _cpuinfo("flags") or _cpuinfo("Features")
        flags = set(lines[0].split()) if lines else set()
    elif sys.platform == "darwin":
        flags = set(_sysctl("machdep.cpu.features").lower().replace(".", "_").split())
        flags |= set(_sysctl("machdep.cpu.leaf7_features").lower().split())
        if platform.machine() == "arm64":
            flags.add("asimd")  # part of the architecture
            for key, flag in (("DotProd", "asimddp"), ("FP16", "asimdhp"), ("I8MM", "i8mm"), ("BF16", "bf16")):
                if _sysctl(f"hw.optional.arm.FEAT_{key}") == "1":
                    flags.add(flag)
    else:
        return []
    return [label for flag, label in _INSTRUCTION_SETS if flag in flags]


def usable_cores() -> int:
    """Return the number of logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Return the number of physical cores among `usable_cores`; that of logical ones if unknown."""
    if sys.platform == "linux":
        siblings = set()
        for core in os.sched_getaffinity(0):
            path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
            try:
                siblings.add(path.read_text())
            except OSError:
                return usable_cores()
        return len(siblings)
    if sys.platform == "darwin":
        count = _sysctl("hw.physicalcpu")
        return int(count) if count.isdecimal() else usable_cores()
    return usable_cores()


def default_threads(root: Path = Path("/")) -> int:
    """Return how many threads to compute with by default: the physical cores, or fewer under a CPU quota.

    A quota is rounded up, as by the JVM: with 1.5 CPUs two threads are throttled, and still faster than one.

    Args:
        root: The root of the file system, for tests.
    """
    quota = cpu_quota(root)
    return physical_cores() if quota is None else max(1, min(physical_cores(), math.ceil(quota)))


def _cpuinfo(key: str) -> list[str]:
    try:
        lines: Iterable[str] = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def _sysctl(name: str) -> str:
    """Return a value of macOS's kernel state, or an empty string."""
    import subprocess

    try:
        found = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()
