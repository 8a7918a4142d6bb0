"""Draws a synthetic scene: chooses its objects, places them, paints them and measures what is visible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from training.scenes.backdrop import backdrop, camera, cast_shadows, clutter
from training.scenes.scene import COLOURS, SPLITS, Scene, SceneObject
from training.scenes.shapes import KINDS
from training.scenes.sprites import sprite

_KIND_NAMES = tuple(KINDS)
_COLOUR_NAMES = tuple(COLOURS)
RESERVED = frozenset((kind, _COLOUR_NAMES[(3 * k + 1) % 10]) for k, kind in enumerate(_KIND_NAMES))
"""Pairs (kind, colour) that only the split `compositions` has: one colour of each kind, a tenth of all pairs."""

SMALLEST = 96
"""Shortest side of an image in pixels; objects cannot be recognized in smaller ones."""

_SIZE_FACTOR = {"small": 0.74, "medium": 1.0, "large": 1.32}

Image = NDArray[np.uint8]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Actor:
    """An object to be drawn."""

    kind: str
    colour: str
    pattern: str
    size: str


@dataclass(frozen=True)
class _Drawn:
    """A sprite at its position: upper left corner (x, y), colours (h, w, 3), opacity (h, w)."""

    actor: _Actor
    rgb: Image
    alpha: NDArray[np.float32]
    x: int
    y: int

    @property
    def rows_columns(self) -> tuple[slice, slice]:
        """Its rectangle in the image."""
        height, width = self.alpha.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)

    @property
    def solid(self) -> Image:
        """255 where the sprite is at least half opaque, 0 elsewhere."""
        return np.asarray(cv2.compare(self.alpha, 0.5, cv2.CMP_GE), dtype=np.uint8)  # type: ignore[call-overload]


def scene_rng(seed: int, split: str, stream: int = 0) -> Random:
    """Return the random number generator of one scene; no two splits, seeds or streams share numbers.

    Args:
        seed: 0 <= seed < 2**128.
        split: One of `SPLITS`.
        stream: 0 for the image, 1 for the prompts.

    Raises:
        ValueError: The split is unknown or the seed out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}. Available: {', '.join(SPLITS)}.")
    if not 0 <= seed < 1 << 128:
        raise ValueError(f"seed {seed} is out of range; expected 0 <= seed < 2**128.")
    return Random(((SPLITS.index(split) + 1) << 128 | seed) << 1 | stream)


def draw_scene(seed: int, split: str = "train", height: int = 240, width: int = 320) -> Scene:
    """Draw one scene; the same arguments give the same scene.

    Args:
        seed: 0 <= seed < 2**128; the same number in two splits gives unrelated scenes.
        split: "train", "val", "compositions" (may contain the pairs of `RESERVED`) or "relations".
        height: Height of the image in pixels, at least `SMALLEST`.
        width: Width of the image in pixels, at least `SMALLEST`.

    Raises:
        ValueError: An argument is out of range.
    """
    if min(height, width) < SMALLEST:
        raise ValueError(f"A scene of {width} x {height} pixels is too small; expected at least {SMALLEST} per side.")
    rng = scene_rng(seed, split)
    image, horizon = backdrop(height, width, rng)
    actors = _choose(rng, split)
    farthest = max(horizon + 0.06 * height, 0.3 * height)
    drawn = _paint_sprites(actors, _arrange(actors, height, width, farthest, rng), height, width, rng)
    litter = _scatter(image, int(farthest), rng)
    feet = [(d.x + w / 2, float(d.y + h), float(w), float(h)) for d in drawn for h, w in [d.alpha.shape]]
    cast_shadows(image, feet, rng)

    labels = np.zeros((height, width), np.uint8)
    for number, one in enumerate(drawn, start=1):
        part = image[one.rows_columns]
        part[:] = cv2.blendLinear(one.rgb, part, one.alpha, 1 - one.alpha)
        labels[one.rows_columns][one.solid > 0] = number
    objects = tuple(_measure(number, one, labels) for number, one in enumerate(drawn))
    return Scene(camera(image, rng), labels, objects, litter)


def _choose(rng: Random, split: str) -> list[_Actor]:
    """Choose the objects of a scene, with look-alikes so that prompts need their details."""
    count = rng.choices(range(3, 11), (10, 14, 18, 18, 14, 11, 8, 7))[0]
    actors: list[_Actor] = []

    def add(kind: str | None = None, colour: str | None = None) -> None:
        for _ in range(20):
            k = kind or rng.choice(_KIND_NAMES)
            c = colour or rng.choice(_COLOUR_NAMES)
            if split == "compositions" or (k, c) not in RESERVED:
                pattern = rng.choices(("plain", "striped", "dotted"), (60, 22, 18))[0]
                actors.append(_Actor(k, c, pattern, rng.choices(("small", "medium", "large"), (33, 34, 33))[0]))
                return

    if split == "compositions":
        kind, colour = rng.choice(sorted(RESERVED))
        add(kind, colour)
        add(kind)
        add(None, colour)
        if rng.random() < 0.5:
            add(*rng.choice(sorted(RESERVED)))
    focus = rng.choice(_KIND_NAMES) if not actors or rng.random() < 0.5 else actors[0].kind
    for _ in range(min(count, rng.choices((1, 2, 3, 4), (15, 40, 30, 15))[0])):
        add(focus)
    second = rng.choice(_KIND_NAMES)
    for _ in range(rng.choices((0, 1, 2, 3), (20, 30, 35, 15))[0]):
        add(second)
    while len(actors) < count:
        draw = rng.random()
        other = rng.choice(actors)
        if draw < 0.3:
            add(None, other.colour)
        elif draw < 0.42:
            add(other.kind, other.colour)
        else:
            add()
    actors = actors[: max(count, 3)]
    rng.shuffle(actors)
    return actors


def _arrange(
    actors: Sequence[_Actor], height: int, width: int, farthest: float, rng: Random
) -> list[tuple[int, Box, float]]:
    """Return (index of the actor, box, height) of all that find room, the farthest first."""
    placed: list[tuple[int, Box, float]] = []
    unit = math.sqrt(height * width / (240 * 320))
    crowd = 1.34 - 0.062 * len(actors)
    nearest = height - 4.0
    row = rng.random() < 0.22
    level = rng.uniform(farthest + 0.35 * (nearest - farthest), nearest)
    for k, actor in enumerate(actors):
        kind = KINDS[actor.kind]
        factor = crowd * unit * 240 * kind.height * _SIZE_FACTOR[actor.size] * rng.uniform(0.94, 1.06)
        beside = rng.choice(placed)[1] if placed and rng.random() < 0.34 else None
        limit = 0.55 if beside or rng.random() < 0.25 else 0.16
        for trial in range(14):
            x = rng.uniform(0, width)
            ground = rng.uniform(farthest, nearest)
            if row and trial < 4:
                x = (k + 0.5 + rng.uniform(-0.2, 0.2)) * width / len(actors)
                ground = level + rng.uniform(-0.04, 0.04) * height
            elif beside and trial < 6:  # in front of another or behind it, so that "behind" prompts have a target
                x = (beside[0] + beside[2]) / 2 + rng.uniform(-0.4, 0.4) * (beside[2] - beside[0])
                ground = beside[3] + rng.choice((-1, 1)) * rng.uniform(0.07, 0.24) * height
                ground = min(nearest, max(farthest, ground))
            tall = factor * (0.82 + 0.36 * (ground - farthest) / (nearest - farthest))
            wide = tall * kind.aspect
            ground = min(nearest, max(ground, tall + 4))
            x = min(width - wide / 2 - 3, max(wide / 2 + 3, x))
            box = (x - wide / 2, ground - tall, x + wide / 2, ground)
            if tall > height * 0.62 or wide > width * 0.5:
                continue
            if all(_overlap(box, other[1]) < limit for other in placed):
                placed.append((k, box, tall))
                break
    return sorted(placed, key=lambda one: one[1][3])


def _overlap(a: Box, b: Box) -> float:
    """Intersection of two boxes divided by the area of the smaller one."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _paint_sprites(
    actors: Sequence[_Actor], placed: Sequence[tuple[int, Box, float]], height: int, width: int, rng: Random
) -> list[_Drawn]:
    drawn = []
    for k, box, tall in placed:
        actor = actors[k]
        jitter = rng.randint(-12, 12)
        red, green, blue = (min(255, max(0, c + jitter + rng.randint(-7, 7))) for c in COLOURS[actor.colour])
        rgb, alpha = sprite(actor.kind, (red, green, blue), actor.pattern, tall, rng)
        h, w = alpha.shape
        x = min(width - w, max(0, round((box[0] + box[2]) / 2 - w / 2)))
        drawn.append(_Drawn(actor, rgb, alpha, x, min(height - h, max(0, round(box[3] - h)))))
    return drawn


def _scatter(image: Image, farthest: int, rng: Random) -> tuple[SceneObject, ...]:
    """Paint a few neutral items onto the ground and return them."""
    height, width = image.shape[:2]
    unit = math.sqrt(height * width / (240 * 320))
    litter = []
    for _ in range(rng.choices((0, 1, 2, 3, 4), (30, 25, 20, 15, 10))[0]):
        x, y = rng.randint(12, width - 13), rng.randint(farthest, height - 8)
        w, h = clutter(image, x, y, unit, rng)
        box = (x - w // 2, y - h // 2, x + w // 2, y + h // 2)
        centre = (float(x), float(y))
        litter.append(SceneObject(-1, "clutter", "", "plain", "medium", centre, box, float(y), (w, h), w * h, w * h))
    return tuple(litter)


def _measure(index: int, one: _Drawn, labels: NDArray[np.uint8]) -> SceneObject:
    """Return the properties of object `index`, measured on the finished label map."""
    h, w = one.alpha.shape
    x, y, actor = one.x, one.y, one.actor
    seen = (labels[one.rows_columns] == index + 1).astype(np.uint8)
    moments = cv2.moments(seen, binaryImage=True)
    visible = round(moments["m00"])
    left, top, wide, tall = cv2.boundingRect(seen)
    centre = (x + moments["m10"] / visible, y + moments["m01"] / visible) if visible else (x + w / 2, y + h / 2)
    return SceneObject(
        index,
        actor.kind,
        actor.colour,
        actor.pattern,
        actor.size,
        centre,
        box=(x + left, y + top, x + left + wide, y + top + tall),
        ground=float(y + h),
        extent=(w, h),
        area=cv2.countNonZero(one.solid),
        visible=visible,
    )
