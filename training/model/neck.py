"""The cross-modal neck: image features of three scales, conditioned on the sentence (paper, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.architecture import Architecture


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; keeps the resolution."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def upsample2(x: Tensor) -> Tensor:
    """Double the resolution bilinearly (align_corners=False)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def coordinates(height: int, width: int) -> Tensor:
    """The two coordinate channels (1, 2, height, width), x then y, each from -1 to 1."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack((x, y)).unsqueeze(0)


def repeat_images(x: Tensor, times: int) -> Tensor:
    """(B, C, h, w) -> (B * times, C, h, w), each image `times` in a row.

    The copies are channels-last in memory, so that later layers need not convert them.
    """
    if times == 1:
        return x
    return x.permute(0, 2, 3, 1).repeat_interleave(times, dim=0).permute(0, 3, 1, 2)


class CoordConv(nn.Module):
    """3x3 convolution with coordinate channels (Liu et al., 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv_bn_relu(channels + 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same."""
        coords = coordinates(*x.shape[-2:]).to(x).expand(len(x), -1, -1, -1)
        out: Tensor = self.conv1(torch.cat((x, coords), dim=1))
        return out


class Neck(nn.Module):
    """Fuses c3, c4 and c5 with the sentence vector (paper, equations 1 to 4)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, embed = architecture.vision_width, architecture.embed_dim
        shallow, channels, deep = architecture.neck_widths
        self.txt_proj = nn.Sequential(nn.Linear(embed, deep, bias=False), nn.BatchNorm1d(deep), nn.ReLU())
        self.f1_v_proj = conv_bn_relu(embed, deep, 1)
        self.norm_layer = nn.Sequential(nn.BatchNorm2d(deep), nn.ReLU())
        self.f2_v_proj = conv_bn_relu(width * 16, channels, 3)
        self.f2_cat = conv_bn_relu(channels + deep, channels, 1)
        self.f3_v_proj = conv_bn_relu(width * 8, shallow, 3)
        self.f3_cat = conv_bn_relu(shallow + channels, channels, 1)
        self.f4_proj5 = conv_bn_relu(deep, channels, 3)
        self.f4_proj4 = conv_bn_relu(channels, channels, 3)
        self.f4_proj3 = conv_bn_relu(channels, channels, 3)
        self.aggr = conv_bn_relu(channels * 3, channels, 1)
        self.coordconv = nn.Sequential(CoordConv(channels), conv_bn_relu(channels, channels, 3))

    def forward(self, features: tuple[Tensor, Tensor, Tensor], sentence: Tensor) -> Tensor:
        """c3, c4, c5 of B images and N sentences (N, embed), N / B per image -> fused (N, C, S/16, S/16)."""
        f3, f4, f5 = self.pyramid(features, sentence)
        fused: Tensor = self.coordconv(self.aggregate(f3, f4, f5))
        return fused

    def pyramid(self, features: tuple[Tensor, Tensor, Tensor], sentence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return f3, f4 at S/16 and f5 at S/32; the sentence gates f5, from which f4 and then f3 are computed."""
        c3, c4, c5 = features
        # Independent of the sentence: computed once per image, for any number of sentences.
        visual = (F.avg_pool2d(self.f3_v_proj(c3), 2), self.f2_v_proj(c4), self.f1_v_proj(c5))
        v3, v4, v5 = (repeat_images(v, len(sentence) // len(v)) for v in visual)
        gate = self.txt_proj(sentence)[:, :, None, None]  # (N, neck_width5, 1, 1)
        f5 = self.norm_layer(v5 * gate)
        f4 = self.f2_cat(torch.cat((v4, upsample2(f5)), dim=1))
        f3 = self.f3_cat(torch.cat((v3, f4), dim=1))
        return f3, f4, f5

    def aggregate(self, f3: Tensor, f4: Tensor, f5: Tensor) -> Tensor:
        """Concatenate the three maps at S/16 and project them to C channels."""
        maps = (self.f4_proj3(f3), self.f4_proj4(f4), upsample2(self.f4_proj5(f5)))
        aggregated: Tensor = self.aggr(torch.cat(maps, dim=1))
        return aggregated
