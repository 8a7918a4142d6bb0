"""Diagnosis: runtimes and devices of this machine, and where bundles can run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cris_edge import __version__
from cris_edge.backends import registry
from cris_edge.bundle import MANIFEST, Bundle
from cris_edge.device.caches import cache_folder
from cris_edge.device.memory import memory_bytes
from cris_edge.device.processor import (
    instruction_sets,
    physical_cores,
    platform_name,
    processor_name,
    usable_cores,
)
from cris_edge.doctor.npu import Prospect, RuntimeState, drivers, prospects
from cris_edge.errors import CrisEdgeError, RuntimeFailure


@dataclass(frozen=True)
class BundleState:
    """Where a bundle can run.

    Attributes:
        path: Path as given.
        name: Name of the model; empty if the bundle is invalid.
        prospects: One entry per runtime of the bundle.
        message: Why the bundle is invalid.
    """

    path: str
    name: str = ""
    prospects: tuple[Prospect, ...] = ()
    message: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """Findings about this machine."""

    version: str
    python: str
    system: str
    processor: str
    instruction_sets: tuple[str, ...]
    cores: int
    physical_cores: int
    memory: int | None
    cache: Path | None
    cache_size: int
    runtimes: tuple[RuntimeState, ...]
    npus: tuple[str, ...] = ()
    bundles: tuple[BundleState, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return {**asdict(self), "cache": None if self.cache is None else str(self.cache)}


def examine(models: Iterable[str | os.PathLike[str]] = ()) -> DoctorReport:
    """Examine this machine. Loads every installed runtime.

    Args:
        models: Bundles to check for where they can run.
    """
    cache = cache_folder()
    runtimes = tuple(_runtime(name) for name in registry.names())
    return DoctorReport(
        version=__version__,
        python=platform.python_version(),
        system=platform_name(),
        processor=processor_name(),
        instruction_sets=tuple(instruction_sets()),
        cores=usable_cores(),
        physical_cores=physical_cores(),
        memory=memory_bytes(),
        cache=cache,
        cache_size=0 if cache is None else _size(cache),
        runtimes=runtimes,
        npus=drivers(),
        bundles=tuple(_bundle(model, runtimes) for model in models),
    )


def _runtime(name: str) -> RuntimeState:
    if not registry.is_available(name):
        return RuntimeState(name, usable=False, advice=registry.how_to_install(name))
    try:
        found = registry.describe(name)
    except RuntimeFailure as error:
        return RuntimeState(name, usable=False, advice=str(error))
    return RuntimeState(name, True, found.version, found.devices, found.advice)


def _bundle(model: str | os.PathLike[str], runtimes: tuple[RuntimeState, ...]) -> BundleState:
    try:
        bundle = Bundle.open(model)
    except CrisEdgeError as error:
        return BundleState(os.fspath(model), message=str(error))
    npu = json.loads((bundle.path / MANIFEST).read_bytes()).get("npu")
    found = prospects(bundle, runtimes, npu if isinstance(npu, dict) else {})
    return BundleState(os.fspath(model), bundle.manifest.name, found)


def _size(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):  # deleted meanwhile
                total += (Path(parent) / name).stat().st_size
    return total
