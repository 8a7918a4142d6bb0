"""Metrics of masks: IoU, mIoU, overall IoU and Pr@50 to Pr@90, and those of the generalized task.

The first are the formulas of the paper (section 4.1) as the reference implementation computes them. The generalized
task, in which a prompt may match nothing or several objects, is scored as gRefCOCO is (Liu et al., CVPR 2023).
Training, quantization and benchmarks all score with these functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cris_edge.errors import DataError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
GENERALIZED_THRESHOLDS = (0.7, 0.8, 0.9)
_EPSILON = 1e-6  # the reference's: an empty union gives 0, not NaN


def overlap(mask: NDArray[Any], truth: NDArray[Any]) -> tuple[int, int]:
    """Return the intersection and the union of two masks, in pixels.

    Args:
        mask: (H, W) bool, or integers; everything but 0 is inside.
        truth: the same shape.

    Raises:
        DataError: the shapes differ, or a mask holds floats (a probability that was not thresholded).
    """
    if mask.shape != truth.shape:
        raise DataError(f"the masks to compare have shapes {mask.shape} and {truth.shape}, expected the same")
    inside, expected = _as_bool(mask), _as_bool(truth)
    intersection = int(np.count_nonzero(inside & expected))
    return intersection, int(np.count_nonzero(inside)) + int(np.count_nonzero(expected)) - intersection


def iou(mask: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the intersection over union of two masks, ``|P and T| / (|P or T| + 1e-6)``; 0 for two empty masks.

    Raises:
        DataError: as in `overlap`.
    """
    return _ratio(*overlap(mask, truth))


def agreement(mask: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the exact IoU of two predicted masks; 1 for two empty masks, which agree.

    Raises:
        DataError: as in `overlap`.
    """
    intersection, union = overlap(mask, other)
    return intersection / union if union else 1.0


def logits_agreement(logits: NDArray[Any], other: NDArray[Any], threshold: float) -> float:
    """Return the agreement of the masks that two arrays of logits give at a `threshold` on their sigmoid."""
    inner = 0 < threshold < 1
    level = math.log(threshold / (1 - threshold)) if inner else math.copysign(math.inf, threshold - 0.5)
    return agreement(logits > level, other > level)


@dataclass
class Scores:
    """Accumulates the paper's metrics, over prompts that have a target.

    Attributes:
        ious: IoU of each mask, in the order of addition.
        intersection: sum of the intersections, in pixels.
        union: sum of the unions, in pixels.
    """

    ious: list[float] = field(default_factory=list)
    intersection: int = 0
    union: int = 0

    def add(self, iou: float, intersection: int, union: int) -> None:
        """Add one mask whose overlap with the truth is known."""
        self.ious.append(float(iou))
        self.intersection += int(intersection)
        self.union += int(union)

    def add_mask(self, mask: NDArray[Any], truth: NDArray[Any]) -> float:
        """Compare one mask with its truth, add it, and return its IoU."""
        intersection, union = overlap(mask, truth)
        value = _ratio(intersection, union)
        self.add(value, intersection, union)
        return value

    def merge(self, others: Iterable[Scores]) -> Scores:
        """Add the scores of other processes or threads; return self."""
        for other in others:
            self.ious.extend(other.ious)
            self.intersection += other.intersection
            self.union += other.union
        return self

    def __len__(self) -> int:
        return len(self.ious)

    @property
    def mIoU(self) -> float:
        """Mean IoU, 0 to 1: the metric of the paper's tables."""
        return float(np.mean(self._nonempty()))

    @property
    def oIoU(self) -> float:
        """Overall IoU, 0 to 1: the sum of intersections over the sum of unions."""
        self._nonempty()
        return self.intersection / self.union if self.union else 0.0

    def precision(self, threshold: float) -> float:
        """Return Pr@X: the share of masks, 0 to 1, whose IoU is strictly above `threshold`."""
        return float(np.mean(np.array(self._nonempty()) > threshold))

    def to_dict(self) -> dict[str, float]:
        """Return the number of samples, and mIoU, oIoU and Pr@50 to Pr@90 in percent, as a manifest holds them."""
        figures: dict[str, float] = {"samples": len(self), "mIoU": 100 * self.mIoU, "oIoU": 100 * self.oIoU}
        return figures | {f"Pr@{100 * level:.0f}": 100 * self.precision(level) for level in THRESHOLDS}

    def _nonempty(self) -> list[float]:
        if not self.ious:
            raise DataError("no masks have been scored yet, so there are no scores")
        return self.ious


@dataclass
class GeneralizedScores:
    """Accumulates the metrics of the generalized task, in which a prompt may match nothing.

    Attributes:
        ious: IoU of each prompt with a target, 0 where the answer was empty.
        answered: prompts with a target whose mask was not empty.
        without_target: prompts that match nothing.
        rejected: of these, those whose mask was empty.
        intersection: sum of the intersections, in pixels.
        union: sum of the unions, in pixels; a false mask adds its area, a correct empty one nothing.
    """

    ious: list[float] = field(default_factory=list)
    answered: int = 0
    without_target: int = 0
    rejected: int = 0
    intersection: int = 0
    union: int = 0

    def add(self, intersection: int, union: int, *, matches: bool, empty: bool) -> None:
        """Add one prompt.

        Args:
            intersection: pixels in both masks.
            union: pixels in either mask.
            matches: whether the prompt has a target.
            empty: whether the predicted mask is empty.
        """
        if matches:
            self.ious.append(intersection / union if union else 0.0)
            self.answered += not empty
        else:
            self.without_target += 1
            self.rejected += empty
        self.intersection += int(intersection)
        self.union += int(union)

    def add_mask(self, mask: NDArray[Any], truth: NDArray[Any] | None) -> None:
        """Add one prompt by its predicted mask and its truth, None or an empty mask where it matches nothing."""
        matches = truth is not None and bool(truth.any())
        intersection, union = overlap(mask, mask if truth is None else truth)
        self.add(intersection if matches else 0, union, matches=matches, empty=not mask.any())

    def __len__(self) -> int:
        return len(self.ious) + self.without_target

    @property
    def n_acc(self) -> float:
        """N-acc: the share of prompts without a target whose mask is empty; NaN where there are none."""
        return self.rejected / self.without_target if self.without_target else math.nan

    @property
    def t_acc(self) -> float:
        """T-acc: the share of prompts with a target whose mask is not empty; NaN where there are none."""
        return self.answered / len(self.ious) if self.ious else math.nan

    @property
    def gIoU(self) -> float:
        """Mean IoU over all prompts, 0 to 1; a prompt without a target counts 1 where the mask is empty, else 0."""
        if not len(self):
            raise DataError("no masks have been scored yet, so there are no scores")
        return (sum(self.ious) + self.rejected) / len(self)

    @property
    def cIoU(self) -> float:
        """Cumulative IoU, 0 to 1: the sum of intersections over the sum of unions."""
        return self.intersection / self.union if self.union else 0.0

    def precision(self, threshold: float) -> float:
        """Return Pr@X as gRefCOCO defines it: the share of prompts with a target whose IoU is at least `threshold`."""
        return float(np.mean(np.array(self.ious) >= threshold)) if self.ious else math.nan

    def to_dict(self) -> dict[str, float]:
        """Return the numbers of prompts and the metrics in percent; those that are not defined are left out."""
        figures: dict[str, float] = {"samples": len(self), "without_target": self.without_target}
        shares = {"N-acc": self.n_acc, "T-acc": self.t_acc, "gIoU": self.gIoU, "cIoU": self.cIoU}
        shares |= {f"Pr@{100 * level:.0f}": self.precision(level) for level in GENERALIZED_THRESHOLDS}
        return figures | {name: 100 * share for name, share in shares.items() if not math.isnan(share)}


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative, ties counted half.

    Args:
        scores: (N,) numbers.
        labels: (N,) bool; True for positives.

    Returns:
        0 to 1; NaN unless there are both positives and negatives.
    """
    values, positive = np.asarray(scores, np.float64), np.asarray(labels, bool)
    count, rest = int(positive.sum()), int((~positive).sum())
    if not count or not rest:
        return math.nan
    _, inverse, repeats = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(repeats) - (repeats - 1) / 2)[inverse]  # of equal values: the mean of their ranks
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * rest))


def _ratio(intersection: int, union: int) -> float:
    return intersection / (union + _EPSILON)


def _as_bool(mask: NDArray[Any]) -> NDArray[np.bool_]:
    if mask.dtype == np.bool_:
        return mask
    if mask.dtype.kind not in "iu":
        raise DataError(f"a mask to compare holds {mask.dtype}, expected bool: apply the threshold first")
    return np.asarray(mask != 0, np.bool_)
