from __future__ import annotations

import numpy as np
import pytest

from cris_edge.bundle.manifest import STATISTICS
from cris_edge.metrics import auroc
from runtimes.presence_calibration import Observations, cross_validated, determine, fit
from training.data.samples import open_source


def observations(informative: bool, count: int = 300) -> Observations:
    rng = np.random.default_rng(0)
    matches = rng.random(count) < 0.7
    statistics = rng.normal(size=(count, len(STATISTICS)))
    if informative:
        statistics[:, 0] += 3.0 * matches
    return Observations(statistics * 5 + 2, None, matches, np.arange(count) // 3)


def test_a_fit_finds_what_separates() -> None:
    seen = observations(informative=True)
    coefficients = fit(seen.statistics, seen.matches)
    weights = np.array([coefficients[name] for name in STATISTICS])
    assert weights[0] > 4 * np.abs(weights[1:]).max()
    odds = coefficients["intercept"] + seen.statistics @ weights
    assert auroc(odds, seen.matches) > 0.97
    balanced = 0.5 * ((odds[seen.matches] > 0).mean() + (odds[~seen.matches] < 0).mean())
    assert balanced > 0.9


def test_separable_data_have_finite_coefficients() -> None:
    seen = observations(informative=True)
    seen.statistics[:, 1] = np.where(seen.matches, 100.0, -100.0)
    assert np.isfinite(list(fit(seen.statistics, seen.matches).values())).all()


def test_cross_validation_does_not_flatter_noise() -> None:
    seen = observations(informative=False)
    held_out = cross_validated(seen)
    assert auroc(held_out, seen.matches) < 0.58
    assert auroc(cross_validated(observations(informative=True)), seen.matches) > 0.95


def test_prompts_of_one_image_stay_in_one_fold() -> None:
    """Statistics that are copied within an image would give the held-out copy away."""
    seen = observations(informative=False)
    statistics = np.repeat(seen.statistics[::3], 3, axis=0)
    matches = np.repeat(seen.matches[::3], 3)
    assert auroc(cross_validated(Observations(statistics, None, matches, seen.images)), matches) < 0.62


class Constant:
    """A network that always answers the same."""

    runtime, precision, input_size, word_len = "constant", "float32", 128, 17

    def logits(self, pixels: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return np.zeros((len(tokens), 1, 32, 32), np.float32)


@pytest.mark.parametrize("has_head", [True, False])
def test_without_data_a_head_has_its_default_and_the_rest_nothing(has_head: bool) -> None:
    spec = determine(Constant(), None, has_head=has_head)
    assert (spec is not None) == has_head
    few = determine(Constant(), open_source("scenes:val:3:1:generalized"), has_head=False)
    assert few is None
