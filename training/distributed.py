"""This process among the others of a run; alone it is the only one, and the same code runs."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from training.device import choose_device

T = TypeVar("T")
logger = logging.getLogger("cris_edge.training")


@dataclass(frozen=True)
class Processes:
    """Rank and number of processes, and the device of this one.

    Attributes:
        rank: number of this process; 0 writes files.
        world: number of processes.
        device: what this process computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of ``value`` over processes."""
        if self.world == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.world

    def gather(self, items: list[T]) -> list[T]:
        """Return the items of all processes, those of the first first."""
        if self.world == 1:
            return items
        parts: list[list[T]] = [[] for _ in range(self.world)]
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier()


def join(device: str = "auto") -> Processes:
    """Join the processes that ``torchrun`` started (NCCL on GPUs, gloo on CPUs), or stay alone.

    Args:
        device: ``auto`` takes a GPU when there is one; else ``cpu``, ``cuda``, ``cuda:1``, ...

    Raises:
        OptionError: there is no such device here, or fewer GPUs than processes.
    """
    rank, world, local = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    ours = device in ("auto", "cuda") and torch.cuda.is_available()
    chosen = choose_device(f"cuda:{local}" if ours else device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Processes(rank, world, chosen)


def leave() -> None:
    """Leave the group that :func:`join` joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
