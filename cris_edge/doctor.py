"""What this device has for running a model, and what to install for the rest."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cris_edge import __version__, machine
from cris_edge.backends import registry
from cris_edge.backends.base import DeviceReport
from cris_edge.errors import RuntimeFailure


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
class DoctorReport:
    """What was found here."""

    version: str
    python: str
    system: str
    processor: str
    instruction_sets: tuple[str, ...]
    cores: int
    physical_cores: int
    memory: int | None
    cache: Path
    cache_size: int
    runtimes: tuple[RuntimeState, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "cache": str(self.cache)}


def examine() -> DoctorReport:
    """Look at this device. Loads every runtime that is installed."""
    cache = machine.cache_folder()
    return DoctorReport(
        version=__version__,
        python=platform.python_version(),
        system=machine.platform_name(),
        processor=machine.processor_name(),
        instruction_sets=tuple(machine.instruction_sets()),
        cores=machine.usable_cores(),
        physical_cores=machine.physical_cores(),
        memory=machine.memory_bytes(),
        cache=cache,
        cache_size=_size(cache),
        runtimes=tuple(_runtime(name) for name in registry.names()),
    )


def _runtime(name: str) -> RuntimeState:
    if not registry.is_available(name):
        return RuntimeState(name, usable=False, advice=registry.how_to_install(name))
    try:
        found = registry.describe(name)
    except RuntimeFailure as error:
        return RuntimeState(name, usable=False, advice=str(error))
    return RuntimeState(name, True, found.version, found.devices, found.advice)


def _size(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total
