"""NPU drivers of this machine, and the runtimes and devices that can run a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cris_edge.backends.base import DeviceReport

if TYPE_CHECKING:
    from cris_edge.bundle import Bundle

# Linux kernel drivers of NPUs.
_DRIVERS = {"intel_vpu": "Intel NPU", "amdxdna": "AMD NPU", "qaic": "Qualcomm Cloud AI", "rocket": "Rockchip NPU"}
_DEVICES = {
    "dev/fastrpc-cdsp": "Qualcomm Hexagon (FastRPC)",
    "dev/fastrpc-cdsp-secure": "Qualcomm Hexagon (FastRPC)",
    "dev/adsprpc-smd": "Qualcomm Hexagon (Android)",
}


@dataclass(frozen=True)
class RuntimeState:
    """Availability of a runtime.

    Attributes:
        name: Name of the runtime.
        usable: Whether it can be used.
        version: Version of the runtime.
        devices: Devices that it finds.
        advice: How to make it, or more devices, available; may be empty.
    """

    name: str
    usable: bool
    version: str = ""
    devices: tuple[DeviceReport, ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class Prospect:
    """Whether a runtime can run a bundle on this machine.

    Attributes:
        runtime: Name of the runtime.
        devices: Devices that could run it; empty if none can.
        message: What prevents it, or a remark.
    """

    runtime: str
    devices: tuple[str, ...] = ()
    message: str = ""


def drivers(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the NPUs with a kernel driver, on Linux; none on other systems.

    Args:
        root: Root of the file system.
    """
    found: dict[str, None] = {}
    try:
        accelerators = sorted((root / "sys/class/accel").iterdir())
    except OSError:
        accelerators = []
    for entry in accelerators:
        try:
            driver = (entry / "device/driver").resolve(strict=True).name
        except (OSError, RuntimeError):
            continue
        found[f"{_DRIVERS.get(driver, 'accelerator')} (driver {driver}, {entry.name})"] = None
    for device, name in _DEVICES.items():
        if (root / device).exists():
            found[name] = None
    return tuple(found)


def prospects(bundle: Bundle, runtimes: Iterable[RuntimeState], npu: Mapping[str, Any]) -> tuple[Prospect, ...]:
    """Return where each runtime of a bundle can run it on this machine.

    Args:
        bundle: The bundle.
        runtimes: Availability of the runtimes.
        npu: The manifest's "npu" entry, or an empty one.
    """
    states = {state.name: state for state in runtimes}
    found = []
    for name in bundle.manifest.runtimes:
        state = states.get(name)
        if state is None or not state.usable:
            found.append(Prospect(name, (), state.advice if state else "it is not installed"))
            continue
        notes = []
        if name == "qnn" and "soc" in npu.get(name, {}):
            notes.append(f"compiled for {npu[name]['soc']}; other Qualcomm NPUs compile it at the first start")
        if name == "openvino":
            rows = npu.get(name, {})
            if any(row.get("violations") for row in rows.values()):
                notes.append("its graphs violate the NPU's published rules")
            elif rows and any(device.name.startswith("NPU") for device in state.devices):
                notes.append("its graphs comply with the NPU's published rules")
        found.append(Prospect(name, tuple(device.name for device in state.devices), "; ".join(notes)))
    return tuple(found)
