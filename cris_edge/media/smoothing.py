"""Temporal smoothing: masks of a video that flicker less."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import OptionError
from cris_edge.result import Segmentation


@dataclass
class Smoothing:
    """Exponential smoothing of the probabilities over frames.

    The probability of a pixel is `strength` times its smoothed probability in the frame before, plus 1 - `strength`
    times its own. Smoothing starts again at a frame of another size, and at a cut or a jump: where the probabilities
    differ by more than 0.5 on average within the two masks.

    Attributes:
        strength: In [0, 1); 0 leaves every frame as it is.
    """

    strength: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.strength < 1:
            raise OptionError(f"The smoothing is {self.strength!r}; expected a number from 0 to below 1.")

    def __call__(self, results: Iterable[list[Segmentation]]) -> Iterator[list[Segmentation]]:
        """Smooth the results of a stream, one list for each frame, one result for each prompt."""
        before: list[NDArray[np.float32] | None] = []
        for frame in results:
            before = before or [None] * len(frame)
            smoothed = [self._blend(result, last) for result, last in zip(frame, before, strict=True)]
            before = [result.probability for result in smoothed]
            yield smoothed

    def _blend(self, result: Segmentation, before: NDArray[np.float32] | None) -> Segmentation:
        if before is None or before.shape != result.probability.shape or self.strength == 0:
            return result
        either = result.mask | (before > result.threshold)
        if either.any() and float(np.abs(result.probability - before)[either].mean()) > 0.5:
            return result
        probability = before * np.float32(self.strength) + result.probability * np.float32(1 - self.strength)
        return result.with_probability(probability)


def flicker(masks: Iterable[NDArray[np.bool_]]) -> float:
    """Mean of 1 - IoU of each mask with the one before it; 0 for masks that do not change."""
    changes = []
    before: NDArray[np.bool_] | None = None
    for mask in masks:
        if before is not None and before.shape == mask.shape:
            union = int(np.count_nonzero(before | mask))
            changes.append(1 - np.count_nonzero(before & mask) / union if union else 0.0)
        before = mask
    return float(np.mean(changes)) if changes else 0.0
