"""From a box to a mask: a small convolutional head that knows no classes, on crops of the backbone's feature maps."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cris_edge.image import THRESHOLD
from training.model.nanodet import Pyramid
from training.model.roi import crop, paste

SHIFT = math.log(THRESHOLD / (1 - THRESHOLD))  # the head's masks are best at 0.5, where the SDK's threshold is put
SIDE = 56  # cells of a mask along each side of its crop
OUTSIDE = -8.0  # logit far from the box
_COARSE = SIDE // 2
_MARGIN = 0.2  # of the box's sides, around it: boxes are often too tight
_SLOPE = 0.1


class MaskFeatures(NamedTuple):
    """What the head crops, computed once an image.

    Attributes:
        colour: (B, 3, S/2, S/2), the image.
        fine: (B, 24, S/4, S/4).
        coarse: (B, 64, S/8, S/8).
    """

    colour: Tensor
    fine: Tensor
    coarse: Tensor


def _conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation)


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, _SLOPE)


class BoxMask(nn.Module):
    """The mask of the object that fills a box."""

    places: Tensor

    def __init__(self, fine: int = 24, coarse: int = 64, deep: int = 96) -> None:
        super().__init__()
        self.from_c2 = nn.Conv2d(64, fine, 1)
        self.from_p3, self.from_n4, self.from_n5 = (nn.Conv2d(128, coarse, 1) for _ in range(3))
        self.detail = _conv(fine + 3, fine)
        self.reduce = _conv(fine, 32, stride=2)
        self.enter = _conv(coarse + 32 + 2, coarse)
        self.down = _conv(coarse, deep, stride=2)
        self.deep1, self.deep2, self.deep3 = _conv(deep, deep), _conv(deep, deep, dilation=2), _conv(deep, deep)
        self.gate = nn.Linear(deep, deep)
        self.up = nn.Conv2d(deep, coarse, 1)
        self.middle1, self.middle2 = _conv(coarse, coarse), _conv(coarse, coarse)
        self.rise = nn.Conv2d(coarse, fine, 1)
        self.last1, self.last2 = _conv(fine, fine), nn.Conv2d(fine, 1, 1)
        steps = (torch.arange(_COARSE) + 0.5) / _COARSE - 0.5
        places = torch.stack(torch.meshgrid(steps, steps, indexing="xy"))[None]
        self.register_buffer("places", places, persistent=False)

    def encode(self, image: Tensor, pyramid: Pyramid) -> MaskFeatures:
        """Image (B, 3, S, S) and its feature maps -> what is cropped."""
        coarse = self.from_p3(pyramid.p3) + _resize(self.from_n4(pyramid.n4) + _resize(self.from_n5(pyramid.n5)))
        return MaskFeatures(F.avg_pool2d(image, 2), self.from_c2(pyramid.c2), coarse)

    def forward(self, features: MaskFeatures, boxes: Tensor) -> Tensor:
        """Features and one box each (B, 4), as fractions of the square input -> logits (B, 1, S/4, S/4), shifted."""
        size = features.fine.shape[-1]
        logits = (self.logits(features, boxes) + SHIFT).clamp(OUTSIDE, -OUTSIDE)
        return paste(logits, expand(boxes), size, OUTSIDE)

    def logits(self, features: MaskFeatures, boxes: Tensor) -> Tensor:
        """As `forward` on the crop's grid, which is larger than the box (`expand`), and not shifted: (B, 1, 56, 56)."""
        region = expand(boxes)
        colour, fine = crop(features.colour, region, SIDE), crop(features.fine, region, SIDE)
        return self.decode(colour, fine, crop(features.coarse, region, _COARSE))

    def decode(self, colour: Tensor, fine: Tensor, coarse: Tensor) -> Tensor:
        """Crops (B, 3, 56, 56), (B, 24, 56, 56), (B, 64, 28, 28) -> (B, 1, 56, 56)."""
        detail = _activate(self.detail(torch.cat((colour, fine), 1)))
        places = self.places.expand(len(coarse), -1, -1, -1)
        x = _activate(self.enter(torch.cat((coarse, _activate(self.reduce(detail)), places), 1)))
        y = _activate(self.down(x))
        y = y + _activate(self.deep1(y))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        y = y + _activate(self.deep2(y))
        y = y + _activate(self.deep3(y))
        x = x + _resize(self.up(y))
        x = x + _activate(self.middle1(x))
        x = x + _activate(self.middle2(x))
        z = _activate(detail + _resize(self.rise(x)))
        z = z + _activate(self.last1(z))
        out: Tensor = self.last2(z)
        return out


def expand(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) -> the regions around them that are cropped; they may leave the image."""
    low, high = boxes[..., :2], boxes[..., 2:]
    margin = (high - low).clamp(min=0.01) * _MARGIN
    return torch.cat((low - margin, high + margin), -1)


def _resize(x: Tensor) -> Tensor:
    """To twice the size, bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
