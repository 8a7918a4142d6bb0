"""What is exported: a network in float or in int8, as its checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import onnx
import torch
from torch import Tensor, nn

from cris_edge.errors import ExportError, OptionError
from cris_edge.image import THRESHOLD
from quantization.deploy_network import DeployNetwork
from quantization.deploy_network import Predictor as DeployPredictor
from quantization.quantized_checkpoint import is_quantized, load_float, load_quantized
from runtimes import onnx_graph, quantized
from runtimes.network import Array, DeployModule
from runtimes.parity import Reference, check_deploy, check_storage, state_reduced
from runtimes.probes import Probes
from training.checkpoint import load_network, read_checkpoint, recorded, sha256
from training.data.samples import Source
from training.evaluate import Predictor, TorchPredictor, score
from training.model import Architecture
from training.model.deploy import DeployMaskDecoder

Metrics = dict[str, Any]


class Subject(Protocol):
    """A network with everything that an export asks about it.

    Attributes:
        architecture: of the CRIS that it was made from.
        recorded: what the checkpoint says about itself: ``recipe``, ``description``.
        modules: the three deploy modules, without what belongs to one form alone; present once `reference` was called.
    """

    architecture: Architecture
    recorded: Mapping[str, str]
    modules: Sequence[DeployModule]

    def metrics(self, source: Source | None) -> list[Metrics]:
        """The manifest's entries about PyTorch; the first is what runtimes are held against on `source`."""

    def reference(self, probes: Probes, form: str) -> tuple[Reference, list[dict[str, Any]]]:
        """What graphs in the form of a runtime will be compared with, and the manifest's entries about it."""

    def predictor(self, form: str) -> Predictor | None:
        """What masks are compared with on labelled data; None where logits that agree say enough."""

    def trace(self, index: int, name: str, inputs: Mapping[str, Tensor], form: str) -> onnx.ModelProto:
        """The graph of module `index`, in the form of a runtime."""


def open_subject(checkpoint: Path, precision: str, *, before: Path | None = None, **given: int | None) -> Subject:
    """Return what `checkpoint` holds, for an export in `precision`.

    Args:
        checkpoint: any CRIS checkpoint, or one that `quantization.finetune` wrote.
        precision: ``fp32``, ``fp16`` or ``int8``.
        before: the float checkpoint that a quantized one was made from; None: the place that it remembers.
        given: what a public checkpoint does not say (word_len, decoder_heads, input_size).

    Raises:
        CheckpointError: the file is not a CRIS checkpoint.
        ExportError: it is not one for this precision.
    """
    content = read_checkpoint(checkpoint)
    if is_quantized(content) != (precision == "int8"):
        raise ExportError(
            f"{checkpoint} is quantized, and the export is to be in {precision}; choose --precision int8, or give the "
            "float checkpoint that it was made from."
            if is_quantized(content)
            else f"{checkpoint} is to be exported in int8, which needs a quantized checkpoint; write one with "
            "`python -m quantization.finetune`, or choose --precision fp32 or fp16."
        )
    if precision == "int8":
        return QuantizedSubject(checkpoint, before)
    said = recorded(content)
    del content
    return FloatSubject(checkpoint, said, half=precision == "fp16", **given)


class FloatSubject:
    """A network in float; `half`: its weights are stored as float16."""

    def __init__(self, checkpoint: Path, said: Mapping[str, str], *, half: bool, **given: int | None) -> None:
        self._model = load_network(checkpoint, **given)
        self._half = half
        self._reference: Reference | None = None
        self._last: tuple[int, onnx.ModelProto] | None = None
        self.architecture, self.recorded = self._model.architecture, said
        self.modules: Sequence[DeployModule] = ()

    def metrics(self, source: Source | None) -> list[Metrics]:
        """As stated in `Subject`."""
        return [] if source is None else [entry(TorchPredictor(self._model), source)]

    def predictor(self, form: str) -> Predictor | None:
        """As stated in `Subject`."""
        return None

    def reference(self, probes: Probes, form: str) -> tuple[Reference, list[dict[str, Any]]]:
        """As stated in `Subject`; one reference serves all forms.

        The weights are those that the bundle stores: where that is float16, they are rounded here, what this changes
        is held against the float32 network, and from there on nothing may change.
        """
        if self._reference is not None:
            return self._reference, []
        logits = _logits(self._model, probes)
        modules = self.modules = tuple(module.eval() for module in self._model.deploy())
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

    def trace(self, index: int, name: str, inputs: Mapping[str, Tensor], form: str) -> onnx.ModelProto:
        """One graph serves all forms."""
        if self._last is None or self._last[0] != index:
            self._last = None
            module = self.modules[index]
            if isinstance(module, DeployMaskDecoder):  # faster in every runtime and float precision: docs/decisions.md
                module = module.at_resolution("low")
            self._last = index, onnx_graph.trace(name, module, inputs, module.output_names)
        return self._last[1]


class QuantizedSubject:
    """A network in int8, with the figures of the ladder that led to it."""

    def __init__(self, checkpoint: Path, before: Path | None) -> None:
        network, extra = load_quantized(checkpoint)
        self._network = network
        self._in_forms: dict[str, DeployNetwork] = {}
        self._report: dict[str, Any] = extra.get("report", {})
        self._checkpoint = checkpoint
        self._before = before
        self.architecture = network.architecture
        self.recorded = recorded(extra)
        self.modules: Sequence[Any] = tuple(network.graphs.values())

    def metrics(self, source: Source | None) -> list[Metrics]:
        """As stated in `Subject`; without the float checkpoint there is nothing to hold the int8 network against."""
        known = [self._rung(self._report["float"], "float32")] if "float" in self._report else []
        known += [self._rung(rung, f"int8, {rung['rung']}") for rung in self._report.get("rungs", ())]
        if source is None:
            return known
        network, _ = load_float(self._float_checkpoint())
        found = [entry(DeployPredictor(network), source)]
        del network
        return [*found, entry(self.predictor(quantized.FORMS[0]), source), *known]

    def predictor(self, form: str) -> Predictor:
        """As stated in `Subject`."""
        return DeployPredictor(self._in_form(form))

    def reference(self, probes: Probes, form: str) -> tuple[Reference, list[dict[str, Any]]]:
        """As stated in `Subject`."""
        network = self._in_form(form)
        modules = tuple(network.graphs.values())
        reference = quantized.QuantizedReference(probes, modules, _logits(network, probes), THRESHOLD)
        return reference, reference.state_cost(form)

    def trace(self, index: int, name: str, inputs: Mapping[str, Tensor], form: str) -> onnx.ModelProto:
        """As stated in `Subject`."""
        module = tuple(self._in_form(form).graphs.values())[index]
        return quantized.trace(name, module, inputs, module.output_names, form)

    def _in_form(self, form: str) -> DeployNetwork:
        if form not in self._in_forms:
            self._in_forms[form] = quantized.in_form(self._network, form)
        return self._in_forms[form]

    def _float_checkpoint(self) -> Path:
        """The file that the int8 network was made from."""
        remembered = self._report.get("checkpoint_path")
        path = self._before or (Path(remembered) if remembered else None)
        if path is None or not path.is_file():
            where = "is not known" if path is None else f"is not at {path} any more"
            raise OptionError(
                f"The float checkpoint that {self._checkpoint} was made from {where}, so a drop cannot be measured; "
                "give it with --float."
            )
        if self._report and sha256(path) != self._report.get("checkpoint"):
            raise OptionError(
                f"{path} is not the checkpoint that {self._checkpoint} was made from (its hash differs); give that "
                "one with --float."
            )
        return path

    @staticmethod
    def _rung(figures: Mapping[str, Any], precision: str) -> Metrics:
        return {"runtime": "pytorch", "precision": precision, **figures["metrics"]}


def _logits(network: nn.Module, probes: Probes) -> list[Array]:
    """What a network, whole, gives for every pair."""
    with torch.inference_mode():
        return [
            network(torch.from_numpy(probes.images[image][1]), torch.from_numpy(probes.sentences[text][1])).numpy()
            for image, text in probes.pairs
        ]


def entry(predictor: Predictor, source: Source) -> Metrics:
    """The manifest's entry: every sentence of `source` scored, as the paper's figures are."""
    report = score(predictor, source, threshold=THRESHOLD)
    return {
        "dataset": report.dataset,
        "split": report.split,
        "runtime": report.runtime,
        "precision": report.precision,
        **report.scores.to_dict(),
    }
