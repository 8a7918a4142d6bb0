"""Batches as a function of the step, so that a killed run continues exactly.

The examples of a step, and every random choice about them, follow from (seed, epoch, index). Loader workers therefore
have no state, and a checkpoint needs no sampler state beyond the number of its step.
"""

from __future__ import annotations

import atexit
import functools
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cris_edge.errors import CrisEdgeError, DataError
from training.data.samples import Source
from training.data.transforms import Transform

Key = tuple[int, int, int]
"""Epoch, index and input size."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch.

    Attributes:
        image: (B, 3, S, S) float32.
        tokens: (B*k, L) int64; sentence j belongs to image j // k.
        mask: (B*k, 1, S/4, S/4) float32 in [0, 1].
        present: (B*k,) float32; 0 for sentences that match nothing, whose mask is 0, else 1.
        ids: names of the B examples.
        seconds: time to make it in its worker.
    """

    image: Tensor
    tokens: Tensor
    mask: Tensor
    present: Tensor
    ids: list[str]
    seconds: float

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory (called by the loader)."""
        image, tokens, mask, present = (x.pin_memory() for x in (self.image, self.tokens, self.mask, self.present))
        return Batch(image, tokens, mask, present, self.ids, self.seconds)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Batch:
        """Return the batch on ``device``."""
        image = self.image.to(device, non_blocking=True).contiguous(memory_format=memory_format)
        return Batch(
            image,
            self.tokens.to(device, non_blocking=True),
            self.mask.to(device, non_blocking=True),
            self.present.to(device, non_blocking=True),
            self.ids,
            self.seconds,
        )


@dataclass(frozen=True)
class Order:
    """The examples of each step: one permutation per epoch, read continuously from one epoch into the next.

    Attributes:
        length: examples in the source.
        batch_size: examples per step over all processes.
        steps: of the run.
        seed: of the permutations.
        accumulation: micro-batches per step.
        rank: this process, of ``world``.
        size_at: input size of a step.
    """

    length: int
    batch_size: int
    steps: int
    seed: int
    size_at: Callable[[int], int]
    accumulation: int = 1
    rank: int = 0
    world: int = 1

    def micro_batches(self, start: int) -> Iterator[list[Key]]:
        """Yield this process's micro-batches from step ``start`` on, ``accumulation`` for each step."""
        micro = self.batch_size // (self.accumulation * self.world)
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(start, self.steps):
            keys: list[Key] = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
                keys.append((epoch, int(order[position % self.length]), self.size_at(step)))
            for part in range(self.accumulation):
                first = (part * self.world + self.rank) * micro
                yield keys[first : first + micro]


class Examples(Dataset[dict[str, Any]]):
    """Examples of a source, transformed; an error names the example."""

    def __init__(self, source: Source, transform: Transform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, index, size = key
        began = time.perf_counter()
        try:
            example = self.source.load(index, size)
            made = self.transform(example, size, np.random.default_rng([self.seed, epoch, index]))
        except CrisEdgeError as error:
            # Passed to the training process as a value: the loader would wrap it in a traceback that hides the message.
            return {"error": f"sample {self.source.id(index)}: {error}"}
        return {**made, "id": example.id, "seconds": time.perf_counter() - began}


def collate(items: list[dict[str, Any]]) -> Batch | str:
    """Stack examples into a batch, or return the first error's message."""
    for item in items:
        if "error" in item:
            return str(item["error"])
    return Batch(
        image=torch.from_numpy(np.stack([item["image"] for item in items])),
        tokens=torch.from_numpy(np.concatenate([item["tokens"] for item in items])),
        mask=torch.from_numpy(np.concatenate([item["mask"] for item in items])),
        present=torch.from_numpy(np.concatenate([item["present"] for item in items])),
        ids=[item["id"] for item in items],
        seconds=sum(item["seconds"] for item in items),
    )


def batches(
    examples: Examples, order: Order, start: int, *, workers: int, prefetch: int, pin_memory: bool = False
) -> Generator[Batch, None, None]:
    """Yield micro-batches from step ``start`` on.

    Raises:
        DataError: an example cannot be used, the message names it; or a worker failed or was killed.
    """
    loader = DataLoader(
        examples,
        batch_sampler=_Keys(order, start),
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_quiet_worker,
        # A separate generator: the loader draws a seed at start, which must not advance the training's generator.
        generator=torch.Generator().manual_seed(0),
    )
    if not workers:
        yield from _unbroken(iter(loader))
        return
    iterator = _start(loader)
    end = functools.partial(_end, iterator)
    atexit.register(end)
    failure = ""
    try:
        yield from _unbroken(iterator)
    except CrisEdgeError:
        raise
    except Exception as error:
        failure = _told(error, iterator)
    finally:
        atexit.unregister(end)
        end()
    if failure:
        raise DataError(failure)


def _unbroken(iterator: Iterator[Batch | str]) -> Iterator[Batch]:
    for batch in iterator:
        if isinstance(batch, str):
            raise DataError(batch)
        yield batch


def _start(loader: DataLoader[Any]) -> Any:
    """Start the workers without PyTorch's SIGCHLD handler; a dead worker is reported where its batch is expected.

    That handler raises in whichever line the trainer is executing. In a destructor or a callback of the garbage
    collector Python swallows the error, and the handler does not raise again.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)  # None: it was not set from Python


def _told(error: Exception, iterator: Any) -> str:
    """Describe the failure of a worker. A killed one breaks the next read in several ways, some without a message."""
    for worker in iterator._workers:
        worker.join(0.1)  # a worker killed just now may not be reaped yet
    signals = {-worker.exitcode for worker in iterator._workers if worker.exitcode and worker.exitcode < 0}
    if signals:
        numbers = " and ".join(map(str, sorted(signals)))
        why = ", as the system does when memory runs out" if 9 in signals else ""
        return (
            f"a loader worker failed: it was killed by signal {numbers}{why}; continue with --resume auto, and with "
            "fewer --workers if it happens again."
        )
    return f"a loader worker failed: {str(error).strip() or repr(error)}"


def _end(iterator: Any) -> None:
    """Stop the workers now, even if something still references the iterator.

    They ignore SIGTERM, with which both PyTorch and Python's exit end workers that do not answer, so a process that
    exits while one is alive would wait for it forever.
    """
    try:
        iterator._shutdown_workers()
    finally:
        for worker in iterator._workers:
            worker.kill()
            worker.join()


class _Keys:
    """A batch sampler: iterable more than once, as the loader expects."""

    def __init__(self, order: Order, start: int) -> None:
        self.order, self.start = order, start

    def __iter__(self) -> Iterator[list[Key]]:
        return self.order.micro_batches(self.start)

    def __len__(self) -> int:
        return (self.order.steps - self.start) * self.order.accumulation


def _quiet_worker(_: int) -> None:
    # One thread each: OpenCV would otherwise start one per core in every worker and slow the trainer down.
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # Ctrl-C and a scheduler's notice reach the whole process group. The trainer decides when to stop, after its step;
    # workers end with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
