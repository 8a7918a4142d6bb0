"""Draws objects from polygons at twice their final size."""

from __future__ import annotations

import math
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Tone = tuple[int, int, int]

SUPERSAMPLING = 2
BODY, PART = 255, 128  # in the fourth channel: patterned surface, or plain part


def ellipse(x: float, y: float, a: float, b: float, start: float = 0, stop: float = 360, angle: float = 0) -> Points:
    """Points of an elliptic arc: centre, semi-axes, degrees clockwise from +x (y points down)."""
    return np.array(_ellipse(x, y, a, b, start, stop, angle))


@cache
def _ellipse(x: float, y: float, a: float, b: float, start: float, stop: float, angle: float) -> Points:
    t = np.radians(np.linspace(start, stop, 40 if stop - start > 200 else 20))
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    px, py = a * np.cos(t), b * np.sin(t)
    return np.stack([x + c * px - s * py, y + s * px + c * py], axis=1)


def polygon(*points: tuple[float, float]) -> Points:
    """Vertices as an array."""
    return np.array(points, dtype=np.float64)


@cache
def profile(middle: float, *sides: tuple[float, float]) -> Points:
    """Outline of a solid of revolution: (half width, y) from top to bottom, smoothed, mirrored at x = middle."""
    half, y = np.array([p[0] for p in sides]), np.array([p[1] for p in sides])
    t = np.linspace(y[0], y[-1], 28)
    w = np.interp(t, y, half)
    w[1:-1] = (w[:-2] + 2 * w[1:-1] + w[2:]) / 4
    return np.concatenate([np.stack([middle + w, t], 1), np.stack([middle - w, t], 1)[::-1]])


def plane(rows: int, columns: int, value: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A (rows, columns, 4) plane of one value, filled four bytes at a time."""
    word = np.array(value, np.uint8).view(np.uint32)[0]
    return np.full((rows, columns), word, np.uint32).view(np.uint8).reshape(rows, columns, 4)


class Pen:
    """Draws in units of the object's height: x from 0 to the aspect ratio, y from 0 (top) to 1 (ground)."""

    def __init__(self, height: float, aspect: float, colour: Tone, angle: float) -> None:
        c, s = abs(math.cos(angle)), abs(math.sin(angle))
        self.colour = colour
        self.scale = height * SUPERSAMPLING
        self.rows = math.ceil(height * (c + aspect * s)) + 2
        self.columns = math.ceil(height * (aspect * c + s)) + 2
        self.canvas = plane(self.rows * SUPERSAMPLING, self.columns * SUPERSAMPLING, (*colour, 0))
        ca, sa = math.cos(angle), math.sin(angle)
        self.rotation = np.array([[ca, sa], [-sa, ca]]) * (self.scale * 16)
        centre = np.array([aspect / 2, 0.5])
        half = np.array([self.columns, self.rows]) * (SUPERSAMPLING * 8.0)
        self.offset = half - centre @ self.rotation - 8

    def _to_pixels(self, points: Points) -> NDArray[np.int32]:
        return np.asarray(points @ self.rotation + self.offset, dtype=np.int32)

    def tone(self, tone: float, colour: Tone | None = None) -> Tone:
        """Return a colour, the object's by default, darkened (below 1) or mixed with white (above 1)."""
        r, g, b = colour or self.colour
        if tone <= 1:
            return int(r * tone), int(g * tone), int(b * tone)
        w = tone - 1
        return int(r + (255 - r) * w), int(g + (255 - g) * w), int(b + (255 - b) * w)

    def fill(self, points: Points, tone: float = 1.0, colour: Tone | None = None, body: bool = False) -> None:
        """Fill a polygon; `body` marks the surface that the pattern covers."""
        code = BODY if body else PART
        cv2.fillPoly(self.canvas, [self._to_pixels(points)], (*self.tone(tone, colour), code), cv2.LINE_8, 4)

    def stroke(
        self, points: Points, width: float, tone: float = 1.0, colour: Tone | None = None, closed: bool = False
    ) -> None:
        """Draw a line; its width is relative to the object's height."""
        thickness = max(1, round(width * self.scale))
        value = (*self.tone(tone, colour), PART)
        cv2.polylines(self.canvas, [self._to_pixels(points)], closed, value, thickness, cv2.LINE_8, 4)
