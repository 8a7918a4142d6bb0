"""Whether what a runtime computes is what PyTorch computes, graph by graph and through all three.

In float32 a difference of 1e-3 is allowed: of logits absolute (beyond `SATURATED`, where the sigmoid is 0 or 1 to seven
digits, relative to that), of features relative to the largest value of their tensor.

Networks differ in how much of their precision they lose on the way, and for some no fixed number is right. The measure
is then PyTorch itself. In float32: how far the network and its deploy form, which are equal in exact arithmetic, are
apart. In bfloat16 and float16: how far the deploy form with that arithmetic is from itself in float32. A runtime may be
`SLACK` times as far.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cris_edge.backends import registry
from cris_edge.backends.base import BackendOptions
from cris_edge.bundle.manifest import GRAPHS, GraphSpec
from cris_edge.errors import ExportError
from cris_edge.metrics import logits_agreement
from runtimes.network import Array, DeployModule, Network, Tensors, of_modules
from runtimes.probes import Probes

FLOAT32 = 1e-3  # allowed difference: of logits absolute, of features relative to the largest value of their tensor
SATURATED = 16.0
STORAGE = 0.05  # what rounding the weights to float16 may change of the logits, relative to the largest
SLACK = 4.0  # times what the arithmetic costs in PyTorch: a runtime sums in another order and rounds at other places
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
        rounding: How far logits of two equal networks of PyTorch in float32 are apart.
    """

    probes: Probes
    modules: Sequence[DeployModule]
    logits: Sequence[Array]
    threshold: float
    rounding: float = 0.0

    @property
    def decoded(self) -> list[Array]:
        """Logits of every pair by the deploy modules."""
        return [outputs["logits"] for outputs in self._decoded]

    @cached_property
    def _decoded(self) -> list[Tensors]:
        network, (images, texts) = of_modules(self.modules), self._features
        return [network.decode_all(images[image], texts[text]) for image, text in self.probes.pairs]

    @cached_property
    def _features(self) -> tuple[list[Tensors], list[Tensors]]:
        network = of_modules(self.modules)
        images = [network.encode_image(image) for _, image in self.probes.images]
        return images, [network.encode_text(tokens) for _, tokens in self.probes.sentences]

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
        for pair, decoded, logits in zip(probes.pairs, self._decoded, self.logits, strict=True):
            fed = network.decode_all(image_features[pair[0]], text_features[pair[1]])
            chained = network.decode_all(images[pair[0]], texts[pair[1]])
            for graph, ours, theirs in (("mask_decoder", fed, decoded), (CHAIN, chained, {"logits": logits})):
                found.add(graph, probes.name(pair), ours, theirs)
                found.add_mask(graph, logits_agreement(ours["logits"], theirs["logits"], self.threshold))
        return found

    def tolerances(self, precision: str, cost: Differences | None = None) -> dict[tuple[str, str], float]:
        """What each tensor of each graph may differ by, absolute.

        Args:
            precision: "float32" or one of `REDUCED`.
            cost: The differences of PyTorch in that precision, where they are known already.

        Raises:
            ExportError: For any other precision.
        """
        if precision not in ("float32", *REDUCED):
            raise ExportError(
                f"The runtime computes in {precision}, for which no tolerance is stated; expected float32, "
                f"{' or '.join(REDUCED)}: leave this runtime out, or export on another device."
            )
        largest = self._largest_values()
        if precision == "float32":
            stated = {
                (graph, tensor): FLOAT32 * (max(1.0, value / SATURATED) if graph in ("mask_decoder", CHAIN) else value)
                for (graph, tensor), value in largest.items()
            }
            stated[CHAIN, "logits"] = max(stated[CHAIN, "logits"], SLACK * self.rounding)
            return stated
        cost = cost or self.differences(of_modules(self.modules, precision))
        last_digit = torch.finfo(getattr(torch, precision)).eps  # lost even where the value itself was computed exactly
        return {key: SLACK * max(cost.largest[key][0], last_digit * value) for key, value in largest.items()}

    def _largest_values(self) -> dict[tuple[str, str], float]:
        images, texts = self._features
        outputs = {"image_encoder": images, "text_encoder": texts}
        outputs["mask_decoder"] = self._decoded
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


def check_deploy(reference: Reference) -> dict[str, Any]:
    """Compare the deploy modules with the reference's logits, which are those of the network as it was trained.

    Returns the manifest's entry. Raises `ExportError` when they differ by 1e-3, relative to the largest logit.
    """
    largest = max(float(np.abs(logits).max()) for logits in reference.logits)
    row = _row(reference.decoded, reference.logits, reference.threshold, "float32", FLOAT32 * max(1.0, largest))
    if not row["max_abs_diff"] <= row["tolerance"]:
        raise ExportError(
            f"The network arranged for export is not the one that was trained: logits differ by "
            f"{row['max_abs_diff']:.3g} in PyTorch, where {row['tolerance']:.3g} is allowed; check the checkpoint for "
            "batch norms whose running variance is close to zero."
        )
    return row


def check_storage(reference: Reference, logits: Sequence[Array]) -> dict[str, Any]:
    """Compare the reference, whose weights were rounded to be stored, with the `logits` of the network before that.

    Returns the manifest's entry. Raises `ExportError` when rounding changed the logits by more than `STORAGE`.
    """
    tolerance = STORAGE * max(float(np.abs(theirs).max()) for theirs in logits)
    row = _row(reference.logits, logits, reference.threshold, "float32, weights stored as float16", tolerance)
    if not row["max_abs_diff"] <= row["tolerance"]:
        raise ExportError(
            f"Rounding the weights to float16 changes the logits by {row['max_abs_diff']:.3g}, where "
            f"{row['tolerance']:.3g} is allowed; export with --precision fp32."
        )
    return row


def state_reduced(reference: Reference) -> list[dict[str, Any]]:
    """What reduced precision costs in PyTorch on the golden pairs, and what it may cost on a device not seen here.

    The export compares the precisions that this machine has; `cris-edge verify` runs on machines that have others.
    """
    golden = Reference(
        reference.probes.golden(),
        reference.modules,
        reference.logits[: len(reference.probes.golden_prompts)],
        reference.threshold,
        reference.rounding,
    )
    rows = []
    for precision in REDUCED:
        found = golden.differences(of_modules(golden.modules, precision))
        tolerance = golden.tolerances(precision, found)[CHAIN, "logits"]
        row = {"tensor": "logits", "max_abs_diff": found.largest[CHAIN, "logits"][0], "tolerance": tolerance}
        rows.append({**_OF_PYTORCH, "precision": precision, **row, "mask_iou": found.mask_iou[CHAIN]})
    return rows


_OF_PYTORCH = {"runtime": "pytorch", "graph": CHAIN}


def _row(
    ours: Sequence[Array], theirs: Sequence[Array], threshold: float, precision: str, tolerance: float
) -> dict[str, Any]:
    pairs = list(zip(ours, theirs, strict=True))
    return {
        **_OF_PYTORCH,
        "precision": precision,
        "tensor": "logits",
        "max_abs_diff": max(largest_difference(*pair) for pair in pairs),
        "tolerance": tolerance,
        "mask_iou": min(logits_agreement(*pair, threshold) for pair in pairs),
    }


@contextmanager
def compiled(
    runtime: str, files: Mapping[str, Path], specs: Mapping[str, GraphSpec], precision: str, *, quantized: bool = False
) -> Iterator[tuple[Network, str]]:
    """The three `files` in `runtime`, at its default optimization level, and the precision that it really runs in.

    `precision` and `quantized` are those of `BackendOptions`.
    """
    backend = registry.create(runtime, BackendOptions(precision=precision, quantized=quantized))
    network = Network({name: backend.compile(path, specs[name]) for name, path in files.items()})
    try:
        yield network, backend.info.precision
    finally:
        network.close()
        backend.close()
        gc.collect()


def largest_difference(found: Array, expected: Array) -> float:
    """The largest absolute difference; infinities of the same sign are equal, anything with a NaN is NaN."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    difference[found == expected] = 0.0
    return float(difference.max(initial=0.0))


def _title(graph: str) -> str:
    return "The chain of the three graphs is" if graph == CHAIN else f"The graph {graph} is"
