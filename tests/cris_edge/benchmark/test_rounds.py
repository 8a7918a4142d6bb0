from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cris_edge.benchmark.rounds import LatencySamples, WorkerFailure, interleave
from cris_edge.benchmark.spread import Spread
from cris_edge.errors import RuntimeFailure


class Fake:
    """A worker that reports given durations."""

    def __init__(self, label: str, seconds: list[float], log: list[str]) -> None:
        self.label, self.seconds, self.log, self.asked = label, seconds, log, 0

    def ask(self, question: str, *, count: int) -> list[dict[str, float]]:
        assert question == "measure"
        self.log.append(self.label)
        self.asked += 1
        value = self.seconds[self.asked % len(self.seconds)]
        return [{"whole": value, "next": value / 2}] * count


def test_cases_are_interleaved() -> None:
    log: list[str] = []
    fakes: list[Any] = [Fake(label, [1.0], log) for label in "abc"]
    gathered = interleave(fakes, runs=500, seconds=0)
    rounds = [log[start : start + 3] for start in range(6, len(log), 3)]  # after the warm-up
    assert len(rounds) == 10 == len(gathered[0].blocks)
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1  # the order changes
    assert [len(samples) for samples in gathered] == [500, 500, 500]


def test_noise_is_measured_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cris_edge.benchmark.rounds.monotonic", iter(np.arange(0, 1e6, 0.1)).__next__)
    calm: Any = Fake("calm", [1.0], [])
    noisy: Any = Fake("noisy", [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0], [])
    (calm_samples,) = interleave([calm], runs=50, seconds=10)
    (noisy_samples,) = interleave([noisy], runs=50, seconds=10)
    assert len(calm_samples) < len(noisy_samples)
    assert Spread.of(noisy_samples.of("whole")).uncertainty > 0.02


def test_samples_by_stage() -> None:
    samples = LatencySamples()
    samples.blocks = [[{"whole": 2.0, "next": 1.0}], [{"whole": 4.0, "next": 3.0}]]
    assert samples.of("next") == [[1.0], [3.0]]
    assert samples.spreads()["whole"].median == 3.0
    assert len(samples) == 2


def test_a_worker_that_fails_is_named() -> None:
    class Failing(Fake):
        def ask(self, question: str, *, count: int) -> list[dict[str, float]]:
            if self.asked == 4:
                raise RuntimeFailure("no memory is left")
            return super().ask(question, count=count)

    workers: list[Any] = [Fake("a", [1.0], []), Failing("b", [1.0], [])]
    with pytest.raises(WorkerFailure, match="no memory is left") as failure:
        interleave(workers, runs=500, seconds=0)
    assert failure.value.index == 1
