"""Whether what a runtime computes is what PyTorch computes, graph by graph and through all three.

In float32 the difference may be 1e-3: of logits absolutely, of features relative to the largest value of their tensor.
(Logits beyond `SATURATED`, where the sigmoid is 0 or 1 to seven digits, are taken relative to it: what float32 rounds
grows with the values.)

In bfloat16 and float16 no one number is right for every network: some hardly notice eight bits of mantissa, some lose
a good part of their features to them. The measure is therefore the same network in PyTorch with that arithmetic. How
far it is from itself in float32, on the same probes, is what the arithmetic costs; a runtime may be `SLACK` times as
far.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cris_edge.backends import registry
from cris_edge.backends.base import BackendOptions
from cris_edge.errors import ExportError
from cris_edge.manifest import GRAPHS, GraphSpec
from runtimes.network import Array, DeployModule, Network, Tensors, of_modules
from runtimes.probes import Probes

FLOAT32 = 1e-3  # allowed difference: of logits absolute, of features relative to the largest value of their tensor
SATURATED = 16.0
STORAGE = 0.05  # what rounding the weights to float16 may change of the logits, relative to the largest
SLACK = 4.0  # times what reduced precision costs in PyTorch: a runtime may round where PyTorch does not, twice was seen
REDUCED = ("bfloat16", "float16")
CHAIN = "chain"  # the three graphs, the mask decoder fed by the runtime's own encoders


@dataclass
class Differences:
    """How far a network is from the reference, at worst: by (graph, tensor), with the probe that showed it."""

    largest: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    mask_iou: dict[str, float] = field(default_factory=dict)

    def add(self, graph: str, probe: str, found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
        """Compare the tensors of one run; raises `ExportError` when one is missing or of another shape."""
        for name, wanted in expected.items():
            if name not in found or found[name].shape != wanted.shape:
                shape = found[name].shape if name in found else "absent"
                raise ExportError(f"{graph} gives {name} as {shape}, and PyTorch as {wanted.shape}.")
            difference = largest_difference(found[name], wanted)
            worst = self.largest.get((graph, name), (-1.0, ""))[0]
            if not difference <= worst and not np.isnan(worst):  # a NaN is worse than any number
                self.largest[graph, name] = difference, probe

    def add_mask(self, graph: str, iou: float) -> None:
        """Keep the smallest."""
        self.mask_iou[graph] = min(iou, self.mask_iou.get(graph, 1.0))


@dataclass(frozen=True)
class Reference:
    """What PyTorch computes in float32 for every image, sentence and pair of the probes.

    Attributes:
        probes: The inputs.
        modules: The three deploy modules, in the order of `GRAPHS`; each graph is compared with its own.
        logits: (1, 1, S/4, S/4) of every pair, by the network that the chain is compared with.
        threshold: On the sigmoid of logits; where masks are compared.
    """

    probes: Probes
    modules: Sequence[DeployModule]
    logits: Sequence[Array]
    threshold: float

    @cached_property
    def _features(self) -> tuple[list[Tensors], list[Tensors]]:
        network = of_modules(self.modules)
        images = [network.encode_image(image) for _, image in self.probes.images]
        return images, [network.encode_text(tokens) for _, tokens in self.probes.sentences]

    @cached_property
    def _decoded(self) -> list[Array]:
        network, (images, texts) = of_modules(self.modules), self._features
        return [network.decode(images[image], texts[text]) for image, text in self.probes.pairs]

    def differences(self, network: Network) -> Differences:
        """Run every probe through each graph of `network`, fed by PyTorch, and through the chain, fed by itself."""
        found, probes = Differences(), self.probes
        image_features, text_features = self._features
        images, texts = [], []
        for (name, image), expected in zip(probes.images, image_features, strict=True):
            images.append(network.encode_image(image))
            found.add("image_encoder", name, images[-1], expected)
        for (name, tokens), expected in zip(probes.sentences, text_features, strict=True):
            texts.append(network.encode_text(tokens))
            found.add("text_encoder", name, texts[-1], expected)
        for (image, text), decoded, logits in zip(probes.pairs, self._decoded, self.logits, strict=True):
            fed = network.decode(image_features[image], text_features[text])
            chained = network.decode(images[image], texts[text])
            for graph, ours, theirs in (("mask_decoder", fed, decoded), (CHAIN, chained, logits)):
                found.add(graph, probes.name((image, text)), {"logits": ours}, {"logits": theirs})
                found.add_mask(graph, mask_iou(ours, theirs, self.threshold))
        return found

    def tolerances(self, precision: str) -> dict[tuple[str, str], float]:
        """What each tensor of each graph may differ by, absolute; computed once for each precision."""
        if precision not in self._tolerances:
            self._tolerances[precision] = self._state(precision)
        return self._tolerances[precision]

    @cached_property
    def _tolerances(self) -> dict[str, dict[tuple[str, str], float]]:
        return {}

    def _state(self, precision: str) -> dict[tuple[str, str], float]:
        if precision not in ("float32", *REDUCED):
            raise ExportError(
                f"The runtime computes in {precision}, for which no tolerance is stated; expected float32, "
                f"{' or '.join(REDUCED)}: leave this runtime out, or export on another device."
            )
        largest = self._largest_values()
        if precision == "float32":
            return {
                (graph, tensor): FLOAT32 * (max(1.0, value / SATURATED) if tensor == "logits" else value)
                for (graph, tensor), value in largest.items()
            }
        cost = self.differences(of_modules(self.modules, precision)).largest
        rounding = torch.finfo(getattr(torch, precision)).eps  # of a value that is itself computed exactly
        return {key: SLACK * max(cost[key][0], rounding * value) for key, value in largest.items()}

    def _largest_values(self) -> dict[tuple[str, str], float]:
        images, texts = self._features
        outputs = {"image_encoder": images, "text_encoder": texts}
        outputs["mask_decoder"] = [{"logits": logits} for logits in self._decoded]
        outputs[CHAIN] = [{"logits": logits} for logits in self.logits]
        return {
            (graph, tensor): max(float(np.abs(run[tensor]).max()) for run in runs) or 1.0
            for graph, runs in outputs.items()
            for tensor in runs[0]
        }


def check(reference: Reference, network: Network, runtime: str, precision: str) -> list[dict[str, Any]]:
    """Compare `network`, run by `runtime` in `precision`, with the reference.

    Returns the manifest's entries, one a graph and one for the chain, each for the tensor that used up most of its
    tolerance; ``mask_iou`` is the smallest over the probes, on the logits' grid.

    Raises:
        ExportError: A difference exceeds its tolerance; names graph, runtime, tensor, probe and difference.
    """
    found, tolerances = reference.differences(network), reference.tolerances(precision)
    rows = []
    for graph in (*GRAPHS, CHAIN):
        worst: dict[str, Any] = {}
        for (owner, tensor), (difference, probe) in found.largest.items():
            if owner != graph:
                continue
            tolerance = tolerances[graph, tensor]
            if not difference <= tolerance:
                raise ExportError(
                    f"{_title(graph)} not what PyTorch computes when {runtime} runs in {precision}: {tensor} "
                    f"differs by {difference:.3g} for {probe}, where {tolerance:.3g} is allowed."
                )
            if not worst or difference / tolerance > worst["max_abs_diff"] / worst["tolerance"]:
                worst = {"tensor": tensor, "max_abs_diff": difference, "tolerance": tolerance}
        rows.append(
            {"runtime": runtime, "graph": graph, "precision": precision, **worst, "mask_iou": found.mask_iou.get(graph)}
        )
    return rows


def check_storage(reference: Reference, logits: Sequence[Array]) -> dict[str, Any]:
    """Compare the reference, whose weights were rounded to be stored, with the `logits` of the network before that.

    Returns the manifest's entry; raises `ExportError` when rounding changed the logits by more than `STORAGE`.
    """
    difference = max(largest_difference(ours, theirs) for ours, theirs in zip(reference.logits, logits, strict=True))
    tolerance = STORAGE * max(float(np.abs(theirs).max()) for theirs in logits)
    if not difference <= tolerance:
        raise ExportError(
            f"Rounding the weights to float16 changes the logits by {difference:.3g}, where {tolerance:.3g} is "
            "allowed; export with --precision fp32."
        )
    overlap = min(
        mask_iou(ours, theirs, reference.threshold) for ours, theirs in zip(reference.logits, logits, strict=True)
    )
    return {
        "runtime": "pytorch",
        "graph": CHAIN,
        "precision": "float32, weights stored as float16",
        "tensor": "logits",
        "max_abs_diff": difference,
        "tolerance": tolerance,
        "mask_iou": overlap,
    }


@contextmanager
def compiled(
    runtime: str, files: Mapping[str, Path], specs: Mapping[str, GraphSpec], precision: str
) -> Iterator[tuple[Network, str]]:
    """The three `files` in `runtime`, at its default optimization level, and the precision that it really runs in."""
    backend = registry.create(runtime, BackendOptions(precision=precision))
    network = Network({name: backend.compile(path, specs[name]) for name, path in files.items()})
    try:
        yield network, backend.info.precision
    finally:
        network.close()
        backend.close()
        gc.collect()


def mask_iou(found: Array, expected: Array, threshold: float) -> float:
    """IoU of the two masks that logits give at a `threshold` on their sigmoid; 1 where both are empty."""
    level = log(threshold / (1 - threshold))
    ours, theirs = found > level, expected > level
    union = np.count_nonzero(ours | theirs)
    return 1.0 if union == 0 else np.count_nonzero(ours & theirs) / union


def largest_difference(found: Array, expected: Array) -> float:
    """The largest absolute difference; infinities of the same sign are equal, anything with a NaN is NaN."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    difference[found == expected] = 0.0
    return float(difference.max(initial=0.0))


def _title(graph: str) -> str:
    return "The chain of the three graphs is" if graph == CHAIN else f"The graph {graph} is"
