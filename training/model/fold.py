"""Exact folding of batch norm, in eval mode, into the layer before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.model.typed import typed


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the norm, with its running statistics, as ``x * scale + shift``, each (C,)."""
    norm = typed(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def conv(weight: Tensor, bias: Tensor | None, padding: int | tuple[int, int] = 0, stride: int = 1) -> nn.Conv2d:
    """Return a convolution with these weights."""
    out_channels, in_channels, *kernel = weight.shape
    module = nn.Conv2d(in_channels, out_channels, (kernel[0], kernel[1]), stride, padding, bias=bias is not None)
    module.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return module


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer with these weights."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    module.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return module


def conv_bn(convolution: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """Return convolution and batch norm as one convolution with bias."""
    scale, shift = scale_and_shift(norm)
    return conv(
        convolution.weight * scale[:, None, None, None],
        shift,
        padding=int(convolution.padding[0]),
        stride=int(convolution.stride[0]),
    )


def fold_block(block: nn.Module) -> nn.Conv2d:
    """The first two modules of a block, a convolution and its batch norm, as one convolution with bias."""
    convolution, norm = list(block.children())[:2]
    return conv_bn(typed(convolution, nn.Conv2d), norm)
