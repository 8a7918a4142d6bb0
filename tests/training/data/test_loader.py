"""The loader's workers: what they say when something breaks, and that they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cris_edge.errors import DataError
from training.data.loader import Batch, Examples, Order, batches
from training.data.samples import Example, SceneSource, open_source
from training.data.transforms import Transform

ROOT = Path(__file__).parents[3]


class Scenes(SceneSource):
    """Scenes of which one does what a test wants."""

    def load(self, index: int, size: int) -> Example:
        """Fail as no source says that it does."""
        if self.split == "val":
            raise RecursionError("never foreseen")
        return super().load(index, size)


def stream(split: str, workers: int, size: int = 128, steps: int = 50) -> Iterator[Batch]:
    examples = Examples(Scenes(split, 20, 1), Transform(17, 1, 0.0, 0.0, "area"), seed=0)
    return batches(examples, Order(20, 1, steps, 0, lambda _: size), 0, workers=workers, prefetch=2)


def test_a_worker_that_breaks_is_told_of_and_none_is_left_to_wait_for() -> None:
    with pytest.raises(DataError, match=r"a loader worker failed: (.|\n)*RecursionError: never foreseen"):
        next(stream("val", workers=2))
    assert not multiprocessing.active_children()
    with pytest.raises(RecursionError, match="never foreseen"):
        next(stream("val", workers=0))


def test_a_killed_worker_is_told_of_and_the_other_ends() -> None:
    loaded = stream("train", workers=2)
    next(loaded)
    first, _ = multiprocessing.active_children()
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a loader worker failed: .*killed by signal 9.*--resume auto"):
        for _ in loaded:
            pass
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_told_of_where_its_batch_is_waited_for_and_nowhere_else() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    loaded = stream("train", workers=1)
    next(loaded)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert signal.getsignal(signal.SIGCHLD) == before
    with pytest.raises(DataError, match="killed by signal 9"):
        for _ in loaded:
            pass


def test_a_process_that_exits_in_the_middle_does_not_wait_for_its_workers() -> None:
    program = """
from tests.training.data.test_loader import stream
loaded = stream("train", workers=2)
next(loaded)
raise SystemExit(3)
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (3, "")


def test_a_scene_too_small_to_draw_is_refused_with_a_sentence() -> None:
    with pytest.raises(DataError, match=r"an input of 100 pixels would be .*75.* give larger --sizes"):
        for _ in stream("train", workers=1, size=100):
            pass
    with pytest.raises(DataError, match="such as 128"):
        open_source("scenes:val:4:1").load(1, 64)
    assert not multiprocessing.active_children()
