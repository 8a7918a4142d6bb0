"""Segmentation: the mask of one prompt on one image, and its views."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import InputError, OptionError, RuntimeMissingError
from cris_edge.files import write_whole
from cris_edge.image import THRESHOLD
from cris_edge.image.coco import annotation as coco_annotation
from cris_edge.image.coco import encode_rle
from cris_edge.image.overlay import draw_overlay

_LOSSLESS = (".png",)
_FORMATS = (".png", ".jpg", ".jpeg", ".webp")
MIN_AREA = 16  # pixels: smaller parts of a mask are noise of the threshold
MIN_SHARE = 0.02  # of the largest part's area


@dataclass(frozen=True, eq=False)
class Instance:
    """A connected part of a mask.

    Attributes:
        mask: (H, W) bool.
        box: (x_min, y_min, x_max, y_max) in pixels, the maxima exclusive.
        area: in pixels.
    """

    mask: NDArray[np.bool_] = field(repr=False)
    box: tuple[float, float, float, float]
    area: int


class Segmentation:
    """The result of one prompt, on the original image.

    Expensive views are computed on first use. The image is referenced, not copied: if it is a buffer that will be
    overwritten (a camera's frame), draw the overlay first.

    Args:
        probability: (H, W) float32, as returned by `postprocess`, not clipped.
        image: (H, W, 3) uint8 RGB, the original.
        prompt: as the user typed it.
        threshold: a pixel belongs to the mask when its probability is strictly above.
        timings: seconds per stage.
        presence: how likely the prompt's object is in the image, in [0, 1]; None where the model does not know.
        min_presence: the mask is empty where the presence is below.
        index: number of the frame in its source; None for a single image.
        seconds: time of the frame; None for a single image.

    Attributes:
        mask: (H, W) bool; of several objects, their union.
        probability: (H, W) float32, clipped to [0, 1] after the threshold was applied; not changed by `min_presence`.
        image: (H, W, 3) uint8 RGB.
        prompt: as given.
        threshold: as given.
        presence: as given.
        min_presence: as given.
        index: as given.
        seconds: as given.
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
        presence: float | None = None,
        min_presence: float = 0.0,
        index: int | None = None,
        seconds: float | None = None,
    ) -> None:
        if not math.isfinite(threshold):
            raise OptionError(f"the threshold is {threshold!r}, expected a number between 0 and 1")
        if image.shape != (*probability.shape, 3):
            raise InputError(f"a probability of shape {probability.shape} does not fit an image of shape {image.shape}")
        self.mask: NDArray[np.bool_] = probability > np.float32(threshold)
        if presence is not None and presence < min_presence:
            self.mask = np.zeros_like(self.mask)
        self.presence = presence
        self.min_presence = float(min_presence)
        self.index, self.seconds = index, seconds
        self.probability: NDArray[np.float32] = np.clip(probability, 0, 1)
        self.image = image
        self.prompt = prompt
        self.threshold = float(threshold)
        self.timings: Mapping[str, float] = MappingProxyType(dict(timings or {}))

    def __getstate__(self) -> dict[str, Any]:
        """Return the data to pickle or copy, without the views, which are computed again."""
        views = {name for name, value in vars(type(self)).items() if isinstance(value, cached_property)}
        kept = {name: value for name, value in vars(self).items() if name not in views}
        return {**kept, "timings": dict(self.timings)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, timings=MappingProxyType(dict(state["timings"])))

    @cached_property
    def area(self) -> int:
        """Pixels in the mask."""
        return int(np.count_nonzero(self.mask))

    @property
    def empty(self) -> bool:
        """Whether nothing in the image matches the prompt."""
        return self.area == 0

    @property
    def matched(self) -> bool:
        """Whether something in the image matches the prompt: the opposite of `empty`."""
        return not self.empty

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

    def instances(self, *, min_area: int = MIN_AREA, min_share: float = MIN_SHARE) -> list[Instance]:
        """Return the connected parts of the mask, the largest first: where a prompt means several objects, those.

        Objects that touch are one part, and an object that is partly hidden can be several. Pixels that touch at a
        corner are connected. Small parts are dropped as noise: those below `min_area` pixels, and those below
        `min_share` of the largest part; the largest is always kept.

        Args:
            min_area: in pixels, 0 or more.
            min_share: of the largest part's area, 0 to 1.

        Raises:
            OptionError: an argument is out of range.
        """
        import cv2

        if min_area < 0 or not 0 <= min_share <= 1:
            raise OptionError(
                f"min_area is {min_area!r} and min_share {min_share!r}; expected 0 or more pixels and a share in [0, 1]"
            )
        _, labels, stats, _ = cv2.connectedComponentsWithStats(self.mask.view(np.uint8), connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]  # row 0 is the background
        if not len(areas):
            return []
        order = np.argsort(-areas, kind="stable")
        least = min(int(areas.max()), max(float(min_area), min_share * float(areas.max())))
        found = []
        for number in (int(index) for index in order if areas[index] >= least):
            x, y, width, height = (int(value) for value in stats[number + 1, :4])
            box = (float(x), float(y), float(x + width), float(y + height))
            found.append(Instance(labels == number + 1, box, int(areas[number])))
        return found

    def with_probability(self, probability: NDArray[np.float32]) -> Segmentation:
        """Return the same result with other probabilities, (H, W) float32."""
        return Segmentation(
            probability,
            self.image,
            self.prompt,
            threshold=self.threshold,
            timings=self.timings,
            presence=self.presence,
            min_presence=self.min_presence,
            index=self.index,
            seconds=self.seconds,
        )

    def polygons(self) -> list[NDArray[np.int32]]:
        """Return the outlines of the mask's parts and of their holes, the largest first.

        Returns:
            (N, 2) arrays of x, y, N at least 1: pixel centres along the edge. ``cv2.fillPoly`` of all at once gives
            the mask back.
        """
        import cv2

        rings, _ = cv2.findContours(self.mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        return sorted((np.asarray(ring, np.int32).reshape(-1, 2) for ring in rings), key=cv2.contourArea, reverse=True)

    def to_yolo(self, category: int) -> list[str]:
        """Return the mask as lines of a YOLO segmentation label: the category, then x and y as fractions of the image.

        Parts with fewer than three corners and holes are left out, because the format has neither.
        """
        import cv2

        height, width = self.mask.shape
        rings, _ = cv2.findContours(self.mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        lines = []
        for ring in rings:
            if len(ring) >= 3:
                corners = (np.asarray(ring, np.float64).reshape(-1, 2) + 0.5) / (width, height)
                lines.append(" ".join([str(category), *(f"{value:.6f}" for value in corners.ravel())]))
        return lines

    def to_coco(self, number: int = 1, *, image: int = 1, category: int = 1) -> dict[str, Any] | None:
        """Return an annotation of COCO, with the mask as RLE; None if the mask is empty.

        Args:
            number: The annotation's id.
            image: The image's id.
            category: The category's id.
        """
        return None if self.empty else coco_annotation(self.to_dict(), number, image, category)

    def to_supervision(self) -> Any:
        """Return a ``supervision.Detections`` with this mask, or without any if the mask is empty.

        Raises:
            RuntimeMissingError: supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise RuntimeMissingError("supervision is not installed; pip install supervision.") from error
        if self.box is None:
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=np.array([self.box], np.float32),
            mask=self.mask[None],
            confidence=np.array([self.score], np.float32),
            class_id=np.array([0]),
            data={"class_name": np.array([self.prompt])},
        )

    def cutout(self) -> NDArray[np.uint8]:
        """The image with everything outside the mask transparent: (H, W, 4) uint8 RGBA, a new array."""
        return np.dstack((self.image, self.mask.view(np.uint8) * np.uint8(255)))

    def rle(self) -> dict[str, Any]:
        """The mask as COCO RLE: ``{"size": [H, W], "counts": text}``, which `pycocotools` and JSON both take."""
        return encode_rle(self.mask)

    def overlay(self) -> NDArray[np.uint8]:
        """The image with the object highlighted and the prompt as label: (H, W, 3) uint8 RGB, a new array."""
        label = "nothing matches" if self.empty else f"{self.score:.0%}"
        return draw_overlay(self.image, self.mask, self.prompt, label)

    def save(self, path: str | os.PathLike[str], *, what: str = "overlay") -> Path:
        """Write the result as an image file, atomically.

        Args:
            path: ends in .png, .jpg, .jpeg or .webp; an existing file is replaced.
            what: "overlay"; "mask" (255 inside, 0 outside; .png only, since other formats blur its edge); or "cutout",
                the image with everything else transparent (.png only).

        Returns:
            The path.

        Raises:
            OptionError: `what` or the ending is none of these.
            InputError: the file cannot be written there.
        """
        import cv2

        target = Path(path)
        if what not in ("overlay", "mask", "cutout"):
            raise OptionError(f'what is {what!r}, expected "overlay", "mask" or "cutout"')
        endings = _FORMATS if what == "overlay" else _LOSSLESS
        if target.suffix.lower() not in endings:
            ends = " or ".join(endings)
            raise OptionError(f"the {what} cannot be written to {str(target)!r}: its name must end in {ends}")
        if what == "mask":
            picture = self.mask.view(np.uint8) * np.uint8(255)
        else:  # OpenCV writes BGR and BGRA
            picture = self.overlay()[:, :, ::-1] if what == "overlay" else self.cutout()[:, :, [2, 1, 0, 3]]
        try:
            done, encoded = cv2.imencode(target.suffix.lower(), np.ascontiguousarray(picture))
        except cv2.error as error:
            raise InputError(f"an image of shape {picture.shape} does not fit into {target.suffix}: {error}") from error
        if not done:  # WebP, for instance, ends at 16,383 pixels a side
            raise InputError(f"an image of shape {picture.shape} does not fit into {target.suffix}; .png takes it")
        write_whole(target, encoded.tobytes())
        return target

    def to_dict(self) -> dict[str, Any]:
        """Return everything but pixels, ready for `json.dumps`; the mask as RLE."""
        return {
            "prompt": self.prompt,
            "matched": self.matched,
            "empty": self.empty,
            "presence": self.presence,
            "score": self.score,
            "box": list(self.box) if self.box else None,
            "area": self.area,
            "size": list(self.mask.shape),
            "threshold": self.threshold,
            "min_presence": self.min_presence,
            "mask": self.rle(),
            "timings": dict(self.timings),
            **({} if self.index is None else {"index": self.index}),
            **({} if self.seconds is None else {"seconds": self.seconds}),
        }

    def __repr__(self) -> str:
        height, width = self.mask.shape
        found = "empty" if self.empty else f"score={self.score:.2f}, box={self.box}"
        return f"<Segmentation {self.prompt!r} on {width} x {height}: {found}>"
