"""What a drawn scene is: the picture, the map of visible pixels, and the facts about every object in it."""

from __future__ import annotations

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

MIN_SHARE = 0.35  # of an object's pixels must be visible before a sentence may name it
MIN_PIXELS = 80  # visible pixels before a sentence may name it


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene; all lengths in pixels of the picture, x to the right, y down.

    Attributes:
        index: position in `Scene.objects`; its pixels carry `index + 1` in `Scene.labels` (-1: clutter, no label).
        kind: a key of `shapes.KINDS`, or "clutter".
        colour: a key of `COLOURS`.
        pattern: one of `PATTERNS`.
        size: one of `SIZES`, relative to other objects of the kind.
        centre: (x, y), mean of the visible pixels.
        box: (x_min, y_min, x_max, y_max) of the visible pixels, max exclusive.
        ground: y at which the object touches the ground; larger is nearer to the viewer.
        extent: (width, height) of the whole object, hidden parts included.
        area: pixels of the whole object, hidden parts included.
        visible: pixels that are seen.
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
        """Whether enough of it is seen for a sentence to name it."""
        return self.share >= MIN_SHARE and self.visible >= MIN_PIXELS

    @property
    def depth(self) -> float:
        """Distance from the viewer in arbitrary units: smaller is nearer."""
        return -self.ground


@dataclass(frozen=True)
class Scene:
    """A drawn picture and what is in it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8; 0 background and clutter, i + 1 the visible pixels of object i.
        objects: in the order of painting, the farthest first.
        clutter: small neutral things that no sentence means; kept so that a vague sentence is not ambiguous with them.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    clutter: tuple[SceneObject, ...] = ()

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return the visible pixels of object `index` as (H, W) bool."""
        if not 0 <= index < len(self.objects):
            raise IndexError(f"object {index} of a scene with {len(self.objects)}; give 0 to {len(self.objects) - 1}")
        return self.labels == index + 1
