"""A 3x3 convolution after bilinear doubling, with its products computed first: the same sums, fewer operations.

The nine taps of a convolution commute with an upsampling that treats all channels alike. The products can be computed
at low resolution, on a quarter of the pixels, and the nine results upsampled, shifted and added. Upsampling and shift
are separable and constant, so rows are one matrix and columns another. Borders are included: beyond them the
convolution has zeros, and the upsampling repeats the last pixel.

`LowResolution` does this in both directions, for float arithmetic. `HalfResolution` does it for the columns alone, for
int8: it leaves an integer convolution, one more tensor to quantize, and a product with a matrix of multiples of 1/4,
which integers represent exactly. docs/decisions.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.fold import conv


class LowResolution(nn.Module):
    """ReLU of `convolution` (3x3, stride 1, padding 1) of a doubled map, from and to tokens, channels last.

    With channels last no tensor is transposed between the products, the rows, the columns and the next layer: every
    reshape below is a view.

    Args:
        convolution: With bias.
        side: Height and width S of the map before it is doubled.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, convolution: nn.Conv2d, side: int) -> None:
        super().__init__()
        weight, bias = _weight_and_bias(convolution)
        self.width, self.side = convolution.out_channels, side
        self.products = nn.ParameterList(nn.Parameter(tap.clone(), requires_grad=False) for tap in _taps(weight))
        self.bias = nn.Parameter(bias.clone(), requires_grad=False)
        self.register_buffer("rows", _rows(side))
        self.register_buffer("columns", _columns(side))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, S S, C) -> (B, 2S 2S, D)."""
        doubled = _double(_multiply(x, self.products), self.rows, self.columns, self.width)  # (B, 2S, 2S, D)
        return F.relu(doubled + self.bias).reshape(-1, 4 * self.side * self.side, self.width)


class HalfResolution(nn.Module):
    """ReLU of `convolution` (3x3, stride 1, padding 1) of a doubled map; only its rows are doubled before the products.

    Attributes:
        taps: The convolution's three columns side by side, as one 3x1 convolution to 3 D channels, tap-major. The bias
            is added in the middle tap, which every border keeps.

    Args:
        convolution: With bias.
        side: Height and width S of the map before it is doubled.
    """

    columns: Tensor

    def __init__(self, convolution: nn.Conv2d, side: int) -> None:
        super().__init__()
        weight, bias = _weight_and_bias(convolution)
        self.width, self.side = convolution.out_channels, side
        taps = weight.permute(3, 0, 1, 2).flatten(0, 1).unsqueeze(3)  # (3 D, C, 3, 1)
        outer = torch.zeros_like(bias)
        self.taps = conv(taps, torch.cat((outer, bias, outer)), padding=(1, 0))
        self.register_buffer("columns", _columns(side))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, D, 2S, 2S)."""
        side = self.side
        tall = F.interpolate(x, size=(2 * side, side), mode="bilinear", align_corners=False)
        # Channels last, as integer convolutions write their output: the reshape is a view.
        taps = self.taps(tall).permute(0, 2, 3, 1).reshape(-1, 2 * side, 3 * side, self.width)
        return F.relu(torch.matmul(self.columns, taps)).permute(0, 3, 1, 2)


def convolve_doubled(x: Tensor, weight: Tensor) -> Tensor:
    """A 3x3 convolution (padding 1, no bias) of a doubled map, differentiable: `LowResolution` for training.

    Args:
        x: (B, C, H, W), the map before it is doubled; fastest in channels-last memory.
        weight: (D, C, 3, 3).

    Returns:
        (B, D, 2H, 2W), in channels-last memory.
    """
    height, width = x.shape[2:]
    products = _multiply(x.permute(0, 2, 3, 1).flatten(1, 2), _taps(weight))
    # Computed at every call, at negligible cost: a cache could keep tensors of a tracer or of `inference_mode`.
    rows, columns = _rows(height).to(products), _columns(width).to(products)
    return _double(products, rows, columns, len(weight)).permute(0, 3, 1, 2)


def _multiply(tokens: Tensor, taps: Iterable[Tensor]) -> Tensor:
    """Tokens (B, H W, C) and three matrices of `_taps` -> (B, 3 H W, 3 D), as `_double` takes them."""
    # Three products instead of one: concatenated along the rows, they are the operand of the row matrix.
    return torch.cat([torch.matmul(tokens, tap) for tap in taps], dim=1)


def _double(products: Tensor, rows: Tensor, columns: Tensor, depth: int) -> Tensor:
    """(B, 3 H W, 3 D) -> (B, 2H, 2W, D): the products doubled, shifted and added, first along H, then along W."""
    height, width = rows.shape[1] // 3, columns.shape[1] // 3
    doubled = torch.matmul(rows, products.reshape(-1, 3 * height, width * 3 * depth))
    doubled = doubled.reshape(-1, 2 * height, 3 * width, depth)  # (B, 2H, (W, tap), D)
    return torch.matmul(columns, doubled)


def _taps(weight: Tensor) -> Tensor:
    """(D, C, 3, 3) -> a matrix (C, 3 D) for each row of the kernel; its columns are (column of the kernel, D)."""
    return weight.permute(2, 1, 3, 0).flatten(2)


def _weight_and_bias(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    assert convolution.kernel_size == (3, 3) and convolution.padding == (1, 1) and convolution.bias is not None
    return convolution.weight.detach(), convolution.bias.detach()


def _shifts(side: int) -> Tensor:
    """(3, 2 side, side): `shift_of_doubled` of each tap."""
    return torch.stack([shift_of_doubled(side, tap) for tap in range(3)])


def _rows(side: int) -> Tensor:
    """(2 side, 3 side), tap-major: three lines of products doubled, shifted and added."""
    return _shifts(side).transpose(0, 1).flatten(1).contiguous()


def _columns(side: int) -> Tensor:
    """(2 side, 3 side), position-major: a line of three taps per position, doubled, shifted and added."""
    return _shifts(side).permute(1, 2, 0).flatten(1).contiguous()


def shift_of_doubled(side: int, tap: int) -> Tensor:
    """(2 side, side): a line doubled, then shifted for tap 0, 1 or 2, with zeros beyond the ends."""
    line = torch.eye(side)[None, None]  # a column of the result is the response to one pixel
    doubled = F.interpolate(line, size=(2 * side, side), mode="bilinear", align_corners=False)[0, 0]
    return F.pad(doubled, (0, 0, 1, 1))[tap : tap + 2 * side]
