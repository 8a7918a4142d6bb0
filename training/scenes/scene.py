"""A synthetic scene: the image, its label map, and the properties of every object."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLOURS: dict[str, tuple[int, int, int]] = {  # sRGB, before a small jitter per object
    "red": (203, 32, 34),
    "orange": (244, 126, 22),
    "yellow": (246, 212, 40),
    "green": (42, 148, 62),
    "blue": (34, 86, 204),
    "purple": (122, 48, 164),
    "pink": (244, 138, 182),
    "brown": (116, 68, 36),
    "black": (34, 34, 38),
    "white": (240, 240, 236),
}
PATTERNS = ("plain", "striped", "dotted")
SIZES = ("small", "medium", "large")
SPLITS = ("train", "val", "compositions", "relations")

MIN_SHARE = 0.35  # visible share of an object's pixels that a prompt needs
MIN_PIXELS = 80  # visible pixels that a prompt needs


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene; lengths in pixels of the image, x to the right, y down.

    Attributes:
        index: Position in `Scene.objects`; its pixels have the label `index + 1` (-1: clutter, no label).
        kind: A key of `shapes.KINDS`, or "clutter".
        colour: A key of `COLOURS`.
        pattern: One of `PATTERNS`.
        size: One of `SIZES`, relative to other objects of the kind.
        centre: (x, y), mean of the visible pixels.
        box: (x_min, y_min, x_max, y_max) of the visible pixels, max exclusive.
        ground: y at which the object touches the ground; larger is nearer to the viewer.
        extent: (width, height) of the whole object, hidden parts included.
        area: Pixels of the whole object, hidden parts included.
        visible: Number of visible pixels.
    """

    index: int
    kind: str
    colour: str
    pattern: str
    size: str
    centre: tuple[float, float]
    box: tuple[int, int, int, int]
    ground: float
    extent: tuple[int, int]
    area: int
    visible: int

    @property
    def share(self) -> float:
        """Visible share of the object's pixels, 0 to 1."""
        return self.visible / self.area if self.area else 0.0

    @property
    def clear(self) -> bool:
        """Whether enough of it is visible for a prompt."""
        return self.share >= MIN_SHARE and self.visible >= MIN_PIXELS


@dataclass(frozen=True)
class Scene:
    """An image and its objects.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8; 0 for background and clutter, i + 1 for the visible pixels of object i.
        objects: In drawing order, the farthest first.
        clutter: Small neutral items that no prompt refers to; listed because a vague prompt could match them.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    clutter: tuple[SceneObject, ...] = ()

    def union(self, indices: Iterable[int]) -> NDArray[np.bool_]:
        """Return the visible pixels of all objects of `indices` as (H, W) bool."""
        return np.isin(self.labels, [index + 1 for index in indices])

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return the visible pixels of object `index` as (H, W) bool."""
        if not 0 <= index < len(self.objects):
            last = len(self.objects) - 1
            raise IndexError(f"Object {index} of a scene with {last + 1} objects; expected 0 to {last}.")
        return np.equal(self.labels, index + 1)
