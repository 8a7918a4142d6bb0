"""Sprites of objects: shape, pattern and shading, drawn larger and averaged down."""

from __future__ import annotations

from functools import cache
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from training.scenes.pen import BODY, SUPERSAMPLING, Pen, Tone, plane
from training.scenes.shapes import KINDS


@cache
def _shading(name: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A factor and an offset, (64, 64, 3) each; light comes from the upper left."""
    y, x = np.mgrid[0:64, 0:64].astype(np.float32) / 63
    if name == "sphere":
        d = np.hypot(x - 0.36, y - 0.3)
        factor, shine = 1.14 - 0.75 * d**1.6, 60 * np.exp(-((d / 0.13) ** 2)) + 14 * np.exp(-((d / 0.35) ** 2))
    elif name == "cylinder":
        factor = 1.12 - 1.7 * np.abs(x - 0.38) ** 2 - 0.1 * y
        shine = 34 * np.exp(-(((x - 0.27) / 0.07) ** 2)) + 8 * np.exp(-(((x - 0.35) / 0.25) ** 2))
    else:
        factor, shine = 1.1 - 0.16 * x - 0.16 * y, 10 * (1 - x) * (1 - y)
    factors, shines = np.stack([factor] * 3, axis=2), np.stack([shine] * 3, axis=2)
    return np.asarray(factors, dtype=np.float32), np.asarray(shines, dtype=np.uint8)


@cache
def _tiles() -> tuple[NDArray[np.uint8], ...]:
    """Horizontal, vertical and diagonal stripes, and dots: 512 x 512 tiles with a period of 32 pixels."""
    y, x = np.mgrid[0:512, 0:512]
    stripes = [(t % 32 < 13) for t in (y, x, x + y)]
    row = y // 28
    dots = np.hypot((x + 16 * (row % 2)) % 32 - 15.5, y % 28 - 13.5) < 9.5
    return tuple(np.where(t, 255, 0).astype(np.uint8) for t in (*stripes, dots))


def _accent(colour: Tone, rng: Random) -> Tone:
    """The second colour of a pattern: white on dark colours, a dark shade on light ones."""
    luma = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    if luma > 200:
        shade = 0.5
    elif luma > 120:
        shade = rng.choice((0.42, 2.0))
    else:
        shade = 2.0
    if shade > 1:
        return 236, 234, 228
    return int(colour[0] * shade), int(colour[1] * shade), int(colour[2] * shade)


def sprite(
    kind: str, colour: Tone, pattern: str, height: float, rng: Random
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw one object.

    Args:
        kind: A key of `KINDS`.
        colour: sRGB.
        pattern: "plain", "striped" or "dotted".
        height: Height of the upright object in pixels.
        rng: Chooses tilt, mirroring, the phase of the pattern and the hands of a clock.

    Returns:
        Colours (h, w, 3) uint8 and opacity (h, w) float32 in [0, 1], cropped to the object.
    """
    spec = KINDS[kind]
    pen = Pen(height, spec.aspect, colour, rng.uniform(-spec.tilt, spec.tilt))
    spec.draw(pen, rng)
    canvas = pen.canvas
    code = cv2.extractChannel(canvas, 3)
    if pattern != "plain":
        tile = _tiles()[3 if pattern == "dotted" else rng.randrange(3)]
        period = max((0.2 if spec.aspect < 1.5 else 0.3) * height, 7.5) * SUPERSAMPLING
        rows, columns = canvas.shape[:2]
        a, b = min(480, max(2, round(32 * rows / period))), min(480, max(2, round(32 * columns / period)))
        start = rng.randrange(32)
        layer = cv2.resize(tile[start : start + a, start : start + b], (columns, rows), interpolation=cv2.INTER_NEAREST)
        accent = plane(rows, columns, (*_accent(colour, rng), BODY))
        layer = cv2.bitwise_and(layer, cv2.inRange(code, BODY, BODY))
        cv2.copyTo(accent, layer, canvas)
    solid = cv2.threshold(code, 0, 255, cv2.THRESH_BINARY)[1]
    alpha = cv2.resize(solid, (pen.columns, pen.rows), interpolation=cv2.INTER_AREA)
    rgb = cv2.cvtColor(cv2.resize(canvas, (pen.columns, pen.rows), interpolation=cv2.INTER_AREA), cv2.COLOR_RGBA2RGB)
    x, y, w, h = cv2.boundingRect(alpha)
    rgb, alpha = rgb[y : y + h, x : x + w], alpha[y : y + h, x : x + w]
    if rng.random() < 0.5:
        rgb, alpha = cv2.flip(rgb, 1), cv2.flip(alpha, 1)
    factor, shine = _shading(spec.shading)
    rgb = cv2.multiply(rgb, cv2.resize(factor, (w, h)), dtype=cv2.CV_8U)
    rgb = cv2.add(rgb, cv2.resize(shine, (w, h)))
    opacity = np.multiply(alpha, 1 / 255, dtype=np.float32)
    return np.asarray(rgb, dtype=np.uint8), opacity
