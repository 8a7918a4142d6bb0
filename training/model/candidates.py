"""Candidates: the detector's best boxes, each with what a prompt may say about it. Every shape is static."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.colournames import COLOURS, ColourNames
from training.model.nanodet import BINS, CLASSES, STRIDES, NanoDet, Pyramid
from training.model.roi import pool

COUNT = 32  # candidates an image
POOLED = (128 + 64) * 8 + 128 * 4 + 128  # features pooled from the maps for a candidate
FEATURES = 256  # what is kept of them
REGIONS = ((0.2, 0.1, 0.8, 0.9), (0.22, 0.18, 0.78, 0.5), (0.25, 0.55, 0.75, 0.9), (0.25, 0.0, 0.75, 0.2))
"""Parts of a box whose colours are measured, as fractions of it: nearly all, upper part, lower part, top."""
COLOUR_FEATURES = len(REGIONS) * (len(COLOURS) + 3)  # shares of the names, and mean RGB, of each region

_PEAKS = 128  # locations that are decoded
_SAME_CLASS = 0.6  # IoU above which a lower-scored box of the same class is a duplicate
_ANY_CLASS = 0.85  # and of whatever class
_ROUNDS = 3  # of suppression; each lets a box back in whose suppressor was itself suppressed
_LEAST_SCORE = 0.05
_PADDING = 0.02  # normalized values closer to the mean colour than this are letterbox padding


class Candidates(NamedTuple):
    """The candidates of B images, N each, best first.

    Attributes:
        probabilities: (B, N, 80), the detector's, of each class.
        boxes: (B, N, 4), x0, y0, x1, y1 as fractions of the image's own width and height.
        aspect: (B,), the image's width over its height.
        features: (B, N, `FEATURES`), principal components of what is pooled from the feature maps.
        colours: (B, N, `COLOUR_FEATURES`), shares of the colour names and mean RGB of each of `REGIONS`, in order.
        valid: (B, N) bool, whether there is a candidate in this slot; the first is always valid.
    """

    probabilities: Tensor
    boxes: Tensor
    aspect: Tensor
    features: Tensor
    colours: Tensor
    valid: Tensor


class Found(NamedTuple):
    """Boxes before anything was measured in them.

    Attributes:
        probabilities: (B, N, 80).
        squares: (B, N, 4), x0, y0, x1, y1 as fractions of the network's square input.
        scores: (B, N), the largest probability; 0 for duplicates.
    """

    probabilities: Tensor
    squares: Tensor
    scores: Tensor


class CandidateFinder(nn.Module):
    """From images to candidates."""

    def __init__(self, count: int = COUNT) -> None:
        super().__init__()
        self.count = count
        self.detector = NanoDet()
        self.colour_names = ColourNames()
        self.reduce = nn.Linear(POOLED, FEATURES)

    def forward(self, image: Tensor) -> Candidates:
        """Candidates of images (B, 3, S, S), letterboxed and normalized by `cris_edge.image.preprocess`."""
        return self.find(image)[0]

    def find(self, image: Tensor) -> tuple[Candidates, Tensor, Pyramid]:
        """As `forward`, with the boxes (B, N, 4) as fractions of the square input, and the feature maps."""
        pyramid = self.detector(image)
        content = content_box(image)
        found = select(self.detector.detect(pyramid), content, self.count)
        # Duplicates are tied at a score of 0, and every runtime breaks ties in its own way: empty slots are all alike.
        filled = is_candidate(found.scores)[..., None].to(image.dtype)
        found = Found(found.probabilities * filled, found.squares * filled, found.scores)
        return self.describe(image, pyramid, content, found), found.squares, pyramid

    def at_boxes(self, image: Tensor, boxes: Tensor) -> Candidates:
        """Candidates for given boxes (B, N, 4), fractions of the image's own width and height.

        Their class probabilities are those of the detection that overlaps most and scores best. This is for training;
        it is not exported.
        """
        pyramid, content = self.detector(image), content_box(image)
        squares = to_square(boxes, content)
        levels = self.detector.detect(pyramid)
        logits = torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)  # (B, M, 124)
        centers, strides = _grid(levels)
        probabilities = logits[..., : len(CLASSES)].sigmoid()
        decoded = decode(logits[..., len(CLASSES) :], centers, strides, image.shape[-1])
        overlap = pairwise_iou(squares, decoded)  # (B, N, M)
        quality = torch.where(overlap > 0.3, probabilities.amax(2)[:, None], overlap * 1e-3) * overlap
        best = quality.argmax(2)[..., None].expand(-1, -1, len(CLASSES))
        found = Found(probabilities.gather(1, best), squares, probabilities.gather(1, best).amax(2) + _LEAST_SCORE)
        return self.describe(image, pyramid, content, found)

    def describe(self, image: Tensor, pyramid: Pyramid, content: Tensor, found: Found) -> Candidates:
        """Measure what is in the boxes."""
        squares = found.squares
        features = self.reduce(pool_features(pyramid, squares))
        half = F.avg_pool2d(image, 2)
        colours = F.avg_pool2d(torch.cat((self.colour_names(half), half), 1), 2)
        x0, y0, x1, y1 = squares.unbind(-1)
        width, height = x1 - x0, y1 - y0
        parts = [
            torch.stack((x0 + width * a, y0 + height * b, x0 + width * c, y0 + height * d), -1)
            for a, b, c, d in REGIONS
        ]
        shares = torch.cat([pool(colours, part, 1, 1).flatten(2) for part in parts], 2)
        valid = is_candidate(found.scores)
        left, top, right, bottom = content.unbind(-1)
        aspect = (right - left) / (bottom - top)
        return Candidates(found.probabilities, to_content(squares, content), aspect, features, shares, valid)


def is_candidate(scores: Tensor) -> Tensor:
    """Which slots (B, N) hold a candidate, by their scores, best first; the first always does."""
    return (scores > _LEAST_SCORE) | (torch.arange(scores.shape[1], device=scores.device) == 0)


def pool_features(pyramid: Pyramid, squares: Tensor) -> Tensor:
    """Feature maps and boxes (B, N, 4), fractions of the square input -> (B, N, `POOLED`)."""
    fine = torch.cat((pyramid.p3, F.avg_pool2d(pyramid.c2, 2)), 1)
    parts = (pool(fine, squares, 4, 2), pool(pyramid.n4, squares, 2, 2), pool(pyramid.n5, squares, 1, 1))
    return torch.cat([part.flatten(2) for part in parts], 2)


def content_box(image: Tensor) -> Tensor:
    """Where the image lies in its letterbox (B, 4), as fractions of the square: what is around it has the mean colour.

    The letterbox puts the image in the middle, so the border is as wide as the narrower of the two that are seen.
    """
    inside = (image.abs().amax(1) > _PADDING).to(image.dtype)  # (B, S, S)
    sides = []
    for axis in (1, 2):
        line = inside.amax(axis)  # (B, S): columns, then rows
        size = line.shape[1]
        order = torch.arange(size, dtype=image.dtype, device=image.device)
        margin = torch.minimum(order, size - 1 - order) + (1 - line) * size
        margin = margin.amin(1)
        margin = torch.where(margin < size, margin, torch.zeros_like(margin)) / size  # an image of the mean colour
        sides.append(margin)
    left, top = sides
    return torch.stack((left, top, 1 - left, 1 - top), 1)


def to_content(squares: Tensor, content: Tensor) -> Tensor:
    """Fractions of the square input -> fractions of the image; boxes (B, N, 4), content (B, 4)."""
    low, high = content[:, None, :2], content[:, None, 2:]
    return ((squares - torch.cat((low, low), 2)) / torch.cat((high - low, high - low), 2)).clamp(0, 1)


def to_square(boxes: Tensor, content: Tensor) -> Tensor:
    """Fractions of the image -> fractions of the square input; boxes (B, N, 4), content (B, 4)."""
    low, high = content[:, None, :2], content[:, None, 2:]
    return boxes * torch.cat((high - low, high - low), 2) + torch.cat((low, low), 2)


def _grid(levels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Centers (M, 2) in pixels and strides (M,) of all cells."""
    centers, strides = [], []
    for level, stride in zip(levels, STRIDES, strict=True):
        height, width = level.shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centers.append((torch.stack((x, y), -1).flatten(0, 1) + 0.5) * stride)
        strides.append(torch.full((height * width,), float(stride)))
    return torch.cat(centers).to(levels[0]), torch.cat(strides).to(levels[0])


def decode(bins: Tensor, centers: Tensor, strides: Tensor, size: int) -> Tensor:
    """Box distributions (B, M, 44) of cells with centers (..., M, 2) and strides (..., M) -> (B, M, 4) in [0, 1]."""
    steps = torch.arange(BINS, dtype=bins.dtype, device=bins.device)
    distances = (bins.unflatten(-1, (4, BINS)).softmax(-1) * steps).sum(-1) * strides[..., None]
    corners = torch.cat((centers - distances[..., :2], centers + distances[..., 2:]), -1)
    return (corners / size).clamp(0, 1)


def select(levels: list[Tensor], content: Tensor, count: int) -> Found:
    """The `count` best boxes of the detector's outputs.

    Args:
        levels: Class logits and box distributions by level, (B, 124, s, s), finest first.
        content: (B, 4), boxes are cut off outside it.
        count: Number of boxes.
    """
    peaks = []
    for level in levels:
        logits = level[:, : len(CLASSES)]
        is_peak = logits >= F.max_pool2d(logits, 3, 1, 1)
        peaks.append(torch.where(is_peak, logits.sigmoid(), torch.zeros_like(logits)).amax(1).flatten(1))
    ranked = torch.cat(peaks, 1)
    best, place = ranked.topk(min(_PEAKS, ranked.shape[1]), dim=1)  # (B, K)
    logits = torch.cat([level.flatten(2) for level in levels], 2)  # (B, 124, M)
    logits = logits.gather(2, place[:, None].expand(-1, logits.shape[1], -1)).transpose(1, 2)  # (B, K, 124)
    centers, strides = _grid(levels)
    size = levels[0].shape[-1] * STRIDES[0]
    squares = decode(logits[..., len(CLASSES) :], centers[place], strides[place], size)
    low, high = content[:, None, :2], content[:, None, 2:]
    squares = torch.maximum(torch.minimum(squares, torch.cat((high, high), 2)), torch.cat((low, low), 2))
    probabilities = logits[..., : len(CLASSES)].sigmoid()
    scores = best * unique(squares, probabilities.argmax(2)).to(best.dtype)
    scores, order = scores.topk(count, dim=1)
    squares = squares.gather(1, order[..., None].expand(-1, -1, 4))
    probabilities = probabilities.gather(1, order[..., None].expand(-1, -1, len(CLASSES)))
    return Found(probabilities, squares, scores)


def unique(boxes: Tensor, classes: Tensor) -> Tensor:
    """Which boxes (B, K, 4) with classes (B, K), best first, repeat no better one; (B, K) bool.

    Suppression in a fixed number of rounds: a box goes if a better box that stays overlaps it too much.
    """
    overlap = pairwise_iou(boxes, boxes)
    same = classes[:, :, None] == classes[:, None]
    order = torch.arange(boxes.shape[1], device=boxes.device)
    better = order[:, None] > order  # (K, K): whether column j is better than row i
    duplicate = ((same & (overlap > _SAME_CLASS)) | (overlap > _ANY_CLASS)) & better
    matrix = duplicate.to(boxes.dtype)
    stays = torch.ones_like(boxes[..., :1])  # (B, K, 1)
    for _ in range(_ROUNDS):
        stays = (torch.matmul(matrix, stays) < 0.5).to(boxes.dtype)
    return stays[..., 0] > 0.5


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes (B, N, 4) with boxes (B, M, 4), (B, N, M)."""
    ax0, ay0, ax1, ay1 = first[:, :, None].unbind(-1)
    bx0, by0, bx1, by1 = second[:, None].unbind(-1)
    width = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp(min=0)
    height = (torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp(min=0)
    shared = width * height
    either = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared
    return shared / either.clamp(min=1e-9)
