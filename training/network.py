"""CRIS as the loop calls it: the same function, computed in the order that trains fastest on the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training.model import CRIS
from training.model.projector import Projector


class Network(nn.Module):
    """Logits and decoded features of a CRIS.

    Args:
        model: the network.
        recompute: whether to keep only the decoder's output and recompute the rest in the backward pass: less
            memory, more time.
    """

    def __init__(self, model: CRIS, recompute: bool = False, adapter: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.recompute, self.adapter = model, recompute, adapter

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, 1, S/4, S/4) and decoded features (N, C, S/16, S/16), adapted where there is an adapter."""
        project = project_taps if image.device.type == "cpu" and self.model.proj.contrastive else _project
        if self.recompute:
            options: dict[str, Any] = {"use_reentrant": False, "context_fn": self._contexts}
            decoded, sentence = checkpoint(self.model.decode, image, tokens, **options)
            logits = checkpoint(project, self.model.proj, decoded, sentence, **options)
        else:
            decoded, sentence = self.model.decode(image, tokens)
            logits = project(self.model.proj, decoded, sentence)
        return logits, decoded if self.adapter is None else self.adapter(decoded)

    def _contexts(self) -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
        return contextlib.nullcontext(), self._still()

    @contextlib.contextmanager
    def _still(self) -> Iterator[None]:
        """Recompute without counting the batch in the running statistics a second time."""
        norms = [module for module in self.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        before = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.momentum = 0.0
            yield
        finally:
            for norm, momentum in zip(norms, before, strict=True):
                norm.momentum = momentum


def project_taps(projector: Projector, decoded: Tensor, sentence: Tensor) -> Tensor:
    """The projector with its last convolution as a matrix product and nine shifted additions.

    A convolution with as many groups as sentences is slow on CPUs, above all its backward pass; the sums are the same.
    """
    pixels = projector.vis(decoded)  # (N, C/2, h, w)
    count, half, height, width = pixels.shape
    projected = projector.txt(sentence)
    kernel, bias = projected[:, :-1].reshape(count, half, 9), projected[:, -1]
    flat = pixels.permute(0, 2, 3, 1).reshape(count, height * width, half)
    taps = torch.bmm(flat, kernel.to(flat.dtype)).float().reshape(count, height, width, 9)
    taps = F.pad(taps, (0, 0, 1, 1, 1, 1))
    logits: Tensor = bias.float()[:, None, None]
    for tap in range(9):
        row, column = divmod(tap, 3)
        logits = logits + taps[:, row : row + height, column : column + width, tap]
    return logits[:, None]


def _project(projector: Projector, decoded: Tensor, sentence: Tensor) -> Tensor:
    logits: Tensor = projector(decoded, sentence)
    return logits
