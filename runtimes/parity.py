"""Parity with PyTorch: compare a runtime's outputs with PyTorch's, per graph and through all three.

In float32 the tolerance is 1e-3: absolute for what the mask decoder returns (beyond `SATURATED`, where the sigmoid is 0
or 1 to seven digits, relative to that), relative to the tensor's largest value for features.

Networks differ in how much precision they lose, so fixed numbers do not fit all of them. The measure is then PyTorch
itself: in float32, the difference between the network and its deploy form, which are equal in exact arithmetic; in
bfloat16 and float16, the difference between the deploy form in that arithmetic and in float32. A runtime may differ
`SLACK` times as much.
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

FLOAT32 = 1e-3
SATURATED = 16.0
STORAGE = 0.05  # change of the logits that float16 weights may cause, relative to the largest logit
SLACK = 4.0  # a runtime sums in another order than PyTorch and rounds at other points
REDUCED = ("bfloat16", "float16")
CHAIN = "chain"  # all three graphs, the mask decoder fed by the runtime's own encoders


@dataclass
class Differences:
    """Largest differences between a network and the reference, by (graph, tensor), with the probe that showed each."""

    largest: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    mask_iou: dict[str, float] = field(default_factory=dict)

    def add(self, graph: str, probe: str, found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
        """Compare the tensors of one run; raises `ExportError` if one is missing or of another shape."""
        for name, values in expected.items():
            if name not in found or found[name].shape != values.shape:
                shape = found[name].shape if name in found else "absent"
                raise ExportError(f"{graph} returns {name} of shape {shape}; expected {values.shape}, as in PyTorch.")
            difference = largest_difference(found[name], values)
            worst = self.largest.get((graph, name), (-1.0, ""))[0]
            if not difference <= worst and not np.isnan(worst):  # a NaN is worse than any number
                self.largest[graph, name] = difference, probe

    def add_mask(self, graph: str, iou: float) -> None:
        """Keep the smallest agreement."""
        self.mask_iou[graph] = min(iou, self.mask_iou.get(graph, 1.0))


@dataclass(frozen=True)
class Reference:
    """PyTorch's float32 outputs for every image, prompt and pair of the probes.

    Attributes:
        probes: The inputs.
        modules: The three deploy modules in the order of `GRAPHS`; each graph is compared with its module.
        logits: (1, 1, S/4, S/4) of every pair, from the whole network; the chain is compared with these.
        threshold: On the sigmoid of logits, to compare masks.
        rounding: Largest float32 difference of logits between the network and its deploy form.
    """

    probes: Probes
    modules: Sequence[DeployModule]
    logits: Sequence[Array]
    threshold: float
    rounding: float = 0.0

    @property
    def decoded(self) -> list[Array]:
        """Logits of every pair from the deploy modules."""
        return [outputs["logits"] for outputs in self._decoded]

    @cached_property
    def _decoded(self) -> list[Tensors]:
        network, (images, texts) = of_modules(self.modules), self._features
        return [network.decode_all(images[image], texts[text]) for image, text in self.probes.pairs]

    @property
    def _chained(self) -> list[Tensors]:
        """What the chain is compared with: the logits of the whole network, and the deploy modules' other outputs."""
        return [{**outputs, "logits": logits} for outputs, logits in zip(self._decoded, self.logits, strict=True)]

    @cached_property
    def _features(self) -> tuple[list[Tensors], list[Tensors]]:
        network = of_modules(self.modules)
        images = [network.encode_image(image) for _, image in self.probes.images]
        return images, [network.encode_text(tokens) for _, tokens in self.probes.prompts]

    def differences(self, network: Network) -> Differences:
        """Run every probe through each graph of `network`, fed by PyTorch, and through the chain."""
        found, probes = Differences(), self.probes
        image_features, text_features = self._features
        images, texts = [], []
        for (name, image), expected in zip(probes.images, image_features, strict=True):
            images.append(network.encode_image(image))
            found.add("image_encoder", name, images[-1], expected)
        for (name, tokens), expected in zip(probes.prompts, text_features, strict=True):
            texts.append(network.encode_text(tokens))
            found.add("text_encoder", name, texts[-1], expected)
        for pair, decoded, whole in zip(probes.pairs, self._decoded, self._chained, strict=True):
            fed = network.decode_all(image_features[pair[0]], text_features[pair[1]])
            chained = network.decode_all(images[pair[0]], texts[pair[1]])
            for graph, ours, theirs in (("mask_decoder", fed, decoded), (CHAIN, chained, whole)):
                found.add(graph, probes.name(pair), ours, theirs)
                found.add_mask(graph, logits_agreement(ours["logits"], theirs["logits"], self.threshold))
        return found

    def tolerances(self, precision: str, cost: Differences | None = None) -> dict[tuple[str, str], float]:
        """Return the absolute tolerance of each tensor of each graph.

        Args:
            precision: "float32" or one of `REDUCED`.
            cost: PyTorch's differences in that precision, if known already.

        Raises:
            ExportError: For any other precision.
        """
        if precision not in ("float32", *REDUCED):
            raise ExportError(
                f"The runtime computes in {precision}, which has no stated tolerance; expected float32, "
                f"{' or '.join(REDUCED)}. Leave this runtime out, or export on another device."
            )
        largest = self._largest_values()
        if precision == "float32":
            tolerances = {
                (graph, tensor): FLOAT32 * (max(1.0, value / SATURATED) if graph in ("mask_decoder", CHAIN) else value)
                for (graph, tensor), value in largest.items()
            }
            tolerances[CHAIN, "logits"] = max(tolerances[CHAIN, "logits"], SLACK * self.rounding)
            return tolerances
        cost = cost or self.differences(of_modules(self.modules, precision))
        last_digit = torch.finfo(getattr(torch, precision)).eps  # lost even if the value was computed exactly
        found = {key: SLACK * max(cost.largest[key][0], last_digit * value) for key, value in largest.items()}
        return {**found, **self._of_choices(("image_encoder", "mask_decoder"))}

    def _of_choices(self, graphs: Sequence[str]) -> dict[tuple[str, str], float]:
        """Return the tolerances of graphs that choose (`training.model.candidatedeploy`), and of the chain.

        Where two candidates are nearly tied, arithmetic decides which is first, and everything that belongs to it
        changes. No bound smaller than the values themselves holds; agreement of masks on labelled data says the rest.
        """
        choosing = {
            name for name, module in zip(GRAPHS, self.modules, strict=True) if getattr(module, "chooses", False)
        }
        owners = {*choosing.intersection(graphs), *((CHAIN,) if choosing else ())}
        return {key: 2 * value for key, value in self._largest_values().items() if key[0] in owners}

    def _largest_values(self) -> dict[tuple[str, str], float]:
        images, texts = self._features
        outputs = {"image_encoder": images, "text_encoder": texts}
        outputs["mask_decoder"], outputs[CHAIN] = self._decoded, self._chained
        return {
            (graph, tensor): max(float(np.abs(run[tensor]).max()) for run in runs) or 1.0
            for graph, runs in outputs.items()
            for tensor in runs[0]
        }


def check(reference: Reference, network: Network, runtime: str, precision: str) -> list[dict[str, Any]]:
    """Compare `network`, run by `runtime` in `precision`, with the reference.

    Returns the manifest's entries, one per graph and one for the chain, each about the tensor closest to its tolerance;
    ``mask_iou`` is the smallest over the probes, on the logits' grid.

    Raises:
        ExportError: A difference exceeds its tolerance.
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
                    f"{_title(graph)} differs from PyTorch when {runtime} runs in {precision}: {tensor} differs by "
                    f"{difference:.3g} for {probe}; {tolerance:.3g} is allowed."
                )
            if not worst or difference / tolerance > worst["max_abs_diff"] / worst["tolerance"]:
                worst = {"tensor": tensor, "max_abs_diff": difference, "tolerance": tolerance}
        rows.append(
            {"runtime": runtime, "graph": graph, "precision": precision, **worst, "mask_iou": found.mask_iou.get(graph)}
        )
    return rows


def check_deploy(reference: Reference) -> dict[str, Any]:
    """Compare the deploy modules with the network as it was trained, and return the manifest's entry.

    Raises `ExportError` if logits differ by more than 1e-3, relative to the largest one.
    """
    largest = max(float(np.abs(logits).max()) for logits in reference.logits)
    row = _row(reference.decoded, reference.logits, reference.threshold, "float32", FLOAT32 * max(1.0, largest))
    if not row["max_abs_diff"] <= row["tolerance"]:
        raise ExportError(
            f"The deploy form is not the network that was trained: logits differ by {row['max_abs_diff']:.3g}; "
            f"{row['tolerance']:.3g} is allowed. Check the checkpoint for batch norms with a variance near zero."
        )
    return row


def check_storage(reference: Reference, logits: Sequence[Array]) -> dict[str, Any]:
    """Compare the reference with the `logits` from before its weights were rounded, and return the manifest's entry.

    Raises `ExportError` if rounding changed the logits by more than `STORAGE`.
    """
    tolerance = STORAGE * max(float(np.abs(theirs).max()) for theirs in logits)
    row = _row(reference.logits, logits, reference.threshold, "float32, weights stored as float16", tolerance)
    if not row["max_abs_diff"] <= row["tolerance"]:
        raise ExportError(
            f"Rounding the weights to float16 changes the logits by {row['max_abs_diff']:.3g}; "
            f"{row['tolerance']:.3g} is allowed. Export with --precision float32."
        )
    return row


def state_reduced(reference: Reference) -> list[dict[str, Any]]:
    """Return PyTorch's differences in reduced precision on the golden pairs, with tolerances for other devices.

    The export compares the precisions of this machine; `cris-edge verify` runs on machines that have others.
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
    """Compile three graphs at the runtime's default optimization level; gives them and the precision they run in.

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
    """Return the largest absolute difference: 0 between equal infinities, NaN if there is a NaN."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    difference[found == expected] = 0.0
    return float(difference.max(initial=0.0))


def _title(graph: str) -> str:
    return "The chain of the three graphs" if graph == CHAIN else f"The graph {graph}"
