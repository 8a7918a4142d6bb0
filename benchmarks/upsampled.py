"""Upsampled: forms of a 3x3 convolution after bilinear doubling; `training.model.upsampled` has those that won.

All of them compute the same sums, and all but the plain one with fewer operations. Every form is exact, the border
included: beyond it the convolution sees zeros and the upsampling repeats the last pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.fold import conv
from training.model.upsampled import HalfResolution, LowResolution, shift_of_doubled

# A row of the doubled image is made of a row of the image and its neighbour (half pixels, corners not aligned).
NEAR, FAR = 0.75, 0.25


class Plain(nn.Module):
    """As the network is trained: doubled, then convolved. (B, C, H, W) -> (B, D, 2H, 2W), ReLU included."""

    def __init__(self, weight: Tensor, bias: Tensor, side: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, 2H, 2W)."""
        doubled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return F.relu(F.conv2d(doubled, self.weight, self.bias, padding=1))


class Shifted(nn.Module):
    """Nine products at low resolution, doubled, shifted, added."""

    def __init__(self, weight: Tensor, bias: Tensor, side: int) -> None:
        super().__init__()
        self.products = nn.Parameter(weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1], 1, 1))  # (9 D, C, 1, 1)
        self.bias, self.width, self.side = nn.Parameter(bias[:, None, None]), len(weight), side

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, 2H, 2W)."""
        taps = F.interpolate(F.conv2d(x, self.products), scale_factor=2, mode="bilinear", align_corners=False)
        taps = F.pad(taps, (1, 1, 1, 1))
        result, side = self.bias, 2 * self.side
        for tap in range(9):
            row, column = divmod(tap, 3)
            here = taps[:, tap * self.width : (tap + 1) * self.width]
            result = result + here[:, :, row : row + side, column : column + side]
        return F.relu(result)


class Matrices(nn.Module):
    """Nine products at low resolution; doubling, shift and sum over a row's taps are one matrix, so are a column's."""

    across: Tensor
    down: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, side: int) -> None:
        super().__init__()
        # Channels in the order (column of the tap, D, row of the tap), so that no tensor is turned round.
        products = weight.permute(3, 0, 2, 1).reshape(-1, weight.shape[1], 1, 1)
        self.products, self.bias = nn.Parameter(products), nn.Parameter(bias[:, None, None])
        shifts = torch.stack([shift_of_doubled(side, tap) for tap in range(3)])  # (3, 2 S, S)
        self.register_buffer("across", shifts.transpose(1, 2).contiguous())
        self.register_buffer("down", shifts.permute(1, 0, 2).reshape(2 * side, 3 * side))
        self.width, self.side = len(weight), side

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, 2H, 2W)."""
        taps = F.conv2d(x, self.products)  # (B, 9 D, S, S)
        rows = 3 * self.width
        wide = torch.matmul(taps[:, :rows], self.across[0])  # (B, 3 D, S, 2 S)
        for column in (1, 2):
            wide = wide + torch.matmul(taps[:, column * rows : (column + 1) * rows], self.across[column])
        wide = wide.reshape(-1, self.width, 3 * self.side, 2 * self.side)
        return F.relu(torch.matmul(self.down, wide) + self.bias)


class Grouped(nn.Module):
    """Nine products at low resolution; a fixed convolution of each channel's nine gives four pixels for one.

    The fixed kernels differ along the border, so that nine regions are convolved and put together.
    """

    def __init__(self, weight: Tensor, bias: Tensor, side: int) -> None:
        super().__init__()
        products = weight.permute(0, 2, 3, 1).reshape(-1, weight.shape[1], 1, 1)  # (D, 9)
        self.products, self.bias = nn.Parameter(products), nn.Parameter(bias[:, None, None])
        self.width, self.side = len(weight), side
        lines = [_line(*ends) for ends in ((True, False), (False, False), (False, True))]  # first, inner, last
        for row, vertical in enumerate(lines):
            for column, horizontal in enumerate(lines):
                # (phase of the row, of the column; tap of the row, of the column; neighbour row, neighbour column)
                kernel = torch.einsum("pay,qbx->pqabyx", vertical, horizontal).reshape(4, 9, 3, 3)
                self.register_buffer(f"kernel{row}{column}", kernel.repeat(self.width, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, 2H, 2W)."""
        taps = F.pad(F.conv2d(x, self.products), (1, 1, 1, 1), mode="replicate")
        # Of the padded map: what the first line needs, the inner ones, the last.
        parts = (slice(0, 3), slice(1, self.side + 1), slice(self.side - 1, self.side + 2))
        rows = []
        for row, vertical in enumerate(parts):
            line = [
                F.conv2d(taps[:, :, vertical, horizontal], getattr(self, f"kernel{row}{column}"), groups=self.width)
                for column, horizontal in enumerate(parts)
            ]
            rows.append(torch.cat(line, dim=3))
        return F.relu(F.pixel_shuffle(torch.cat(rows, dim=2), 2) + self.bias)


class ChannelsLast(LowResolution):
    """As `Matrices`, from and to (B, pixels, channels), so that nothing is turned round: what is exported in float."""

    def __init__(self, weight: Tensor, bias: Tensor, side: int) -> None:
        super().__init__(conv(weight, bias, padding=1), side)


class Half(HalfResolution):
    """Rows doubled, then the products, then columns doubled: what is exported in int8."""

    def __init__(self, weight: Tensor, bias: Tensor, side: int) -> None:
        super().__init__(conv(weight, bias, padding=1), side)


FORMS: dict[str, type[nn.Module]] = {
    "plain": Plain,
    "shifted": Shifted,
    "matrices": Matrices,
    "grouped": Grouped,
    "channels-last": ChannelsLast,
    "half": Half,
}


def to_layout(form: str, x: Tensor) -> Tensor:
    """The map (B, C, H, W) as `form` takes it, or gives it."""
    return x.flatten(2).transpose(1, 2).contiguous() if form == "channels-last" else x


def _line(first: bool, last: bool) -> Tensor:
    """(2, 3, 3): how phase and tap weigh the neighbours before, at and after a pixel of a line with repeated ends."""
    # What a doubled line is made of, two pixels before to three after the first phase's.
    before, after = torch.tensor([NEAR, FAR, 0.0]), torch.tensor([0.0, FAR, NEAR])
    even, odd = torch.tensor([FAR, NEAR, 0.0]), torch.tensor([0.0, NEAR, FAR])
    nothing = torch.zeros(3)
    doubled = [nothing if first else before, even, odd, nothing if last else after]
    return torch.stack([torch.stack(doubled[phase : phase + 3]) for phase in range(2)])
