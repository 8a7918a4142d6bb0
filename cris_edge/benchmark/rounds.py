"""Turns: what several workers measured in the same rounds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from cris_edge.benchmark.spread import Spread
from cris_edge.benchmark.worker import Worker
from cris_edge.errors import RuntimeFailure

_BLOCK = 0.25  # seconds that a block takes, about
_SMALLEST, _LARGEST = 3, 50  # turns of a block
_BLOCKS = 10  # that are wanted, so that the interval means something

Progress = Callable[[str], None]


class LatencySamples:
    """The turns of one case, block by block: seconds by stage."""

    def __init__(self) -> None:
        self.blocks: list[list[dict[str, float]]] = []

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def of(self, stage: str) -> list[list[float]]:
        """The seconds of one stage, by block."""
        return [[turn[stage] for turn in block] for block in self.blocks]

    def spreads(self) -> dict[str, Spread]:
        """By stage; every turn has the same ones."""
        return {stage: Spread.of(self.of(stage)) for stage in self.blocks[0][0]}

    def uncertainty(self) -> float:
        """The larger one of the two that are looked at."""
        return max(Spread.of(self.of(stage)).uncertainty for stage in ("whole", "next"))


class WorkerFailure(RuntimeFailure):
    """A worker failed while several were measured; `place` says which one."""

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


def interleave(
    workers: Sequence[Worker],
    *,
    runs: int,
    seconds: float,
    uncertainty: float = 0.02,
    progress: Progress = lambda _: None,
) -> list[LatencySamples]:
    """Have every worker measure blocks of turns, in changing order, until all of them know enough.

    Block i of each was taken in the same round. `seconds` are for each worker.

    Raises:
        WorkerFailure: A worker failed; it says which.
    """
    sizes = []
    for place, worker in enumerate(workers):
        progress(f"warming up {worker.label}")
        with _of(place):
            worker.ask("measure", count=2)
            began = monotonic()
            worker.ask("measure", count=2)  # one more is run than told
        sizes.append(min(_LARGEST, max(_SMALLEST, round(3 * _BLOCK / (monotonic() - began + 1e-9)))))
    gathered = [LatencySamples() for _ in workers]
    places = list(range(len(workers)))
    shuffle = random.Random(0).shuffle
    until = monotonic() + seconds * len(workers)
    wanted = min(_BLOCKS, runs)
    while True:
        shuffle(places)
        for place in places:
            with _of(place):
                gathered[place].blocks.append(workers[place].ask("measure", count=sizes[place]))
        rounds = len(gathered[0].blocks)
        least, widest = min(map(len, gathered)), max(turns.uncertainty() for turns in gathered)
        progress(f"latency: round {rounds}, {least} turns at least, medians within {widest:.1%}")
        if least >= runs and rounds >= wanted and (widest <= uncertainty or monotonic() > until):
            return gathered


@contextmanager
def _of(place: int) -> Iterator[None]:
    try:
        yield
    except RuntimeFailure as error:
        raise WorkerFailure(str(error), place) from error
