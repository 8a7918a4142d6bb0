"""The seam between the SDK and a runtime: what is asked of it, and what it says that it does."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from numpy.typing import NDArray

from cris_edge.bundle.manifest import GraphSpec, TensorSpec
from cris_edge.device.caches import chosen_cache
from cris_edge.device.processor import usable_cores
from cris_edge.errors import BundleError, OptionError

HINTS = ("latency", "throughput")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")

Array: TypeAlias = NDArray[Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """What is asked of a runtime; checked here as far as every runtime agrees, by the runtime for the rest.

    Attributes:
        device: As the runtime names it, in any case: "CPU", "GPU", "NPU", "cuda", …; "auto" leaves it to the runtime.
        precision: Of the arithmetic between float tensors: "float32", "bfloat16", "float16"; "auto" leaves it to the
            device. Quantized graphs compute in int8 where they are quantized, whatever is asked here.
        threads: Of the processor, 1 to the cores that this process may use; None leaves it to the runtime.
        hint: "latency" for one call at a time; "throughput" for several at once, each a little slower.
        cache_dir: Folder for what the runtime compiled, or None.
        quantized: Whether the graphs are in int8: what is between the integers need not be as fast then, so that
            "auto" may be the precision that loses nothing.
        extra: Settings of one runtime alone; a runtime that does not know one refuses it.
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
                f"threads={self.threads!r} was asked for; expected a whole number from 1 to {most} (the cores that "
                f"this process may use), or None to leave it to the runtime."
            )


@dataclass(frozen=True)
class BackendInfo:
    """What a runtime really does, as it says itself.

    Attributes:
        runtime: Name, as in the registry.
        version: Of the runtime.
        device: That computes, as the runtime names it.
        device_name: What that device calls itself; may be empty.
        precision: That really runs: "float32", "bfloat16", "float16"; "int8+float32" and so on where graphs are
            quantized and the rest is computed in that; "provider's choice" where the device does not tell.
        threads: Of the processor, or None where they do not matter or the runtime does not tell.
        hint: As asked.
        parallel: Calls at the same time that make sense.
        cache_dir: Where compiled graphs are kept, or None.
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
    """A device that a runtime finds here.

    Attributes:
        name: As `BackendOptions.device` takes it.
        full_name: What it calls itself; may be empty.
        precisions: In which it computes, as far as the runtime tells.
    """

    name: str
    full_name: str = ""
    precisions: tuple[str, ...] = ()


@dataclass(frozen=True)
class RuntimeReport:
    """A runtime that is installed here.

    Attributes:
        version: Its own.
        devices: That it finds.
        advice: What would make it find more; may be empty.
    """

    version: str
    devices: tuple[DeviceReport, ...] = ()
    advice: str = ""


class CompiledGraph(Protocol):
    """One graph, ready to run; several threads may call it at the same time."""

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the graph's outputs by name.

        Args:
            inputs: By name, with the shapes and dtypes of the graph's `GraphSpec`, C-contiguous. Others are ignored.

        Returns:
            Arrays that belong to the caller: no later call changes them.

        Raises:
            DeviceError: The runtime failed.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """A runtime with its options. Third parties give a factory ``(BackendOptions) -> Backend`` to the registry."""

    @property
    def name(self) -> str:
        """The key of `Manifest.runtimes` under which a bundle keeps the files that this runtime reads."""
        ...

    @property
    def info(self) -> BackendInfo:
        """What really runs; complete once the graphs are compiled."""
        ...

    def compile(self, path: Path, spec: GraphSpec) -> CompiledGraph:
        """Load one graph; from several threads at a time where the backend has a true attribute `compiles_together`.

        Raises:
            BundleError: The file's tensors are not those of `spec`.
            DeviceError: The device cannot run this graph, or would leave part of it to another unasked.
        """
        ...

    def close(self) -> None:
        """Free everything; graphs compiled here are not called after it."""
        ...


def check_tensors(path: Path, spec: GraphSpec, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> None:
    """Raise `BundleError` unless a graph has the tensors that the manifest promises, in whatever order."""
    for kind, promised, found in (("inputs", spec.inputs, inputs), ("outputs", spec.outputs, outputs)):
        ours = {tensor.name: tensor for tensor in found}
        if ours != {tensor.name: tensor for tensor in promised}:
            raise BundleError(
                f"The {kind} of {path} are {', '.join(map(str, ours.values()))}, and the manifest says "
                f"{', '.join(map(str, promised))}; export the bundle again."
            )


def one_of(kind: str, given: str, known: Mapping[str, str], where: str) -> str:
    """The value of `given` in `known`, whose keys are in lower case.

    Raises:
        OptionError: It is not there; the message lists what is.
    """
    try:
        return known[given.strip().lower()]
    except KeyError:
        raise OptionError(
            f"{where} has no {kind} {given!r} here; it has {', '.join(dict.fromkeys(known.values()))}."
        ) from None


def refuse_extra(extra: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise `OptionError` where `extra` holds a setting that a runtime does not know."""
    if unknown := sorted(set(extra) - set(known)):
        raise OptionError(
            f"{where} knows no setting {', '.join(unknown)}; it knows {', '.join(sorted(known)) or 'none of its own'}."
        )


def usable_cache(cache_dir: str | os.PathLike[str] | None, model: str) -> Path | None:
    """The folder for compiled graphs, created; None where there is to be none, or it cannot be written (logged).

    Args:
        cache_dir: "auto" for the platform's cache folder, None for no cache, or a folder.
        model: Digest of the bundle: nothing of another one can be found there.
    """
    root = chosen_cache(cache_dir)
    if root is None:
        return None
    folder = root / "compiled" / model[:16]
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        logger.warning("nothing compiled is kept, so that each start takes longer: %s", error)
        return None
    return folder.resolve()
