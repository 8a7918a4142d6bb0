"""Learning rate and input size as functions of the step."""

from __future__ import annotations

import math
from typing import Any

import torch

from training.config import RunConfig


class Schedule:
    """Learning rate and input size of every step; stateless, so that resuming needs only the step.

    Args:
        config: The run.
        examples: Number of training examples, to convert epochs to steps.
    """

    def __init__(self, config: RunConfig, examples: int) -> None:
        loop = config.loop
        self.config = config
        self.per_epoch = examples / loop.batch_size
        self.steps = loop.steps or max(1, math.ceil(loop.epochs * self.per_epoch))
        shares = loop.size_shares or (1.0,) * len(loop.sizes)
        self._size_ends = [sum(shares[: i + 1]) / sum(shares) * self.steps for i in range(len(loop.sizes))]

    def factor(self, step: int) -> float:
        """Return the learning rate of ``step`` (from 0) relative to the configured one."""
        settings = self.config.optimizer
        start, end, peak = self._cycle(step)
        if step - start < settings.warmup_steps:
            return peak * (step - start + 1) / settings.warmup_steps
        if settings.schedule == "multistep":
            epoch = step / self.per_epoch
            return settings.decay ** sum(epoch >= milestone for milestone in settings.milestones)
        done = (step - start - settings.warmup_steps) / max(1, end - start - settings.warmup_steps)
        return settings.final_scale + (peak - settings.final_scale) * (1 + math.cos(math.pi * min(1.0, done))) / 2

    def _cycle(self, step: int) -> tuple[int, int, float]:
        """Return the first step, the end and the highest factor of the cycle that contains ``step``."""
        settings = self.config.optimizer
        start = max((restart for restart in settings.restarts if restart <= step), default=0)
        end = min((restart for restart in settings.restarts if restart > step), default=self.steps)
        return start, min(end, self.steps), settings.restart_scale if start else 1.0

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate of every group for ``step``."""
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.factor(step)

    def size_at(self, step: int) -> int:
        """Return the input size of ``step``, in pixels."""
        sizes = self.config.loop.sizes
        for size, end in zip(sizes, self._size_ends, strict=True):
            if step < end:
                return size
        return sizes[-1] if sizes else self.config.architecture.input_size


def decayed_groups(groups: list[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """Split parameter groups so that vectors (biases, norms) have no weight decay; add their ``base_lr``."""
    split = []
    for group in groups:
        for vectors in (False, True):
            chosen = [parameter for parameter in group["params"] if (parameter.ndim < 2) == vectors]
            if chosen:
                decay = 0.0 if vectors else weight_decay
                split.append({**group, "params": chosen, "weight_decay": decay, "base_lr": group["lr"]})
    return split
