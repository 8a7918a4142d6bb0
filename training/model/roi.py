"""Regions of feature maps as matrix products: the matrices come from the boxes, and every shape is static.

Boxes are (..., 4): x0, y0, x1, y1 as fractions of the network's square input.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 1e-3  # extent of a region in cells, below which a mean over it is not defined


def area_weights(low: Tensor, high: Tensor, parts: int, size: int) -> Tensor:
    """Weights of the mean over each of `parts` equal parts of the interval from `low` to `high`.

    Args:
        low: (...) in [0, 1].
        high: (...) in [0, 1].
        parts: Number of parts.
        size: Number of cells from 0 to 1.

    Returns:
        (..., parts, size): how much of a part lies in each cell.
    """
    cells = torch.arange(size, dtype=low.dtype, device=low.device)
    steps = torch.arange(parts, dtype=low.dtype, device=low.device)
    length = ((high - low) * (size / parts)).clamp(min=_SMALLEST)[..., None]
    start = low[..., None] * size + steps * length
    inside = torch.minimum(start[..., None] + length[..., None], cells + 1) - torch.maximum(start[..., None], cells)
    return inside.clamp(min=0) / length[..., None]


def sample_weights(low: Tensor, high: Tensor, parts: int, size: int) -> Tensor:
    """Weights of linear interpolation at the centers of `parts` equal parts; the border repeats.

    Where parts are longer than a cell, the interpolation widens with them, so that nothing between is skipped.

    Args:
        low: (...), may lie outside [0, 1].
        high: (...), may lie outside [0, 1].
        parts: Number of parts.
        size: Number of cells from 0 to 1.

    Returns:
        (..., parts, size); each row sums to one.
    """
    cells = torch.arange(size, dtype=low.dtype, device=low.device)
    steps = (torch.arange(parts, dtype=low.dtype, device=low.device) + 0.5) / parts
    position = low[..., None] + (high - low)[..., None] * steps
    position = (position * size - 0.5).clamp(0, size - 1)
    width = ((high - low) * (size / parts)).clamp(min=1)[..., None, None]
    weights = (1 - (position[..., None] - cells).abs() / width).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


def pool(features: Tensor, boxes: Tensor, rows: int, columns: int) -> Tensor:
    """Mean of the features in each cell of a grid laid over each box.

    Args:
        features: (B, C, H, W).
        boxes: (B, N, 4) in [0, 1].
        rows: Of the grid.
        columns: Of the grid.

    Returns:
        (B, N, rows, columns, C).
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    down = area_weights(y0, y1, rows, features.shape[2])  # (B, N, rows, H)
    across = area_weights(x0, x1, columns, features.shape[3])  # (B, N, columns, W)
    by_row = features.permute(0, 2, 3, 1).flatten(2)  # (B, H, W C)
    strips = torch.matmul(down.flatten(1, 2), by_row)  # (B, N rows, W C)
    strips = strips.unflatten(2, (features.shape[3], features.shape[1])).unflatten(1, (boxes.shape[1], rows))
    return torch.matmul(across[:, :, None], strips)


def crop(features: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Features (B, C, H, W) and one box each (B, 4) -> (B, C, side, side), resampled; boxes may leave the image."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    down = sample_weights(y0, y1, side, features.shape[2])  # (B, side, H)
    across = sample_weights(x0, x1, side, features.shape[3])  # (B, side, W)
    return torch.matmul(torch.matmul(down[:, None], features), across[:, None].transpose(2, 3))


def paste(values: Tensor, boxes: Tensor, size: int, outside: float) -> Tensor:
    """The way back of `crop`: values (B, 1, s, s) inside boxes (B, 4) -> (B, 1, size, size), `outside` elsewhere.

    Interpolation is linear between the centers of the crop's cells, and towards `outside` beyond the border. The map's
    corners are the centers of the input's corner pixels, as `cris_edge.image.postprocess` takes logits to lie.
    """
    side = values.shape[-1]
    x0, y0, x1, y1 = boxes.unbind(-1)
    down, across = (_paste_weights(low, high, side, size) for low, high in ((y0, y1), (x0, x1)))
    inside = torch.matmul(torch.matmul(down[:, None], values - outside), across[:, None].transpose(2, 3))
    return inside + outside


def _paste_weights(low: Tensor, high: Tensor, side: int, size: int) -> Tensor:
    """(B, size, side): linear interpolation of the crop's cells at the map's; rows outside the crop are zero."""
    pixels = 4 * size
    cells = torch.arange(side, dtype=low.dtype, device=low.device)
    centers = torch.arange(size, dtype=low.dtype, device=low.device) * ((pixels - 1) / (size - 1) / pixels)
    extent = (high - low)[:, None].clamp(min=_SMALLEST)
    position = (centers + 0.5 / pixels - low[:, None]) / extent * side - 0.5  # (B, size)
    width = (side / (size * extent)).clamp(min=1)[..., None]  # where several cells lie in one pixel of the map
    weights = (1 - (position[..., None] - cells).abs() / width).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1)
