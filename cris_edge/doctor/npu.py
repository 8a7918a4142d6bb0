"""NPUs: their drivers on this device, and what of a bundle could run on them and elsewhere here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cris_edge.backends.base import DeviceReport

if TYPE_CHECKING:
    from cris_edge.bundle import Bundle

# Kernel drivers of processors' NPUs, as Linux names them.
_DRIVERS = {"intel_vpu": "Intel NPU", "amdxdna": "AMD NPU", "qaic": "Qualcomm Cloud AI", "rocket": "Rockchip NPU"}
_DEVICES = {
    "dev/fastrpc-cdsp": "Qualcomm Hexagon (FastRPC)",
    "dev/fastrpc-cdsp-secure": "Qualcomm Hexagon (FastRPC)",
    "dev/adsprpc-smd": "Qualcomm Hexagon (Android)",
}


@dataclass(frozen=True)
class RuntimeState:
    """One runtime, here or not.

    Attributes:
        name: Its name.
        usable: Whether it can be used.
        version: Its own.
        devices: That it finds.
        advice: What to do to be able to use it, or more of it; may be empty.
    """

    name: str
    usable: bool
    version: str = ""
    devices: tuple[DeviceReport, ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class Prospect:
    """Whether a bundle can run in one runtime here.

    Attributes:
        runtime: Its name.
        devices: On which it could; empty where it cannot.
        message: What is in the way, or what to know.
    """

    runtime: str
    devices: tuple[str, ...] = ()
    message: str = ""


def drivers(root: Path = Path("/")) -> tuple[str, ...]:
    """NPUs for which the kernel has a driver, as far as Linux tells; nothing on other systems.

    Args:
        root: Of the file system.
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
    """What every runtime that a bundle was written for could do with it here.

    Args:
        bundle: The model.
        runtimes: As the doctor found them.
        npu: The manifest's entry of that name, or an empty one.
    """
    states = {state.name: state for state in runtimes}
    told = []
    for name in bundle.manifest.runtimes:
        state = states.get(name)
        if state is None or not state.usable:
            told.append(Prospect(name, (), state.advice if state else "it is not installed"))
            continue
        notes = []
        if name == "qnn" and "soc" in npu.get(name, {}):
            notes.append(f"compiled for {npu[name]['soc']}; other Qualcomm NPUs compile it at the first start")
        if name == "openvino":
            rows = npu.get(name, {})
            if any(row.get("violations") for row in rows.values()):
                notes.append("its graphs break rules of the NPU")
            elif rows and any(device.name.startswith("NPU") for device in state.devices):
                notes.append("its graphs keep the NPU's published rules")
        told.append(Prospect(name, tuple(device.name for device in state.devices), "; ".join(notes)))
    return tuple(told)
