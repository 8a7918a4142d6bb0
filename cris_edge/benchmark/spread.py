"""Spread: what repeated measurements of one thing say, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Summary of measurements that were taken in blocks, with other work between the blocks.

    Attributes:
        count: Measurements.
        median: Of all of them.
        low: Of the interval that holds the median with `confidence`; see `interval`.
        high: The same.
        confidence: 0.95; less where there are fewer than six blocks.
        p25: Percentiles.
        p75: The same.
        p90: The same.
        p99: The same; with fewer than 100 measurements this is near the largest.
        smallest: What nothing disturbed.
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
        """Summarize blocks, each of at least one measurement."""
        values = sorted(value for block in blocks for value in block)
        centre = quantile(values, 0.5)
        low, high, confidence = interval([quantile(sorted(block), 0.5) for block in blocks])
        return cls(
            count=len(values),
            median=centre,
            # Where blocks are of unequal size, their medians may lie on one side of the median of all.
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
        """Half the interval, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the sorted `values` lies, interpolated between neighbours."""
    place = share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Bounds of the median of what `values` were drawn from, and the confidence in them.

    They are two of the values, chosen by the binomial distribution of how many lie below the median: nothing is assumed
    of their distribution. Neighbouring runs of a program are alike, because a noisy machine stays noisy for a while; so
    give medians of blocks that were taken apart in time, not single runs. Below six values no two of them hold the
    median with 95 %: the bounds are the extremes then, and the confidence says what they are worth.
    """
    ordered, count = sorted(values), len(values)
    ways, outside, cut = 1, 1 / 2**count, 0  # probability that the median lies below the value at `cut`
    while True:
        ways = ways * (count - cut) // (cut + 1)  # to choose cut + 1 of them
        more = outside + ways / 2**count
        if more > (1 - CONFIDENCE) / 2:
            break
        outside, cut = more, cut + 1
    return ordered[cut], ordered[count - 1 - cut], min(CONFIDENCE, max(0.0, 1 - 2 * outside))


def ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> dict[str, float]:
    """How many times larger the median of `theirs` is, with the interval of it.

    Block i of both was taken in the same round, so that what slows the machine for a while slows both.
    """
    pairs = zip(ours, theirs, strict=True)
    low, high, confidence = interval([quantile(sorted(b), 0.5) / quantile(sorted(a), 0.5) for a, b in pairs])
    value = Spread.of(theirs).median / Spread.of(ours).median
    return {"ratio": value, "low": min(low, value), "high": max(high, value), "confidence": confidence}
