"""Accuracy of a lowered network on labelled data: in the precision in which apps will have it, beside PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cris_edge.bundle.manifest import GraphSpec
from cris_edge.errors import ExportError
from cris_edge.image import THRESHOLD
from runtimes.agreement import compare
from runtimes.network import Array, Network
from runtimes.parity import compiled
from runtimes.subject import Metrics, Subject, entry
from training.data.samples import Source
from training.evaluate import Predictor

logger = logging.getLogger("cris_edge.runtimes")

AGREEMENT = 100  # images on which the masks of int8 graphs are compared with PyTorch's


@dataclass
class NetworkPredictor:
    """A network as `training.evaluate` asks it."""

    network: Network
    runtime: str
    precision: str
    input_size: int
    word_len: int

    def logits(self, pixels: Array, tokens: Array) -> Array:
        """(1, 3, S, S) and (k, L) -> (k, 1, S/4, S/4)."""
        return self.network.logits(pixels, tokens)


def score(
    subject: Subject, runtime: str, form: str, files: Mapping[str, Path], graphs: Mapping[str, GraphSpec],
    source: Source, weights: str,
) -> Metrics:  # fmt: skip
    """Score the three `files` in a runtime; int8 graphs are also held against the masks of PyTorch in that `form`.

    The precision is the one that the SDK runs a bundle in; `weights` is the bundle's own.
    """
    architecture = subject.architecture
    with compiled(runtime, files, graphs, "auto", quantized=weights == "int8") as (network, precision):
        ours = NetworkPredictor(network, runtime, precision, architecture.input_size, architecture.word_len)
        return {**entry(ours, source), **_agreement(subject.predictor(form), ours, source)}


def _agreement(theirs: Predictor | None, ours: Predictor, source: Source) -> dict[str, float]:
    """How well a runtime's masks agree with PyTorch's, where logits alone do not tell."""
    if theirs is None:
        return {}
    row = compare(theirs, [ours], source, threshold=THRESHOLD, limit=AGREEMENT)[0]
    logger.info("%s: mean IoU with PyTorch's masks %.4f, worst %.3f", row.runtime, row.mask_iou, row.worst_mask_iou)
    return {"mask_iou": row.mask_iou, "worst_mask_iou": row.worst_mask_iou, "compared": row.sentences}


def require(before: Mapping[str, Any], after: Mapping[str, Any], data: str | None, max_drop: float | None) -> None:
    """Raise `ExportError` where the metrics `after` lowering are more than `max_drop` points below those `before`."""
    drop = before["mIoU"] - after["mIoU"]
    logger.info("%s loses %.2f points of mIoU against PyTorch in float32", after["runtime"], drop)
    if max_drop is not None and not drop <= max_drop:
        raise ExportError(
            f"{after['runtime']} in {after['precision']} reaches an mIoU of {after['mIoU']:.2f} on {data}, "
            f"{drop:.2f} points below PyTorch in float32 ({before['mIoU']:.2f}), where {max_drop:g} are allowed; "
            "choose a higher precision, or allow a larger drop."
        )
