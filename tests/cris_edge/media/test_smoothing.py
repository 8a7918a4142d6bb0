from __future__ import annotations

import numpy as np
import pytest

from cris_edge.errors import OptionError
from cris_edge.media.smoothing import Smoothing, flicker
from cris_edge.result import Segmentation


def result(probability: np.ndarray) -> list[Segmentation]:
    shape = (*probability.shape, 3)
    return [Segmentation(probability.astype(np.float32), np.zeros(shape, np.uint8), "it", threshold=0.5)]


def moving_scene(count: int = 40, noise: float = 0.22) -> tuple[list[list[Segmentation]], list[np.ndarray]]:
    """A disc that moves a pixel a frame, with noisy probabilities; and its true masks."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:96, :128]
    frames, truth = [], []
    for number in range(count):
        inside = (x - 30 - number) ** 2 + (y - 48) ** 2 < 20**2
        coarse = random.normal(0, noise, (12, 16)).repeat(8, 0).repeat(8, 1)
        frames.append(result(np.clip(np.where(inside, 0.75, 0.25) + coarse, 0, 1)))
        truth.append(inside)
    return frames, truth


def test_smoothing_reduces_flicker_and_keeps_the_object() -> None:
    frames, truth = moving_scene()
    smoothed = list(Smoothing(0.5)(frames))
    before, after = (flicker(one[0].mask for one in run) for run in (frames, smoothed))
    still = flicker(truth)
    assert after - still < 0.6 * (before - still)

    def accuracy(run: list[list[Segmentation]]) -> float:
        pairs = zip(run, truth, strict=True)
        return float(np.mean([(one[0].mask & t).sum() / (one[0].mask | t).sum() for one, t in pairs]))

    assert accuracy(smoothed) > accuracy(frames)


def test_zero_changes_nothing() -> None:
    frames, _ = moving_scene(5)
    assert [one[0] for one in Smoothing(0.0)(frames)] == [one[0] for one in frames]


def test_a_cut_begins_again() -> None:
    first, second = np.zeros((8, 8)), np.zeros((8, 8))
    first[:4], second[4:] = 1, 1
    smoothed = list(Smoothing(0.9)([result(first), result(second)]))
    assert np.array_equal(smoothed[1][0].probability, second.astype(np.float32))


def test_another_size_begins_again() -> None:
    smoothed = list(Smoothing(0.5)([result(np.ones((8, 8))), result(np.ones((4, 4)))]))
    assert smoothed[1][0].mask.shape == (4, 4)


@pytest.mark.parametrize("strength", [-0.1, 1.0, 2])
def test_the_strength_is_checked(strength: float) -> None:
    with pytest.raises(OptionError, match="expected a number from 0 to below 1"):
        Smoothing(strength)
