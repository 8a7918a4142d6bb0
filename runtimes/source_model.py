"""The model to export, float or int8, as its checkpoint holds it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

import onnx
import torch
from torch import Tensor, nn

from cris_edge.bundle.manifest import GRAPHS, PresenceSpec
from cris_edge.errors import ExportError, OptionError
from cris_edge.image import THRESHOLD
from quantization.deploy_network import DeployNetwork
from quantization.deploy_network import Predictor as DeployPredictor
from quantization.quantized_checkpoint import is_quantized, load_float, load_quantized
from runtimes import onnx_graph, quantized
from runtimes.network import Array, DeployModule, Sizes
from runtimes.parity import Reference, check_deploy, check_storage, state_reduced
from runtimes.presence_calibration import Calibrated, determine
from runtimes.probes import Probes
from training.checkpoint import load_network, read_checkpoint, recorded, sha256
from training.data.samples import Source
from training.model import Architecture
from training.scoring import Predictor, TorchPredictor, score

Metrics = dict[str, Any]


class SourceModel(Protocol):
    """What an export needs from a checkpoint's network.

    Attributes:
        kind: Name of the architecture, such as "CRIS".
        architecture: Sizes of the network.
        recorded: What the checkpoint states about itself: ``recipe``, ``description``.
        modules: The three deploy modules in the order of `GRAPHS`, in no particular form; empty before `reference`.
    """

    kind: str
    architecture: Sizes
    recorded: Mapping[str, str]
    modules: Sequence[DeployModule]

    def presence(self, source: Source | None) -> PresenceSpec | None:
        """Return the manifest's entry on presence, measured or fitted on `source`; called before `reference`."""

    def metrics(self, source: Source | None, presence: PresenceSpec | None = None) -> list[Metrics]:
        """Return the manifest's entries about PyTorch; on `source`, runtimes are compared with the first."""

    def reference(self, probes: Probes, form: str) -> tuple[Reference, list[dict[str, Any]]]:
        """Return what graphs in a form are compared with, and the manifest's entries about it."""

    def predictor(self, form: str) -> Predictor | None:
        """Return what masks on labelled data are compared with; None if the logits' agreement is enough."""

    def trace(self, name: str, inputs: Mapping[str, Tensor], form: str) -> onnx.ModelProto:
        """Return one of the three graphs in a form."""


def open_model(checkpoint: Path, precision: str, *, before: Path | None = None, **given: int | None) -> SourceModel:
    """Open a checkpoint for an export in `precision`.

    Args:
        checkpoint: A float checkpoint, or one that `quantization.finetune` wrote.
        precision: ``float32``, ``float16`` or ``int8``.
        before: The float checkpoint that a quantized one was made from; by default where the quantized one found it.
        given: What a public checkpoint does not state (word_len, decoder_heads, input_size).

    Raises:
        CheckpointError: The file is not a checkpoint of a known architecture.
        ExportError: The checkpoint does not fit the precision.
    """
    content = read_checkpoint(checkpoint)
    if is_quantized(content) and precision != "int8":
        raise ExportError(
            f"{checkpoint} is quantized, but the export is in {precision}: pass --precision int8, or the float "
            "checkpoint that it was made from."
        )
    if precision == "int8" and not is_quantized(content):
        raise ExportError(
            f"An int8 export needs a quantized checkpoint, and {checkpoint} is float: run "
            "`python -m quantization.finetune` first, or pass --precision float32 or float16."
        )
    if precision == "int8":
        return QuantizedModel(checkpoint, before)
    stated = recorded(content)
    del content
    return FloatModel(load_network(checkpoint, **given), stated, half=precision == "float16")


class _LastGraph:
    """The graph traced last: several targets ask for the same one in turn, and two at a time may not fit in memory."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._graph: onnx.ModelProto | None = None

    def get(self, key: Hashable, trace: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
        if self._graph is None or self._key != key:
            self._graph = None
            self._key, self._graph = key, trace()
        return self._graph


class FloatModel:
    """A float network that offers the deploy contract: ``architecture``, ``deploy()`` and a forward to logits.

    Args:
        model: The network, in eval mode.
        stated: What its checkpoint states.
        half: Whether its weights are stored as float16.
    """

    def __init__(self, model: Any, stated: Mapping[str, str], *, half: bool) -> None:
        self._model = model
        self._half = half
        self._reference: Reference | None = None
        self._last = _LastGraph()
        self.kind = type(model).__name__
        self.architecture: Sizes = model.architecture
        self._has_head: bool = getattr(self.architecture, "presence", hasattr(model, "forward_with_presence"))
        self.recorded = stated
        self.modules: Sequence[DeployModule] = ()

    def presence(self, source: Source | None) -> PresenceSpec | None:
        """See `SourceModel`."""
        return determine(TorchPredictor(self._model), source, has_head=self._has_head)

    def metrics(self, source: Source | None, presence: PresenceSpec | None = None) -> list[Metrics]:
        """See `SourceModel`."""
        return [] if source is None else [entry(TorchPredictor(self._model), source, presence)]

    def predictor(self, form: str) -> Predictor | None:
        """See `SourceModel`."""
        return None

    def reference(self, probes: Probes, form: str) -> tuple[Reference, list[dict[str, Any]]]:
        """See `SourceModel`; one reference serves all forms.

        The weights are those that the bundle stores. If that is float16, they are rounded here, the result is compared
        with the float32 network, and nothing may change from there on.
        """
        if self._reference is not None:
            return self._reference, []
        logits = _logits(self._model, probes)
        # A network whose head is optional in its deploy form is exported with it.
        optional = self._has_head and "with_presence" in signature(self._model.deploy).parameters
        deployed = self._model.deploy(**({"with_presence": True} if optional else {}))
        modules: tuple[Any, ...] = tuple(module.eval() for module in deployed)
        self.modules = modules
        del self._model
        reference = Reference(probes, modules, logits, THRESHOLD)
        rows = [check_deploy(reference)]
        rounding = rows[0]["max_abs_diff"]
        if self._half:
            for module in modules:
                onnx_graph.round_to_float16(module)
            logits = Reference(probes, modules, logits, THRESHOLD).decoded
            rows.append(check_storage(Reference(probes, modules, logits, THRESHOLD), reference.logits))
        self._reference = replace(reference, logits=logits, rounding=rounding)
        return self._reference, rows + state_reduced(self._reference)

    def trace(self, name: str, inputs: Mapping[str, Tensor], form: str) -> onnx.ModelProto:
        """See `SourceModel`; one graph serves all forms."""
        return self._last.get(name, lambda: self._trace(name, inputs))

    def _trace(self, name: str, inputs: Mapping[str, Tensor]) -> onnx.ModelProto:
        module: Any = self.modules[GRAPHS.index(name)]
        if hasattr(module, "at_resolution"):  # faster in every runtime and float precision: docs/decisions.md
            module = module.at_resolution("low")
        return onnx_graph.trace(name, module, inputs, module.output_names)


class QuantizedModel:
    """An int8 network, with the metrics of the steps that led to it."""

    def __init__(self, checkpoint: Path, before: Path | None) -> None:
        network, extra = load_quantized(checkpoint)
        self._network = network
        self._in_forms: dict[str, DeployNetwork] = {}
        self._last = _LastGraph()
        self._report: dict[str, Any] = extra.get("report", {})
        self._checkpoint = checkpoint
        self._before = before
        self.kind = "CRIS" if isinstance(network.architecture, Architecture) else "CandidateNet"
        self.architecture: Sizes = network.architecture
        self.recorded: Mapping[str, str] = recorded(extra)
        self.modules: Sequence[DeployModule] = quantized.modules_of(network)

    def presence(self, source: Source | None) -> PresenceSpec | None:
        """See `SourceModel`."""
        predictor = self.predictor(quantized.FORMS[0])
        return determine(predictor, source, has_head=getattr(self.architecture, "presence", False))

    def metrics(self, source: Source | None, presence: PresenceSpec | None = None) -> list[Metrics]:
        """See `SourceModel`; on `source`, the float checkpoint comes first."""
        known = [self._step(self._report["float"], "float32")] if "float" in self._report else []
        known += [self._step(step, f"int8, {step['rung']}") for step in self._report.get("rungs", ())]
        known += [self._step(self._report["int8"], "int8, post-training")] if "int8" in self._report else []
        if source is None:
            return known
        network, _ = load_float(self._float_checkpoint())
        found = [entry(DeployPredictor(network), source, presence)]
        del network
        return [*found, entry(self.predictor(quantized.FORMS[0]), source, presence), *known]

    def predictor(self, form: str) -> Predictor:
        """See `SourceModel`."""
        return DeployPredictor(self._in_form(form))

    def reference(self, probes: Probes, form: str) -> tuple[Reference, list[dict[str, Any]]]:
        """See `SourceModel`."""
        network = self._in_form(form)
        modules = quantized.modules_of(network)
        reference = quantized.QuantizedReference(probes, modules, _logits(network, probes), THRESHOLD)
        return reference, reference.state_cost(form)

    def trace(self, name: str, inputs: Mapping[str, Tensor], form: str) -> onnx.ModelProto:
        """See `SourceModel`."""
        return self._last.get((name, form), lambda: self._trace(name, inputs, form))

    def _trace(self, name: str, inputs: Mapping[str, Tensor], form: str) -> onnx.ModelProto:
        module: Any = self._in_form(form).graphs[name]
        return quantized.trace(name, module, inputs, module.output_names, form)

    def _in_form(self, form: str) -> DeployNetwork:
        if form not in self._in_forms:
            self._in_forms[form] = quantized.in_form(self._network, form)
        return self._in_forms[form]

    def _float_checkpoint(self) -> Path:
        """Return the file that the int8 network was made from."""
        remembered = self._report.get("checkpoint_path")
        path = self._before or (Path(remembered) if remembered else None)
        if path is None or not path.is_file():
            where = "is unknown" if path is None else f"is no longer at {path}"
            raise OptionError(
                f"The float checkpoint behind {self._checkpoint} {where}, so the drop cannot be measured: pass it with "
                "--float."
            )
        if self._report and sha256(path) != self._report.get("checkpoint"):
            raise OptionError(
                f"{path} is not the float checkpoint behind {self._checkpoint} (its hash differs): pass that one with "
                "--float."
            )
        return path

    @staticmethod
    def _step(figures: Mapping[str, Any], precision: str) -> Metrics:
        return {"runtime": "pytorch", "precision": precision, **figures["metrics"]}


def _logits(network: nn.Module, probes: Probes) -> list[Array]:
    """Return the logits of the whole network for every pair."""
    with torch.inference_mode():
        return [
            network(torch.from_numpy(probes.images[image][1]), torch.from_numpy(probes.prompts[text][1])).numpy()
            for image, text in probes.pairs
        ]


def entry(predictor: Predictor, source: Source, presence: PresenceSpec | None = None) -> Metrics:
    """Score every prompt of `source` as the paper does, and return the manifest's entry.

    Masks are empty where the presence is below the level of `presence`, if the bundle computes it.
    """
    if presence is not None and presence.source == "calibration" and getattr(predictor, "presence", None) is None:
        predictor = Calibrated(predictor, presence)
    min_presence = 0.0 if presence is None else presence.min_presence
    report = score(predictor, source, threshold=THRESHOLD, min_presence=min_presence)
    generalized = report.generalized
    return {
        "dataset": report.dataset,
        "split": report.split,
        "runtime": report.runtime,
        "precision": report.precision,
        **report.scores.to_dict(),
        **({"generalized": generalized} if generalized else {}),
    }
