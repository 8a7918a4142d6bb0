"""Segmentation: what one sentence picked out of one image, and its views."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import InputError, OptionError
from cris_edge.files import write_whole
from cris_edge.image import THRESHOLD
from cris_edge.image.coco import encode_rle
from cris_edge.image.overlay import draw_overlay

_LOSSLESS = (".png",)
_FORMATS = (".png", ".jpg", ".jpeg", ".webp")


class Segmentation:
    """The answer to one sentence about one image, on the original image.

    Views that cost something are made when they are first asked for. The image is referred to, not copied: where it is
    a buffer that will be overwritten (a camera's frame), draw the overlay first.

    Args:
        probability: (H, W) float32, as `postprocess` gives it, not clipped.
        image: (H, W, 3) uint8 RGB, the original.
        prompt: the sentence.
        threshold: a pixel belongs to the mask when its probability is strictly above.
        timings: seconds per stage.

    Attributes:
        mask: (H, W) bool.
        probability: (H, W) float32, clipped to [0, 1] after the threshold was applied.
        image: (H, W, 3) uint8 RGB.
        prompt: the sentence.
        threshold: as given.
        timings: seconds per stage, by name; read-only.
    """

    def __init__(
        self,
        probability: NDArray[np.float32],
        image: NDArray[np.uint8],
        prompt: str,
        *,
        threshold: float = THRESHOLD,
        timings: Mapping[str, float] | None = None,
    ) -> None:
        if not math.isfinite(threshold):
            raise OptionError(f"the threshold is {threshold!r}, expected a number between 0 and 1")
        if image.shape != (*probability.shape, 3):
            raise InputError(f"a probability of shape {probability.shape} does not fit an image of shape {image.shape}")
        self.mask: NDArray[np.bool_] = probability > np.float32(threshold)
        self.probability: NDArray[np.float32] = np.clip(probability, 0, 1)
        self.image = image
        self.prompt = prompt
        self.threshold = float(threshold)
        self.timings: Mapping[str, float] = MappingProxyType(dict(timings or {}))

    @cached_property
    def area(self) -> int:
        """Pixels in the mask."""
        return int(np.count_nonzero(self.mask))

    @property
    def empty(self) -> bool:
        """Whether nothing in the image matched the sentence."""
        return self.area == 0

    @cached_property
    def score(self) -> float:
        """Mean probability inside the mask, 0 to 1; 0.0 when the mask is empty."""
        import cv2  # its mean under a mask is several times faster than numpy's

        return 0.0 if self.empty else float(cv2.mean(self.probability, mask=self.mask.view(np.uint8))[0])

    @cached_property
    def box(self) -> tuple[float, float, float, float] | None:
        """(x_min, y_min, x_max, y_max) around the mask in pixels, the maxima exclusive; None when it is empty."""
        rows = np.flatnonzero(self.mask.any(axis=1))
        if not len(rows):
            return None
        columns = np.flatnonzero(self.mask.any(axis=0))
        return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)

    def polygons(self) -> list[NDArray[np.int32]]:
        """Outlines of the mask's parts, the largest first.

        Returns:
            (N, 2) arrays of x, y: the centres of the pixels along the outside of a part, N at least 3. Holes are not
            cut out, and parts thinner than a polygon (one pixel, one straight line) are left out; `rle` is exact.
        """
        import cv2

        outlines, _ = cv2.findContours(self.mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        parts = [np.asarray(outline, np.int32).reshape(-1, 2) for outline in outlines if len(outline) >= 3]
        return sorted(parts, key=cv2.contourArea, reverse=True)

    def rle(self) -> dict[str, Any]:
        """The mask as COCO RLE: ``{"size": [H, W], "counts": text}``, which `pycocotools` and JSON both take."""
        return encode_rle(self.mask)

    def overlay(self) -> NDArray[np.uint8]:
        """The image with the object brought out and the sentence beside it: (H, W, 3) uint8 RGB, a new array."""
        return draw_overlay(self.image, self.mask, self.prompt, "nothing found" if self.empty else f"{self.score:.0%}")

    def save(self, path: str | os.PathLike[str], *, what: str = "overlay") -> Path:
        """Writes the result as an image file: whole, or not at all.

        Args:
            path: ends in .png, .jpg, .jpeg or .webp; an existing file is replaced.
            what: "overlay", or "mask" (255 inside, 0 outside; .png only, because other formats blur its edge).

        Returns:
            The path.

        Raises:
            OptionError: `what` or the ending is none of these.
            InputError: the file cannot be written there.
        """
        import cv2

        target = Path(path)
        if what not in ("overlay", "mask"):
            raise OptionError(f'what is {what!r}, expected "overlay" or "mask"')
        endings = _LOSSLESS if what == "mask" else _FORMATS
        if target.suffix.lower() not in endings:
            ends = " or ".join(endings)
            raise OptionError(f"the {what} cannot be written to {str(target)!r}: its name must end in {ends}")
        picture = self.mask.view(np.uint8) * np.uint8(255) if what == "mask" else self.overlay()[:, :, ::-1]
        try:
            done, encoded = cv2.imencode(target.suffix.lower(), np.ascontiguousarray(picture))
        except cv2.error as error:
            raise InputError(f"an image of shape {picture.shape} does not fit into {target.suffix}: {error}") from error
        if not done:  # WebP, for instance, ends at 16,383 pixels a side
            raise InputError(f"an image of shape {picture.shape} does not fit into {target.suffix}; .png takes it")
        write_whole(target, encoded.tobytes())
        return target

    def to_dict(self) -> dict[str, Any]:
        """Everything but pixels, ready for `json.dumps`; the mask as RLE."""
        return {
            "prompt": self.prompt,
            "empty": self.empty,
            "score": self.score,
            "box": list(self.box) if self.box else None,
            "area": self.area,
            "size": list(self.mask.shape),
            "threshold": self.threshold,
            "mask": self.rle(),
            "timings": dict(self.timings),
        }

    def __repr__(self) -> str:
        height, width = self.mask.shape
        found = "empty" if self.empty else f"score={self.score:.2f}, box={self.box}"
        return f"<Segmentation {self.prompt!r} on {width} x {height}: {found}>"
