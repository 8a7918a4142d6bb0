"""COCO masks: run-length encoding (RLE) and polygons.

Both match the COCO API (Lin et al., "Microsoft COCO: Common Objects in Context", https://github.com/cocodataset/cocoapi)
pixel for pixel, so that masks and scores equal those of `pycocotools`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import DataError

_MAX_PIXELS = 1 << 30
_GRID = 5  # COCO rounds polygons to a grid this many times finer than the pixels
_SLACK = 0.02  # fraction of a side by which a hand-drawn polygon may leave the image
_CENTRE = _GRID // 2  # the centre of a pixel on that grid


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask as COCO's compressed RLE.

    Args:
        mask: (H, W) bool.

    Returns:
        ``{"size": [H, W], "counts": str}``, ready for JSON and for `pycocotools`.
    """
    height, width = mask.shape
    pixels = mask.ravel(order="F")  # COCO counts down the columns
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts_with = [0] if pixels.size and pixels[0] else []  # the first run counts zeros, possibly none
    counts = np.concatenate([starts_with, np.diff(changes, prepend=0, append=pixels.size)]).astype(np.int64)
    return {"size": [int(height), int(width)], "counts": _pack(counts)}


def decode_rle(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Decode a COCO RLE, compressed (`counts` is a string) or not (`counts` is a list of integers).

    Returns:
        (H, W) bool.

    Raises:
        DataError: Keys or types are wrong, or the runs do not add up to H x W pixels.
    """
    if not isinstance(rle, Mapping):
        raise DataError(f'The RLE mask is {type(rle).__name__}; expected an object with "size" and "counts".')
    size: Any = rle.get("size")
    counts: Any = rle.get("counts")
    two = isinstance(size, Sequence) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if not two or size[0] * size[1] > _MAX_PIXELS:
        raise DataError(f'The "size" of the RLE mask is {size!r}; expected [height, width] in pixels.')
    height, width = size
    if isinstance(counts, (str, bytes)):
        runs = _unpack(counts)
    elif isinstance(counts, Sequence) and all(type(count) is int and 0 <= count <= height * width for count in counts):
        runs = np.array(counts, np.int64)
    else:
        raise DataError('The "counts" of the RLE mask must be a string or a list of non-negative integers.')
    if runs.size and (runs.min() < 0 or runs.max() > height * width):
        raise DataError('The "counts" of the RLE mask are damaged: a run is negative or longer than the mask.')
    total = int(runs.sum())
    if total != height * width:
        raise DataError(
            f"The runs of the RLE mask add up to {total:,} pixels, "
            f"but its size is {height} x {width} = {height * width:,}."
        )
    values = np.arange(len(runs)) % 2 == 1  # runs of zeros and ones alternate, zeros first
    return np.repeat(values, runs).reshape(width, height).T.copy()


def fill_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> NDArray[np.bool_]:
    """Fill the union of polygons.

    Args:
        polygons: Flat lists x1, y1, x2, y2, … of at least three points, in pixels from the upper left corner.
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        (H, W) bool; each polygon is filled by the even-odd rule.

    Raises:
        DataError: There are no polygons, one has fewer than three points or a value that is not a number, or a point
            lies clearly outside the image, as in polygons drawn on an image of another size.
    """
    if not isinstance(polygons, Sequence) or isinstance(polygons, (str, bytes)) or not polygons:
        raise DataError("The polygons of the mask are missing; expected a list of lists x1, y1, x2, y2, ….")
    mask = np.zeros((height, width), np.bool_)
    sides = np.array([width, height])
    slack = 1 + _SLACK * sides
    for polygon in polygons:
        try:
            points = np.array(polygon, np.float64)
        except (TypeError, ValueError) as error:
            raise DataError("A polygon of the mask contains a value that is not a number.") from error
        if points.ndim != 1 or len(points) < 6 or len(points) % 2:
            raise DataError(
                f"A polygon of the mask has shape {points.shape}; expected at least three points, x1, y1, x2, y2, …."
            )
        points = points.reshape(-1, 2)
        if not ((points >= -slack) & (points <= sides + slack)).all():  # false for NaN too
            raise DataError(
                f"A polygon of the mask spans {points.min():g} to {points.max():g}, outside its image of "
                f"{width} x {height} pixels: does it belong to the image at another size?"
            )
        mask |= _fill(points, height, width)
    return mask


def _fill(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Fill one polygon, from the crossings of its outline with the centre of each pixel column."""
    start = (_GRID * points + 0.5).astype(np.int64)  # (N, 2) on the finer grid; the cast truncates, as in C
    step = np.roll(start, -1, axis=0) - start
    length = np.abs(step).max(axis=1)
    # Every edge becomes a chain of grid points, one per unit along its longer axis. Chains start at the end with the
    # smaller coordinate on that axis, so that rounding does not depend on the edge's direction.
    long_axis = np.where(np.abs(step[:, 0]) >= np.abs(step[:, 1]), 0, 1)
    edge = np.arange(len(start))
    backwards = step[edge, long_axis] < 0
    origin = np.where(backwards[:, None], start + step, start)
    slope = np.where(backwards[:, None], -step, step) / np.maximum(length, 1)[:, None]
    owner = np.repeat(edge, length + 1)
    index = np.arange(len(owner)) - np.repeat(np.cumsum(length + 1) - (length + 1), length + 1)
    index = np.where(backwards[owner], length[owner] - index, index)
    chain = (origin[owner] + slope[owner] * index[:, None] + 0.5).astype(np.int64)
    before, after = chain[:-1], chain[1:]
    left = np.minimum(before[:, 0], after[:, 0])
    crossing = (before[:, 0] != after[:, 0]) & (left % _GRID == _CENTRE)
    column = left[crossing] // _GRID
    row = np.ceil((np.minimum(before[crossing, 1], after[crossing, 1]) - _CENTRE) / _GRID).astype(np.int64)
    inside = (column >= 0) & (column < width)
    # Each crossing swaps inside and outside from its row downwards.
    positions = np.clip(row[inside], 0, height) * width + column[inside]
    flips = np.bincount(positions, minlength=(height + 1) * width)[: height * width] & 1
    return np.bitwise_xor.accumulate(flips.astype(np.uint8).reshape(height, width), axis=0).view(np.bool_)


def _pack(counts: NDArray[np.int64]) -> str:
    """Pack run lengths as COCO does: deltas to the last but one from the fourth on, five bits per character.

    The sixth bit of a character means that more follow, the fifth bit of the last one is the sign; 48 is added to make
    it printable.
    """
    values = counts.copy()
    values[3:] -= counts[1:-2]
    columns = []
    going = np.ones(len(values), np.bool_)
    while going.any():
        bits = values & 31
        values >>= 5
        more = going & np.where(bits & 16, values != -1, values != 0)
        columns.append(np.where(going, bits + 32 * more + 48, 0))
        going = more
    characters = np.stack(columns, axis=1).astype(np.uint8)
    return characters[characters > 0].tobytes().decode("ascii")


def _unpack(text: str | bytes) -> NDArray[np.int64]:
    # Characters beyond ASCII become "&#…;", and "&" is refused below.
    data = text.encode("ascii", "xmlcharrefreplace") if isinstance(text, str) else text
    characters = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if not len(characters):
        return characters
    if characters.min() < 0 or characters.max() > 63:
        raise DataError('The "counts" of the RLE mask contain characters that COCO does not use.')
    last = characters < 32
    if not last[-1]:
        raise DataError('The "counts" of the RLE mask are cut off in the middle of a number.')
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 6:  # 35 bits: more than any mask has pixels
        raise DataError('The "counts" of the RLE mask contain a number that is too large.')
    index = np.arange(len(characters)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((characters & 31) << (5 * index), starts)
    negative = (characters[ends] & 16) != 0
    values -= negative.astype(np.int64) << (5 * (ends - starts + 1))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def annotation(row: Mapping[str, Any], number: int, image: int, category: int) -> dict[str, Any]:
    """An annotation of COCO from the dictionary of a result.

    Args:
        row: The result, whose mask is not empty.
        number: The annotation's id.
        image: The image's id.
        category: The category's id.
    """
    x_min, y_min, x_max, y_max = row["box"]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": row["mask"],
        "area": row["area"],
        "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
        "iscrowd": 0,
        "score": row["score"],
    }
