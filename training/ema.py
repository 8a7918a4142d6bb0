"""Exponential moving average of weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from training.model import CRIS


class Ema:
    """An exponential moving average of a network's weights.

    The decay warms up as (1 + t) / (10 + t), so that the random initialization fades early. Buffers (the running
    statistics of batch norm) are averages already and are copied.

    Args:
        model: The network that is trained.
        decay: Decay per step.

    Attributes:
        model: A network with the averaged weights, in eval mode.
    """

    def __init__(self, model: CRIS, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: CRIS) -> None:
        """Update the average after a training step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_([*self.model.parameters()], [*model.parameters()], 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and the number of updates for a checkpoint."""
        weights: dict[str, Tensor] = self.model.state_dict()
        return {"weights": weights, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.model.load_state_dict(state["weights"])
        self.updates = int(state["updates"])
