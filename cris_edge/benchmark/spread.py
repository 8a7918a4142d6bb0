"""Summary statistics of repeated measurements, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Summary of measurements taken in blocks, with other work between the blocks.

    Attributes:
        count: Number of measurements.
        median: Median of all measurements.
        low: Lower bound of the median's confidence interval; see `interval`.
        high: Upper bound of the median's confidence interval.
        confidence: 0.95; less with fewer than six blocks.
        p25: 25th percentile.
        p75: 75th percentile.
        p90: 90th percentile.
        p99: 99th percentile; close to the maximum with fewer than 100 measurements.
        smallest: Minimum.
    """

    count: int
    median: float
    low: float
    high: float
    confidence: float
    p25: float
    p75: float
    p90: float
    p99: float
    smallest: float

    @classmethod
    def of(cls, blocks: Sequence[Sequence[float]]) -> Spread:
        """Summarize blocks of at least one measurement each."""
        values = sorted(value for block in blocks for value in block)
        centre = quantile(values, 0.5)
        low, high, confidence = interval([quantile(sorted(block), 0.5) for block in blocks])
        return cls(
            count=len(values),
            median=centre,
            # With blocks of unequal size, their medians may all lie on one side of the overall median.
            low=min(low, centre),
            high=max(high, centre),
            confidence=confidence,
            p25=quantile(values, 0.25),
            p75=quantile(values, 0.75),
            p90=quantile(values, 0.9),
            p99=quantile(values, 0.99),
            smallest=values[0],
        )

    @property
    def uncertainty(self) -> float:
        """Half the interval, relative to the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return asdict(self)


def quantile(values: Sequence[float], fraction: float) -> float:
    """Return a quantile of sorted values, linearly interpolated."""
    position = fraction * (len(values) - 1)
    below = int(position)
    above = min(below + 1, len(values) - 1)
    return values[below] + (position - below) * (values[above] - values[below])


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return a distribution-free confidence interval of the median, and its confidence.

    The bounds are order statistics, chosen by the sign test. Consecutive runs are correlated, because a noisy machine
    stays noisy for a while, so pass medians of blocks taken apart in time rather than single runs. With fewer than six
    values the bounds are the extremes, at a confidence below 95 %.
    """
    ordered, count = sorted(values), len(values)
    ways, outside, cut = 1, 1 / 2**count, 0  # probability that the median lies below the value at `cut`
    while True:
        ways = ways * (count - cut) // (cut + 1)  # binomial coefficient (count, cut + 1)
        more = outside + ways / 2**count
        if more > (1 - CONFIDENCE) / 2:
            break
        outside, cut = more, cut + 1
    return ordered[cut], ordered[count - 1 - cut], min(CONFIDENCE, max(0.0, 1 - 2 * outside))


def ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the ratio of the median of `theirs` to that of `ours`, with its confidence interval.

    Block i of both must come from the same round, so that a temporary slowdown affects both.
    """
    pairs = zip(ours, theirs, strict=True)
    low, high, confidence = interval([quantile(sorted(b), 0.5) / quantile(sorted(a), 0.5) for a, b in pairs])
    value = Spread.of(theirs).median / Spread.of(ours).median
    return {"ratio": value, "low": min(low, value), "high": max(high, value), "confidence": confidence}
