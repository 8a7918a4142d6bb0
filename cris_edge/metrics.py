"""How good masks are: IoU of one, and mIoU, overall IoU and Pr@50 to Pr@90 of many.

The formulas of the paper (section 4.1) as the reference implementation computes them. Training, quantization and
benchmarks score with these same functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import DataError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
_EPSILON = 1e-6  # the reference's: an empty union gives 0, not NaN


def overlap(mask: NDArray[Any], truth: NDArray[Any]) -> tuple[int, int]:
    """Intersection and union of two masks, in pixels.

    Args:
        mask: (H, W) bool, or whole numbers of which all but 0 are inside.
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
    """Intersection over union of two masks, 0 to 1: ``|P and T| / (|P or T| + 1e-6)``. Two empty masks give 0.

    Raises:
        DataError: as in `overlap`.
    """
    return _ratio(*overlap(mask, truth))


@dataclass
class Scores:
    """Scores of many masks, gathered one by one.

    Attributes:
        ious: IoU of each mask, in the order in which they were added.
        intersection: sum of the intersections, in pixels.
        union: sum of the unions, in pixels.
    """

    ious: list[float] = field(default_factory=list)
    intersection: int = 0
    union: int = 0

    def add(self, iou: float, intersection: int, union: int) -> None:
        """Counts one mask whose overlap with the truth is known."""
        self.ious.append(float(iou))
        self.intersection += int(intersection)
        self.union += int(union)

    def add_mask(self, mask: NDArray[Any], truth: NDArray[Any]) -> float:
        """Compares one mask with its truth, counts it, and returns its IoU."""
        intersection, union = overlap(mask, truth)
        value = _ratio(intersection, union)
        self.add(value, intersection, union)
        return value

    def merge(self, others: Iterable[Scores]) -> Scores:
        """Takes in what other processes or threads have gathered, and returns itself."""
        for other in others:
            self.ious.extend(other.ious)
            self.intersection += other.intersection
            self.union += other.union
        return self

    def __len__(self) -> int:
        return len(self.ious)

    @property
    def mIoU(self) -> float:
        """Mean IoU, 0 to 1: the figure of the paper's tables."""
        return float(np.mean(self._nonempty()))

    @property
    def oIoU(self) -> float:
        """Overall IoU, 0 to 1: the sum of intersections over the sum of unions."""
        self._nonempty()
        return self.intersection / self.union if self.union else 0.0

    def precision(self, threshold: float) -> float:
        """Pr@X: the share of masks, 0 to 1, whose IoU is strictly above `threshold`."""
        return float(np.mean(np.array(self._nonempty()) > threshold))

    def to_dict(self) -> dict[str, float]:
        """Number of samples, and mIoU, oIoU and Pr@50 to Pr@90 in percent: the figures of a manifest."""
        figures: dict[str, float] = {"samples": len(self), "mIoU": 100 * self.mIoU, "oIoU": 100 * self.oIoU}
        return figures | {f"Pr@{100 * level:.0f}": 100 * self.precision(level) for level in THRESHOLDS}

    def _nonempty(self) -> list[float]:
        if not self.ious:
            raise DataError("no masks have been scored yet, so there are no scores")
        return self.ious


def _ratio(intersection: int, union: int) -> float:
    return intersection / (union + _EPSILON)


def _as_bool(mask: NDArray[Any]) -> NDArray[np.bool_]:
    if mask.dtype == np.bool_:
        return mask
    if mask.dtype.kind not in "iu":
        raise DataError(f"a mask to compare holds {mask.dtype}, expected bool: apply the threshold first")
    return np.asarray(mask != 0, np.bool_)
