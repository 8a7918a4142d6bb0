"""The interface between the SDK and a runtime: options, reports and the `Backend` protocol."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from numpy.typing import NDArray

from cris_edge.bundle.manifest import GraphSpec, TensorSpec
from cris_edge.device.caches import chosen_cache
from cris_edge.device.processor import usable_cores
from cris_edge.errors import BundleError, OptionError, RuntimeMissingError

HINTS = ("latency", "throughput")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")

Array: TypeAlias = NDArray[Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Options of a runtime. What all runtimes share is checked here, the rest by the runtime.

    Attributes:
        device: The runtime's name of the device, in any case: "CPU", "GPU", "NPU", "cuda", …; "auto" lets it choose.
        precision: Of float arithmetic: "float32", "bfloat16", "float16"; "auto" lets the device choose. Quantized
            operators compute in int8 in any case.
        threads: CPU threads, from 1 to the cores that this process may use; None lets the runtime choose.
        hint: "latency" for one call at a time; "throughput" for several at once, each somewhat slower.
        cache_dir: Folder for compiled graphs, or None.
        quantized: Whether the graphs are int8: float operators then take little time, and "auto" may mean float32.
        extra: Settings of one runtime; unknown ones are refused.
    """

    device: str = "CPU"
    precision: str = "auto"
    threads: int | None = None
    hint: str = "latency"
    cache_dir: Path | None = None
    quantized: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, given, known in (("precision", self.precision, PRECISIONS), ("hint", self.hint, HINTS)):
            if given not in known:
                raise OptionError(f"The {name} {given!r} is unknown; expected one of {', '.join(known)}.")
        if not isinstance(self.device, str) or not self.device.strip():
            raise OptionError(f"The device {self.device!r} is not a name; expected for instance 'CPU'.")
        if self.threads is None:
            return
        most = usable_cores()
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or not 1 <= self.threads <= most:
            raise OptionError(
                f"threads={self.threads!r} is invalid; expected a whole number from 1 to {most} (the cores that this "
                f"process may use), or None to let the runtime choose."
            )


@dataclass(frozen=True)
class BackendInfo:
    """What a runtime actually uses, as it reports.

    Attributes:
        runtime: Name in the registry.
        version: The runtime's version.
        device: The runtime's name of the device.
        device_name: Name that the device reports; may be empty.
        precision: Precision in use: "float32", "bfloat16", "float16"; "int8+float32" and so on if graphs are quantized
            and the rest computes in that; "provider's choice" if the device does not report it.
        threads: CPU threads, or None if they do not matter or are unknown.
        hint: As requested.
        parallel: Number of concurrent calls that increases throughput.
        cache_dir: Folder of compiled graphs, or None.
    """

    runtime: str
    version: str
    device: str
    precision: str
    device_name: str = ""
    threads: int | None = None
    hint: str = "latency"
    parallel: int = 1
    cache_dir: Path | None = None


@dataclass(frozen=True)
class DeviceReport:
    """A device that a runtime finds on this machine.

    Attributes:
        name: Value for `BackendOptions.device`.
        full_name: Name that the device reports; may be empty.
        precisions: Supported precisions, as far as the runtime reports them.
    """

    name: str
    full_name: str = ""
    precisions: tuple[str, ...] = ()


@dataclass(frozen=True)
class RuntimeReport:
    """A runtime that is installed.

    Attributes:
        version: Its version.
        devices: Devices that it finds.
        advice: How to make it find more; may be empty.
    """

    version: str
    devices: tuple[DeviceReport, ...] = ()
    advice: str = ""


class CompiledGraph(Protocol):
    """A graph that is ready to run; several threads may call it concurrently."""

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the graph's outputs by name.

        Args:
            inputs: By name, with the shapes and dtypes of the graph's `GraphSpec`, C-contiguous. Others are ignored.

        Returns:
            Arrays owned by the caller: later calls do not change them.

        Raises:
            DeviceError: The runtime failed.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """A runtime with its options. Third parties register a factory ``(BackendOptions) -> Backend``."""

    @property
    def name(self) -> str:
        """The key in `Manifest.runtimes` of the files that this runtime reads."""
        ...

    @property
    def info(self) -> BackendInfo:
        """What the runtime uses; complete once the graphs are compiled."""
        ...

    def compile(self, path: Path, spec: GraphSpec) -> CompiledGraph:
        """Load one graph; called from several threads at once if the attribute `compiles_together` is true.

        Raises:
            BundleError: The file's tensors are not those of `spec`.
            DeviceError: The device cannot run this graph, or would fall back to another for part of it.
        """
        ...

    def close(self) -> None:
        """Free all resources; the compiled graphs are not called afterwards."""
        ...


@contextmanager
def importing(title: str, name: str) -> Iterator[None]:
    """Raise `RuntimeMissingError` if the import of a runtime's module `name` fails in the ``with`` block."""
    try:
        yield
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise RuntimeMissingError(
                f'{title} is not installed; install it with pip install "cris-edge[{name}]".'
            ) from None
        raise RuntimeMissingError(
            f"{title} is installed and cannot be loaded ({error}); reinstall it with pip install --force-reinstall."
        ) from error


def check_tensors(path: Path, spec: GraphSpec, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> None:
    """Raise `BundleError` unless a graph has the tensors that the manifest states, in any order."""
    for kind, stated, found in (("inputs", spec.inputs, inputs), ("outputs", spec.outputs, outputs)):
        ours = {tensor.name: tensor for tensor in found}
        if ours != {tensor.name: tensor for tensor in stated}:
            raise BundleError(
                f"The {kind} of {path} are {', '.join(map(str, ours.values()))}; the manifest states "
                f"{', '.join(map(str, stated))}. Export the bundle again."
            )


def one_of(kind: str, given: str, known: Mapping[str, str], where: str) -> str:
    """Return the value of `given` in `known`, whose keys are in lower case.

    Raises:
        OptionError: It is unknown; the message lists the known values.
    """
    try:
        return known[given.strip().lower()]
    except KeyError:
        raise OptionError(
            f"{where} has no {kind} {given!r}. Available: {', '.join(dict.fromkeys(known.values()))}."
        ) from None


def refuse_extra(extra: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise `OptionError` if `extra` holds a setting that the runtime does not have."""
    if unknown := sorted(set(extra) - set(known)):
        raise OptionError(
            f"{where} has no setting {', '.join(unknown)}. Available: {', '.join(sorted(known)) or 'none'}."
        )


def usable_cache(cache_dir: str | os.PathLike[str] | None, model: str) -> Path | None:
    """Create and return the folder for compiled graphs; None without a cache, or if it is not writable (logged).

    Args:
        cache_dir: "auto" for the platform's cache folder, None for no cache, or a folder.
        model: Digest of the bundle, so that bundles do not share compiled graphs.
    """
    root = chosen_cache(cache_dir)
    if root is None:
        return None
    folder = root / "compiled" / model[:16]
    # Containers that share the folder also share process numbers.
    probe = folder / f".writable-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("compiled graphs cannot be cached, so each start takes longer: %s", error)
        return None
    return folder.resolve()
