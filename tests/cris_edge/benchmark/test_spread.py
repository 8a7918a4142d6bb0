from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cris_edge.benchmark.spread import Spread, interval, quantile, ratio

SECONDS = st.floats(1e-6, 1e3)


def test_percentiles_of_known_values() -> None:
    spread = Spread.of([[float(value)] for value in range(101)])
    assert (spread.count, spread.smallest) == (101, 0)
    assert (spread.p25, spread.median, spread.p75, spread.p90, spread.p99) == (25, 50, 75, 90, 99)


def test_quantile_is_interpolated() -> None:
    assert quantile([1.0, 2.0], 0.5) == 1.5
    assert quantile([3.0], 0.99) == 3.0


@pytest.mark.parametrize(
    ("count", "first", "last"),
    # From tables of the sign test: ranks of the bounds at 95 %.
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (20, 6, 15), (50, 18, 33), (100, 40, 61)],
)
def test_interval_is_that_of_the_sign_test(count: int, first: int, last: int) -> None:
    values = [float(value) for value in range(1, count + 1)]
    assert interval(values) == (first, last, 0.95)


def test_few_values_have_less_confidence() -> None:
    assert interval([1.0]) == (1.0, 1.0, 0.0)
    assert interval([1.0, 2.0, 3.0]) == (1.0, 3.0, 0.75)
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0]) == (1.0, 5.0, 0.9375)


def test_interval_of_thousands() -> None:
    low, high, _ = interval([float(value) for value in range(5000)])
    assert 2400 < low < 2499 < high < 2600


def test_interval_covers_the_median_as_often_as_claimed() -> None:
    draw = random.Random(1)
    held = 0
    for _ in range(400):
        low, high, _ = interval([draw.expovariate(1.0) for _ in range(15)])
        held += low <= 0.6931 <= high
    assert held / 400 > 0.93


@given(st.lists(st.lists(SECONDS, min_size=1, max_size=5), min_size=1, max_size=12))
def test_the_interval_contains_the_reported_median(blocks: list[list[float]]) -> None:
    spread = Spread.of(blocks)
    assert spread.smallest <= spread.low <= spread.median <= spread.high
    assert spread.p25 <= spread.median <= spread.p75 <= spread.p90 <= spread.p99
    assert spread.uncertainty >= 0


def test_drift_between_blocks_widens_the_interval() -> None:
    calm = [[1.0, 1.0, 1.0]] * 10
    drifting = [[1.0 + 0.1 * number] * 3 for number in range(10)]
    assert Spread.of(calm).uncertainty == 0
    assert Spread.of(drifting).uncertainty > 0.1


def test_ratio_is_robust_to_a_common_slowdown() -> None:
    slowdown = [1.0, 1.3, 2.0, 1.1, 1.0, 1.7, 1.2]
    ours, theirs = [[0.1 * slow] * 3 for slow in slowdown], [[0.5 * slow] * 3 for slow in slowdown]
    found = ratio(ours, theirs)
    assert found["ratio"] == pytest.approx(5)
    assert found["high"] - found["low"] < 1e-9
    assert found["confidence"] == 0.95
