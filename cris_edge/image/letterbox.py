"""Letterbox geometry: RGB images to network input, and logits to probabilities on the original image.

As in the reference implementation, the image is scaled with cubic interpolation to fit a square filled with CLIP's mean
colour (the letterbox), and the logits are mapped back. Both maps are affine and axis-aligned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import ImageError
from cris_edge.image.decoding import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of RGB scaled to [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)
THRESHOLD = 0.35  # probability, as in the reference implementation

_CUBIC = -0.75  # the cubic coefficient of OpenCV and PyTorch
_BLOCK = 32  # rows of a tile in `_apply`
_TILE = 1 << 18  # multiply-adds per tile: OpenBLAS starts threads above this


@dataclass(frozen=True)
class Letterbox:
    """Position of an image inside the network's square input.

    Attributes:
        size: Side S of the input, in pixels.
        height: Rows of the original image.
        width: Columns of the original image.
        matrix: (2, 3) float64; maps (x, y, 1) in the original image to the input.
        inverse: (2, 3) float64; the inverse map.
    """

    size: int
    height: int
    width: int
    matrix: NDArray[np.float64] = field(compare=False, repr=False)
    inverse: NDArray[np.float64] = field(compare=False, repr=False)

    @staticmethod
    def fit(height: int, width: int, size: int) -> Letterbox:
        """Return the letterbox that centres an image of `height` x `width` in a `size` x `size` input."""
        return _letterbox(height, width, size)


@lru_cache(maxsize=64)
def _letterbox(height: int, width: int, size: int) -> Letterbox:
    import cv2

    scale = min(size / height, size / width)
    left, top = (size - width * scale) / 2, (size - height * scale) / 2
    # Three corners, in single precision as in the reference.
    original = np.array([[0, 0], [width, 0], [0, height]], np.float32)
    right, bottom = width * scale + left, height * scale + top
    boxed = np.array([[left, top], [right, top], [left, bottom]], np.float32)
    matrix = np.asarray(cv2.getAffineTransform(original, boxed), np.float64)
    inverse = np.asarray(cv2.getAffineTransform(boxed, original), np.float64)
    matrix.setflags(write=False)
    inverse.setflags(write=False)
    return Letterbox(size, height, width, matrix, inverse)


def preprocess(
    rgb: NDArray[np.uint8], size: int, *, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> tuple[NDArray[np.float32], Letterbox]:
    """Letterbox and normalize an image.

    Equal to the reference with OpenCV 5; OpenCV 4 interpolates in fixed point and differs by up to three grey levels.

    Args:
        rgb: (H, W, 3) uint8, as `load_image` returns it.
        size: Side S of the input.
        mean: Per channel, of RGB scaled to [0, 1]; also the colour around the image.
        std: Per channel, of RGB scaled to [0, 1].

    Returns:
        (1, 3, S, S) float32, C-contiguous, and the letterbox for `postprocess`.

    Raises:
        ImageError: `rgb` is not (H, W, 3) uint8 with at least one pixel.
    """
    import cv2

    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        raise ImageError(f"The image is {describe(rgb)}; expected (H, W, 3) uint8. Use load_image first.")
    letterbox = Letterbox.fit(rgb.shape[0], rgb.shape[1], size)
    border = [255 * value for value in mean]
    try:
        boxed = cv2.warpAffine(
            np.ascontiguousarray(rgb), letterbox.matrix, (size, size), flags=cv2.INTER_CUBIC, borderValue=border
        )
    except cv2.error as error:  # OpenCV before 5 cannot warp an image with a side over 32,766
        raise ImageError(
            f"OpenCV {cv2.__version__} cannot scale an image of {rgb.shape[1]} x {rgb.shape[0]} pixels; "
            "resize it first."
        ) from error
    pixels = np.empty((1, 3, size, size), np.float32)
    for channel, plane in enumerate(cv2.split(boxed)):
        # (x / 255 - mean) / std in one pass, without intermediate arrays
        scale, shift = 1 / (255 * std[channel]), -mean[channel] / std[channel]
        cv2.addWeighted(plane, scale, plane, 0, shift, dst=pixels[0, channel], dtype=cv2.CV_32F)
    return pixels, letterbox


def postprocess(logits: NDArray[np.float32], letterbox: Letterbox) -> NDArray[np.float32]:
    """Map logits to probabilities on the original image.

    Sigmoid; bicubic upsampling (align_corners) to the input size; cubic interpolation at each original pixel's position
    in the input, zero outside it. Both interpolations are linear and separable, so each axis is one matrix product:
    exact, and several times faster than warping.

    Args:
        logits: (1, 1, S/4, S/4) or (S/4, S/4) float32.
        letterbox: The image's letterbox, from `preprocess`.

    Returns:
        (H, W) float32. Not clipped: cubic interpolation overshoots slightly below 0 and above 1.
    """
    rows, columns = logits.shape[-2:]
    # 1 / (1 + exp(-x)), without overflow
    probability = 0.5 + 0.5 * np.tanh(0.5 * logits.reshape(rows, columns).astype(np.float32, copy=False))
    matrix, size = letterbox.matrix, letterbox.size
    across = _resampling(letterbox.width, float(matrix[0, 0]), float(matrix[0, 2]), size, columns)
    down = _resampling(letterbox.height, float(matrix[1, 1]), float(matrix[1, 2]), size, rows)
    return _apply(down, _apply(across, probability.T).T)


@dataclass(frozen=True)
class _Resampling:
    """A banded (length, count) matrix that maps `count` logits along one axis to `length` original pixels."""

    length: int
    blocks: list[tuple[int, int, NDArray[np.float32]]]  # first row, first column, nonzero weights


@lru_cache(maxsize=32)
def _resampling(length: int, scale: float, offset: float, size: int, count: int) -> _Resampling:
    """Compose upsampling count -> size (borders repeated) with the inverse letterbox size -> length (zero outside)."""
    step = (count - 1) / (size - 1) if size > 1 else 0.0
    coarse, coarse_weights = _taps(np.arange(size) * step)  # (4, size): logits for each input pixel
    fine, fine_weights = _taps(np.arange(length) * scale + offset)  # (4, length): input for each original pixel
    fine_weights = np.where((fine >= 0) & (fine < size), fine_weights, 0)
    fine = np.clip(fine, 0, size - 1)
    source = np.clip(coarse, 0, count - 1)[:, fine]  # (4, 4, length)
    weights = coarse_weights[:, fine] * fine_weights
    flat = np.arange(length) * count + source
    matrix = np.bincount(flat.ravel(), weights.ravel(), minlength=length * count).reshape(length, count)
    blocks = []
    for top in range(0, length, _BLOCK):
        used = source[:, :, top : top + _BLOCK]
        first, last = int(used.min()), int(used.max()) + 1
        blocks.append((top, first, matrix[top : top + _BLOCK, first:last].astype(np.float32)))
    return _Resampling(length, blocks)


def _apply(resampling: _Resampling, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply (length, count) x (count, N), tile by tile.

    Tiles skip the zeros outside the band, and are small enough for the BLAS to run each on the calling thread: waking
    its threads while a runtime's own still spin was measured to cost a hundred times the product.
    """
    result = np.empty((resampling.length, values.shape[1]), np.float32)
    for top, first, weights in resampling.blocks:
        rows, columns = weights.shape
        width = max(_TILE // weights.size, 1)
        for left in range(0, values.shape[1], width):
            tile = values[first : first + columns, left : left + width]
            np.matmul(weights, tile, out=result[top : top + rows, left : left + width])
    return result


def _taps(position: NDArray[np.floating[Any]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the four neighbours of each position and their cubic convolution weights, both (4, N)."""
    neighbour = np.floor(position).astype(np.int64) + np.arange(-1, 3)[:, None]
    near = np.abs(neighbour - position)
    inner = ((_CUBIC + 2) * near - (_CUBIC + 3)) * near**2 + 1
    outer = _CUBIC * (((near - 5) * near + 8) * near - 4)
    return neighbour, np.where(near <= 1, inner, outer)
