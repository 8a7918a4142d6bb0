"""Latency samples of several workers, measured in interleaved rounds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from cris_edge.benchmark.spread import Spread
from cris_edge.benchmark.worker import Worker
from cris_edge.errors import RuntimeFailure

_BLOCK = 0.25  # approximate seconds per block
_SMALLEST, _LARGEST = 3, 50  # iterations per block
_BLOCKS = 10  # enough for a meaningful confidence interval

Progress = Callable[[str], None]


class LatencySamples:
    """Iterations of one case, block by block: seconds by stage."""

    def __init__(self) -> None:
        self.blocks: list[list[dict[str, float]]] = []

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def of(self, stage: str) -> list[list[float]]:
        """The seconds of one stage, by block."""
        return [[iteration[stage] for iteration in block] for block in self.blocks]

    def spreads(self) -> dict[str, Spread]:
        """Statistics by stage; every iteration has the same stages."""
        return {stage: Spread.of(self.of(stage)) for stage in self.blocks[0][0]}

    def uncertainty(self) -> float:
        """The larger uncertainty of "whole" and "next", which decide when to stop."""
        return max(Spread.of(self.of(stage)).uncertainty for stage in ("whole", "next"))


class WorkerFailure(RuntimeFailure):
    """One of several workers failed; `index` is its position."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


def interleave(
    workers: Sequence[Worker],
    *,
    runs: int,
    seconds: float,
    uncertainty: float = 0.02,
    progress: Progress = lambda _: None,
) -> list[LatencySamples]:
    """Measure blocks of iterations on every worker in shuffled order until all medians are certain enough.

    Block i of every worker belongs to the same round.

    Args:
        workers: The workers.
        runs: Minimum number of iterations of each.
        seconds: Time limit per worker, once it has `runs` iterations.
        uncertainty: Relative half-width of the median's interval at which to stop early.
        progress: Called with progress messages.

    Raises:
        WorkerFailure: A worker failed.
    """
    sizes = []
    for index, worker in enumerate(workers):
        progress(f"warming up {worker.label}")
        with _failure_of(index):
            worker.ask("measure", count=2)
            began = monotonic()
            worker.ask("measure", count=2)  # runs one more than it returns
        sizes.append(min(_LARGEST, max(_SMALLEST, round(3 * _BLOCK / (monotonic() - began + 1e-9)))))
    gathered = [LatencySamples() for _ in workers]
    order = list(range(len(workers)))
    shuffle = random.Random(0).shuffle
    until = monotonic() + seconds * len(workers)
    min_rounds = min(_BLOCKS, runs)
    while True:
        shuffle(order)
        for index in order:
            with _failure_of(index):
                gathered[index].blocks.append(workers[index].ask("measure", count=sizes[index]))
        rounds = len(gathered[0].blocks)
        fewest, widest = min(map(len, gathered)), max(samples.uncertainty() for samples in gathered)
        progress(f"latency: round {rounds}, at least {fewest} iterations, medians within {widest:.1%}")
        if fewest >= runs and rounds >= min_rounds and (widest <= uncertainty or monotonic() > until):
            return gathered


@contextmanager
def _failure_of(index: int) -> Iterator[None]:
    try:
        yield
    except RuntimeFailure as error:
        raise WorkerFailure(str(error), index) from error
