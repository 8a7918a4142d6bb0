"""A frame: one image of a source, with its number and its time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a source. Every call that takes an image takes a frame, and so does ``numpy.asarray``.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        source: Where it comes from: a path, a URL, or "camera:0".
        index: Its number in that source, from 0. Live sources count the frames that were skipped too.
        seconds: Its time in the video, or since the live source was opened; None for an image.
    """

    image: NDArray[np.uint8] = field(repr=False)
    source: str
    index: int = 0
    seconds: float | None = None

    @classmethod
    def from_bgr(cls, pixels: NDArray[np.uint8], source: str, index: int, seconds: float) -> Frame:
        """A frame of pixels as OpenCV captures them, (H, W, 3) uint8 in BGR."""
        return cls(np.ascontiguousarray(pixels[:, :, ::-1]), source, index, seconds)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The image, as numpy asks for it."""
        return np.array(self.image, dtype) if copy or dtype not in (None, np.uint8) else self.image
