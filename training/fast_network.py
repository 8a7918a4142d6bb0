"""CRIS for the training loop: the same function, in the order that trains fastest on the device."""

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
from training.model.typed import typed
from training.model.upsampled import convolve_doubled


class Network(nn.Module):
    """Logits, decoded features and presence logits of a CRIS.

    Args:
        model: The network.
        recompute: Whether to recompute activations in the backward pass: less memory, more time.
        adapter: Applied to the decoded features, for distillation.
    """

    def __init__(self, model: CRIS, recompute: bool = False, adapter: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.recompute, self.adapter = model, recompute, adapter

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits (N, 1, S/4, S/4), (adapted) decoded features (N, C, S/16, S/16), and presence logits (N, 1)."""
        project = project_taps if image.device.type == "cpu" and self.model.proj.contrastive else _project
        if self.recompute:
            options: dict[str, Any] = {"use_reentrant": False, "context_fn": self._contexts}
            decoded, sentence = checkpoint(self.model.decode, image, tokens, **options)
            logits = checkpoint(project, self.model.proj, decoded, sentence, **options)
        else:
            decoded, sentence = self.model.decode(image, tokens)
            logits = project(self.model.proj, decoded, sentence)
        presence = None if self.model.presence is None else self.model.presence(decoded, sentence)
        return logits, decoded if self.adapter is None else self.adapter(decoded), presence

    def _contexts(self) -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
        return contextlib.nullcontext(), self._frozen_statistics()

    @contextlib.contextmanager
    def _frozen_statistics(self) -> Iterator[None]:
        """Keep the running statistics while a batch is recomputed."""
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
    """Compute the projector in the order that trains fastest on CPUs; the result is the same.

    The products of its 3x3 convolutions are computed before the upsampling, on a quarter of the pixels. The 1x1
    convolution is multiplied into the sentence's kernel. The convolution with one group per sentence is slow, above all
    in the backward pass; it becomes a matrix product and nine shifted additions.
    """
    x, last = decoded, typed(projector.vis[4], nn.Conv2d)
    for block in (projector.vis[1], projector.vis[3]):
        convolution, *rest = block.children()
        x = convolve_doubled(x, typed(convolution, nn.Conv2d).weight)
        for module in rest:
            x = module(x)
    assert last.bias is not None
    count, half, height, width = x.shape
    projected: Tensor = projector.txt(sentence)
    kernel, bias = projected[:, :-1].reshape(count, half, 9), projected[:, -1]
    mixed = torch.matmul(last.weight.flatten(1).T, kernel)  # with W, b the 1x1 convolution: k (W x + b) = (k W) x + k b
    taps = torch.bmm(x.permute(0, 2, 3, 1).reshape(count, height * width, half), mixed.to(x.dtype)).float()
    taps = taps + torch.matmul(last.bias, kernel).float()[:, None]  # (N, h w, 9)
    # Folding adds overlapping patches, which mirrors the kernel: reverse its taps.
    summed: Tensor = F.fold(taps.flip(2).transpose(1, 2), (height, width), 3, padding=1)
    return summed + bias.float()[:, None, None, None]


def _project(projector: Projector, decoded: Tensor, sentence: Tensor) -> Tensor:
    logits: Tensor = projector(decoded, sentence)
    return logits
