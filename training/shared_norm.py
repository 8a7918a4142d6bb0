"""Batch norm over the batches of all processes, also on CPUs.

PyTorch's ``SyncBatchNorm`` takes only GPU tensors (2.13: "expected input tensor to be on GPU"). Here, mean and variance
are averaged by differentiable all-reduces, which gloo supports. All processes have batches of the same size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Mean(torch.autograd.Function):
    """The mean over all processes; its gradient is the mean of the gradients of all processes.

    PyTorch's own differentiable collectives are either deprecated or private.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _mean(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _mean(gradients[0])


def _mean(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / dist.get_world_size()


class _Shared(nn.modules.batchnorm._BatchNorm):
    """Replaces the class of an existing batch norm, which keeps its parameters, buffers and names."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least two dimensions, got {input.ndim}")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape, in training mode normalized over the batches of all processes."""
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        values = input.float()
        shape = [1, -1] + [1] * (input.ndim - 2)
        mean: Tensor = _Mean.apply(values.mean(axes))  # type: ignore[no-untyped-call]
        values = values - mean.view(shape)
        # A second all-reduce: the mean of the squares minus the squared mean would lose half of the digits.
        variance: Tensor = _Mean.apply(values.square().mean(axes))  # type: ignore[no-untyped-call]
        count = values.numel() // values.shape[1] * dist.get_world_size()
        with torch.no_grad():
            momentum = self.momentum or 0.0
            assert self.running_mean is not None and self.running_var is not None
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(variance.detach() * count / max(1, count - 1), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalized: Tensor = values * scale.view(shape) + self.bias.view(shape)
        return normalized.to(input.dtype)


def share_batch_norm(model: nn.Module) -> None:
    """Let every batch norm of ``model`` compute its statistics over all processes, in place."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = _Shared
