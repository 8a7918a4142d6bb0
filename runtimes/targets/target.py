"""What an export needs to know about a runtime: the interface of a target, and the list of targets."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import click
import numpy as np
import onnx
import torch

from cris_edge.backends import registry
from cris_edge.bundle.manifest import PRECISIONS, GraphSpec, PresenceSpec
from cris_edge.errors import RuntimeMissingError
from runtimes import accuracy, parity
from runtimes.network import Array, Network
from runtimes.parity import Reference
from runtimes.probes import Probes
from runtimes.source_model import SourceModel
from training.data.samples import Source


@dataclass
class Job:
    """One export: what every target works on.

    Attributes:
        model: What is exported.
        probes: Inputs on which graphs are compared with PyTorch.
        source: Labelled data, if any.
        precision: Of the weights as stored: one of `PRECISIONS`.
        folder: The bundle that is being written.
        presence: How the bundle computes presence, if it does.
        detail: Shows what a target is doing.
        references: What PyTorch computes, by form; the first one gives the golden logits.
        examples: Inputs of each graph, by graph and tensor name.
    """

    model: SourceModel
    probes: Probes
    source: Source | None
    precision: str
    folder: Path
    detail: Callable[[str], None] = lambda _: None
    presence: PresenceSpec | None = None
    references: dict[str, Reference] = field(default_factory=dict)
    examples: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def trace(self, name: str, form: str) -> onnx.ModelProto:
        """Return the ONNX graph of one of `GRAPHS` in a form; the caller does not change it."""
        return self.model.trace(name, self.examples[name], form)


class Lowered(NamedTuple):
    """The file that a runtime reads for one graph, and the graph's tensors."""

    path: Path
    spec: GraphSpec


class Target(ABC):
    """A runtime that bundles can be written for. Each export makes its own instance.

    A subclass in a file of this folder, decorated with `register`, is all that a new target takes.

    Args:
        settings: Values of the target's own `options`, by parameter name; those not given are absent.

    Attributes:
        name: Of the runtime, in ``--runtimes`` and in the manifest.
        distribution: Package to install; the manifest records its version.
        default: Whether an export without ``--runtimes`` includes it.
        precisions: The values of ``--precision`` that it takes.
        options: Its own command-line options.
        form: How it expects quantized graphs (`runtimes.quantized.FORMS`); None if it quantizes graphs itself.
        lowered: Its files so far, by graph.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]
    default: ClassVar[bool] = False
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    options: ClassVar[tuple[click.Option, ...]] = ()

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.form: str | None = "onnxruntime"
        self.lowered: dict[str, Lowered] = {}

    def require(self) -> None:
        """Load what the target needs.

        Raises:
            RuntimeMissingError: It is not installed.
        """
        try:
            metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            raise RuntimeMissingError(_missing(self.name, self.distribution)) from None

    def stored(self, precision: str) -> str:
        """Return how the weights are stored when an export in `precision` was requested."""
        return precision

    def prepare(self, job: Job) -> None:  # noqa: B027 (most targets have nothing to do)
        """Do what comes before the first graph, such as calibration."""

    @abstractmethod
    def lower(self, name: str, job: Job) -> Lowered:
        """Write the file of one graph into the bundle; raises `ExportError` if that fails."""

    @abstractmethod
    def running(self, job: Job, precision: str | None) -> AbstractContextManager[tuple[Network, str]]:
        """Load the lowered graphs; the context gives the network and the precision that it computes in.

        `precision` is "float32", "auto" (the device's own choice), or None for what an app gets by default.
        """

    def check(self, job: Job) -> list[dict[str, Any]]:
        """Compare the graphs with PyTorch and return the manifest's ``parity`` entries.

        They are run in float32 and, if it differs, in the precision that the device prefers.

        Raises:
            ExportError: A difference exceeds its tolerance.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for requested in ("float32", "auto"):
            with self.running(job, requested) as (network, precision):
                if precision not in found:
                    found[precision] = parity.check(self._reference(job), network, self.name, precision)
        return [row for rows in found.values() for row in rows]

    def score(self, job: Job, source: Source) -> dict[str, Any]:
        """Score the graphs on labelled data, as an app runs them, and return the manifest's ``metrics`` entry."""
        size, length = job.model.architecture.input_size, job.model.architecture.word_len
        with self.running(job, None) as (network, precision):
            ours = accuracy.NetworkPredictor(network, self.name, precision, size, length, job.presence)
            theirs = job.model.predictor(self.form) if self.form is not None else None
            return accuracy.score(ours, theirs, source, job.presence)

    def golden_logits(self, job: Job) -> Array | None:
        """Return the target's own logits of the golden pairs, (N, 1, S/4, S/4); None if the common ones apply."""
        reference = self._reference(job)
        if reference is next(iter(job.references.values())):
            return None
        return np.concatenate(reference.logits[: len(job.probes.golden_prompts)])

    def record(self, job: Job) -> dict[str, Any]:
        """Return what the manifest states under ``npu`` about this target's accelerators; may be empty."""
        return {}

    def _reference(self, job: Job) -> Reference:
        assert self.form is not None, "a target without a form has its own `check` and `golden_logits`"
        return job.references[self.form]


class BackendTarget(Target):
    """A target whose files are run by the SDK's own backend of the same name."""

    def require(self) -> None:
        """Raise `RuntimeMissingError` if the runtime is not installed."""
        if self.name not in registry.available():
            raise RuntimeMissingError(_missing(self.name, self.distribution))

    def running(self, job: Job, precision: str | None) -> AbstractContextManager[tuple[Network, str]]:
        """Compile the graphs at the runtime's default optimization level."""
        files = {name: lowered.path for name, lowered in self.lowered.items()}
        specs = {name: lowered.spec for name, lowered in self.lowered.items()}
        quantized = precision is None and job.precision == "int8"
        return parity.compiled(self.name, files, specs, precision or "auto", quantized=quantized)


def _missing(name: str, distribution: str) -> str:
    return (
        f"The runtime {name} is not installed, so its graphs cannot be checked: run `pip install {distribution}`, or "
        "leave it out of --runtimes."
    )


_registered: dict[str, type[Target]] = {}

T = TypeVar("T", bound=type[Target])


def register(target: T) -> T:
    """Make a target known by its name; usable as a decorator."""
    _registered[target.name] = target
    return target


def unregister(name: str) -> None:
    """Forget a target."""
    del _registered[name]


def known_targets() -> dict[str, type[Target]]:
    """Return every target by name: those in the files of this folder and those registered elsewhere."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{package}.{module.name}")
    return dict(sorted(_registered.items()))
