"""Accuracy of a lowered network on labelled data, compared with PyTorch's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cris_edge.bundle.manifest import PresenceSpec
from cris_edge.bundle.presence import presence_of
from cris_edge.errors import ExportError
from cris_edge.image import THRESHOLD
from runtimes.agreement import compare
from runtimes.network import Array, Network
from runtimes.source_model import Metrics, entry
from training.data.samples import Source
from training.scoring import Predictor

logger = logging.getLogger("cris_edge.runtimes")

AGREEMENT = 100  # images on which the masks of int8 graphs are compared with PyTorch's


@dataclass
class NetworkPredictor:
    """A network as `training.scoring` scores it."""

    network: Network
    runtime: str
    precision: str
    input_size: int
    word_len: int
    presence: PresenceSpec | None = None

    def logits(self, pixels: Array, tokens: Array) -> Array:
        """(1, 3, S, S) and (k, L) -> (k, 1, S/4, S/4)."""
        return self.network.logits(pixels, tokens)

    def logits_and_presence(self, pixels: Array, tokens: Array) -> tuple[Array, Array | None]:
        """As `training.scoring.run_predictor`; presence is computed as the bundle does."""
        image = self.network.encode_image(pixels)
        found = [self.network.decode_all(image, self.network.encode_text(row[None])) for row in tokens]
        known = [presence for outputs in found if (presence := presence_of(outputs, self.presence)) is not None]
        return np.concatenate([outputs["logits"] for outputs in found]), np.array(known, np.float32) if known else None


def score(ours: Predictor, theirs: Predictor | None, source: Source, presence: PresenceSpec | None = None) -> Metrics:
    """Score a predictor and return the manifest's entry.

    Quantized graphs are also compared mask by mask with PyTorch (`theirs`), because their logits alone say little.
    """
    found = entry(ours, source, presence)
    if theirs is None:
        return found
    min_presence = 0.0 if presence is None else presence.min_presence
    rows = compare(theirs, [ours], source, threshold=THRESHOLD, min_presence=min_presence, limit=AGREEMENT)
    for row in rows:
        logger.info(
            "%s, %s prompts: mean IoU with PyTorch's masks %.4f, worst %.3f, same answer %.1f %%",
            *(row.runtime, row.prompts, row.mask_iou, row.worst_mask_iou, 100 * row.same_answer),
        )
    by_kind = {row.prompts: {"mask_iou": row.mask_iou, "same_answer": row.same_answer} for row in rows[1:]}
    whole = {"mask_iou": rows[0].mask_iou, "worst_mask_iou": rows[0].worst_mask_iou, "compared": rows[0].sentences}
    return {**found, **whole, **({"agreement": by_kind} if by_kind else {})}


def require(before: Mapping[str, Any], after: Mapping[str, Any], data: str | None, max_drop: float | None) -> None:
    """Raise `ExportError` if the metrics `after` lowering are more than `max_drop` points below those `before`."""
    drop = before["mIoU"] - after["mIoU"]
    logger.info("%s loses %.2f points of mIoU against PyTorch in float32", after["runtime"], drop)
    if max_drop is not None and not drop <= max_drop:
        raise ExportError(
            f"{after['runtime']} in {after['precision']} reaches an mIoU of {after['mIoU']:.2f} on {data}, "
            f"{drop:.2f} points below PyTorch in float32 ({before['mIoU']:.2f}); {max_drop:g} are allowed. "
            "Choose a higher precision or allow a larger drop."
        )
