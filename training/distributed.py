"""Processes of a distributed run; a single process runs the same code."""

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
    """Rank, number of processes, and device of this process.

    Attributes:
        rank: Index of this process; process 0 writes the files.
        world: Number of processes.
        device: Device of this process.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of ``value`` over processes."""
        if self.world == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.world

    def gather(self, items: list[T]) -> list[T]:
        """Return the items of all processes in the order of their ranks."""
        if self.world == 1:
            return items
        parts: list[list[T]] = [[] for _ in range(self.world)]
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


def join(device: str = "auto") -> Processes:
    """Join the process group of ``torchrun`` (NCCL on GPUs, gloo on CPUs), if there is one.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto`` for a GPU if available.

    Raises:
        OptionError: The device is not available, or there are fewer GPUs than processes.
    """
    rank, world, local = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    by_rank = device in ("auto", "cuda") and torch.cuda.is_available()
    chosen = choose_device(f"cuda:{local}" if by_rank else device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Processes(rank, world, chosen)


def leave() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
