"""The kinds of objects and how each is drawn, in units of its height."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np

from training.scenes.pen import Pen, Tone, ellipse, polygon, profile

_LIGHT: Tone = (238, 236, 228)
_DARK: Tone = (46, 42, 42)
_STEEL: Tone = (150, 152, 158)
_WOOD: Tone = (128, 86, 52)


def _ball(pen: Pen, rng: Random) -> None:
    pen.fill(ellipse(0.5, 0.5, 0.48, 0.48), body=True)
    tone = 0.55 if max(pen.colour) > 70 else 1.3
    pen.stroke(ellipse(-0.12, 0.5, 0.5, 0.6, -37, 37), 0.03, tone)
    pen.stroke(ellipse(1.12, 0.5, 0.5, 0.6, 143, 217), 0.03, tone)


def _mug(pen: Pen, rng: Random) -> None:
    pen.stroke(ellipse(0.78, 0.52, 0.2, 0.23, -100, 100), 0.1, 0.8)
    pen.fill(profile(0.41, (0.37, 0.13), (0.37, 0.6), (0.35, 0.86), (0.3, 0.95), (0.2, 0.98)), body=True)
    pen.fill(ellipse(0.41, 0.13, 0.37, 0.105), 1.25)
    pen.fill(ellipse(0.41, 0.14, 0.31, 0.075), 0.4)


def _bottle(pen: Pen, rng: Random) -> None:
    pen.fill(
        profile(
            0.18, (0.06, 0.06), (0.065, 0.26), (0.09, 0.33), (0.165, 0.42), (0.17, 0.6), (0.17, 0.95), (0.14, 0.985)
        ),
        body=True,
    )
    pen.fill(polygon((0.1, 0.01), (0.26, 0.01), (0.26, 0.12), (0.1, 0.12)), colour=_STEEL)
    pen.fill(polygon((0.012, 0.58), (0.348, 0.58), (0.348, 0.76), (0.012, 0.76)), colour=_LIGHT)
    pen.stroke(polygon((0.08, 0.67), (0.28, 0.67)), 0.02, 0.8)


def _book(pen: Pen, rng: Random) -> None:
    pen.fill(polygon((0.06, 0.98), (0.14, 0.86), (0.84, 0.9), (0.74, 0.99)), 0.5)
    pen.fill(polygon((0.68, 0.08), (0.8, 0.02), (0.82, 0.88), (0.7, 0.97)), colour=_LIGHT)
    for x in (0.72, 0.75, 0.78):
        pen.stroke(polygon((x, 0.08), (x + 0.01, 0.92)), 0.008, colour=_STEEL)
    pen.fill(polygon((0.03, 0.06), (0.15, 0.0), (0.81, 0.01), (0.7, 0.08)), 1.2)
    pen.fill(polygon((0.03, 0.06), (0.7, 0.08), (0.71, 0.98), (0.04, 0.98)), body=True)
    pen.fill(polygon((0.03, 0.06), (0.12, 0.063), (0.13, 0.98), (0.04, 0.98)), 0.6)
    pen.fill(polygon((0.25, 0.22), (0.6, 0.23), (0.6, 0.4), (0.25, 0.39)), colour=_LIGHT)
    pen.stroke(polygon((0.31, 0.305), (0.54, 0.31)), 0.025, colour=_DARK)


def _box(pen: Pen, rng: Random) -> None:
    pen.fill(polygon((0.02, 0.28), (0.66, 0.34), (0.66, 0.98), (0.02, 0.88)), body=True)
    pen.fill(polygon((0.66, 0.34), (1.08, 0.24), (1.08, 0.8), (0.66, 0.98)), 0.62)
    pen.fill(polygon((0.02, 0.28), (0.46, 0.12), (1.08, 0.24), (0.66, 0.34)), 1.3)
    pen.fill(polygon((0.02, 0.28), (0.46, 0.12), (0.3, 0.02), (-0.0, 0.16)), 0.85)
    pen.fill(polygon((0.66, 0.34), (1.08, 0.24), (1.14, 0.35), (0.76, 0.47)), 0.95)
    pen.fill(polygon((0.1, 0.285), (0.48, 0.16), (0.98, 0.25), (0.64, 0.315)), 0.3)


def _apple(pen: Pen, rng: Random) -> None:
    t = np.radians(np.arange(0, 360, 8))
    r = 0.4 + 0.05 * np.abs(np.cos(t)) - 0.12 * np.exp(-(((t - 1.5 * np.pi) / 0.35) ** 2))
    r -= 0.035 * np.exp(-(((t - 0.5 * np.pi) / 0.2) ** 2))
    pen.fill(np.stack([0.5 + 1.1 * r * np.cos(t), 0.6 + 0.95 * r * np.sin(t)], 1), body=True)
    pen.fill(ellipse(0.5, 0.34, 0.15, 0.045), 0.55)
    pen.stroke(polygon((0.5, 0.35), (0.51, 0.2), (0.56, 0.06)), 0.06, colour=(86, 58, 34))
    pen.fill(ellipse(0.69, 0.15, 0.16, 0.065, angle=-20), colour=(92, 146, 66))


def _banana(pen: Pen, rng: Random) -> None:
    outer = ellipse(0.9, 0.0, 0.86, 0.94, 18, 170)
    inner = ellipse(0.9, -0.12, 0.72, 0.66, 16, 172)[::-1]
    pen.fill(np.concatenate([outer, inner]), body=True)
    pen.stroke(ellipse(0.9, -0.04, 0.79, 0.8, 28, 152), 0.03, 0.72)
    pen.fill(polygon((1.66, 0.3), (1.73, 0.16), (1.62, 0.03), (1.56, 0.1)), colour=(70, 52, 34))
    pen.fill(polygon((0.04, 0.2), (0.2, 0.1), (0.16, -0.0), (0.04, 0.02)), colour=(70, 52, 34))


def _lamp(pen: Pen, rng: Random) -> None:
    pen.fill(polygon((0.3, 0.5), (0.36, 0.5), (0.36, 0.94), (0.3, 0.94)), colour=_STEEL)
    pen.fill(ellipse(0.33, 0.94, 0.19, 0.05), colour=_DARK)
    pen.fill(ellipse(0.33, 0.925, 0.17, 0.04), colour=_STEEL)
    pen.fill(ellipse(0.33, 0.5, 0.32, 0.05), 0.6)
    pen.fill(
        np.concatenate([polygon((0.19, 0.03), (0.47, 0.03)), ellipse(0.33, 0.5, 0.32, 0.05, 0, 180)]),
        body=True,
    )
    pen.fill(ellipse(0.33, 0.03, 0.14, 0.025), 1.5)


def _bowl(pen: Pen, rng: Random) -> None:
    pen.fill(polygon((0.6, 0.85), (1.2, 0.85), (1.14, 1.0), (0.66, 1.0)), 0.6)
    pen.fill(ellipse(0.9, 0.24, 0.87, 0.68, 0, 180), body=True)
    pen.fill(ellipse(0.9, 0.25, 0.87, 0.24), 1.3)
    pen.fill(ellipse(0.9, 0.27, 0.77, 0.18), 0.55)
    pen.fill(ellipse(0.9, 0.34, 0.55, 0.1), 0.72)


def _vase(pen: Pen, rng: Random) -> None:
    pen.stroke(ellipse(0.17, 0.36, 0.11, 0.16, 60, 300), 0.05, 0.75)
    pen.stroke(ellipse(0.55, 0.36, 0.11, 0.16, -120, 120), 0.05, 0.75)
    pen.fill(
        profile(
            0.36, (0.19, 0.06), (0.1, 0.17), (0.11, 0.28), (0.3, 0.48), (0.33, 0.6), (0.24, 0.82), (0.14, 0.92),
            (0.19, 0.985),
        ),
        body=True,
    )  # fmt: skip
    pen.fill(ellipse(0.36, 0.06, 0.19, 0.05), 1.25)
    pen.fill(ellipse(0.36, 0.065, 0.145, 0.033), 0.35)


def _clock(pen: Pen, rng: Random) -> None:
    pen.stroke(polygon((0.26, 0.86), (0.16, 0.99)), 0.07, 0.6)
    pen.stroke(polygon((0.64, 0.86), (0.74, 0.99)), 0.07, 0.6)
    pen.fill(ellipse(0.21, 0.16, 0.15, 0.11, angle=-38), 0.75)
    pen.fill(ellipse(0.69, 0.16, 0.15, 0.11, angle=38), 0.75)
    pen.stroke(polygon((0.45, 0.16), (0.45, 0.03)), 0.06, colour=_STEEL)
    pen.fill(ellipse(0.45, 0.55, 0.42, 0.42), body=True)
    pen.fill(ellipse(0.45, 0.55, 0.28, 0.28), colour=_LIGHT)
    for k in range(0, 360, 30):
        c, s = math.cos(math.radians(k)), math.sin(math.radians(k))
        inner = 0.2 if k % 90 == 0 else 0.23
        pen.stroke(polygon((0.45 + inner * c, 0.55 + inner * s), (0.45 + 0.26 * c, 0.55 + 0.26 * s)), 0.015, 1, _DARK)
    for length, width in ((0.13, 0.045), (0.21, 0.03)):
        a = rng.uniform(0, 2 * math.pi)
        tip = (0.45 + length * math.cos(a), 0.55 + length * math.sin(a))
        pen.stroke(polygon((0.45, 0.55), tip), width, colour=_DARK)


def _chair(pen: Pen, rng: Random) -> None:
    for x, y in ((0.2, 0.86), (0.6, 0.9)):
        pen.stroke(polygon((x, 0.55), (x, y)), 0.045, 0.45)
    pen.stroke(polygon((0.1, 0.06), (0.1, 0.6)), 0.05, 0.7)
    pen.stroke(polygon((0.52, 0.04), (0.52, 0.55)), 0.05, 0.7)
    pen.fill(polygon((0.07, 0.05), (0.55, 0.02), (0.55, 0.36), (0.07, 0.4)), body=True)
    pen.fill(polygon((0.05, 0.58), (0.53, 0.53), (0.68, 0.64), (0.16, 0.7)), 1.12, body=True)
    pen.fill(polygon((0.05, 0.58), (0.16, 0.7), (0.16, 0.76), (0.05, 0.63)), 0.7)
    pen.fill(polygon((0.16, 0.7), (0.68, 0.64), (0.68, 0.7), (0.16, 0.76)), 0.8)
    pen.stroke(polygon((0.19, 0.76), (0.19, 0.975)), 0.05, 0.6)
    pen.stroke(polygon((0.65, 0.7), (0.65, 0.95)), 0.05, 0.6)
    pen.stroke(polygon((0.075, 0.62), (0.075, 0.9)), 0.045, 0.55)


def _umbrella(pen: Pen, rng: Random) -> None:
    pen.stroke(polygon((0.55, 0.3), (0.55, 0.88)), 0.04, colour=_STEEL)
    pen.stroke(ellipse(0.64, 0.88, 0.09, 0.09, 0, 180), 0.05, colour=_WOOD)
    pen.stroke(polygon((0.55, 0.02), (0.55, 0.1)), 0.035, colour=_DARK)
    hem = [ellipse(x, 0.55, 0.1325, 0.07, 180, 360)[::-1] for x in (0.9475, 0.6825, 0.4175, 0.1525)]
    pen.fill(np.concatenate([ellipse(0.55, 0.55, 0.53, 0.49, 180, 360), *hem]), body=True)
    tone = 0.6 if max(pen.colour) > 70 else 1.3
    for a in (0.265, 0.0):
        if a:
            pen.stroke(ellipse(0.55, 0.55, a, 0.49, 180, 360), 0.016, tone)
        else:
            pen.stroke(polygon((0.55, 0.06), (0.55, 0.55)), 0.016, tone)


def _hat(pen: Pen, rng: Random) -> None:
    pen.fill(ellipse(0.9, 0.8, 0.88, 0.19), 0.8)
    pen.fill(ellipse(0.9, 0.76, 0.86, 0.17), 1.0, body=True)
    pen.fill(
        np.concatenate(
            [
                polygon((0.42, 0.74), (0.46, 0.2)),
                ellipse(0.7, 0.2, 0.24, 0.17, 180, 300),
                ellipse(1.1, 0.2, 0.24, 0.17, 240, 360),
                polygon((1.38, 0.74)),
                ellipse(0.9, 0.74, 0.48, 0.1, 0, 180),
            ]
        ),
        body=True,
    )
    band = np.concatenate([ellipse(0.9, 0.74, 0.48, 0.1, 0, 180), ellipse(0.9, 0.57, 0.465, 0.1, 0, 180)[::-1]])
    pen.fill(band, 0.35 if max(pen.colour) > 70 else 1.45)


def _pillow(pen: Pen, rng: Random) -> None:
    corner = [(0.04, 0.06), (1.26, 0.04), (1.28, 0.96), (0.02, 0.94)]
    inward = [(0.65, 0.17), (1.16, 0.5), (0.65, 0.87), (0.14, 0.5)]
    t = np.linspace(0, 1, 12, endpoint=False)[:, None]
    edges = []
    for k in range(4):
        a, m, b = np.array(corner[k]), np.array(inward[k]), np.array(corner[(k + 1) % 4])
        edges.append((1 - t) ** 2 * a + 2 * t * (1 - t) * m + t**2 * b)
    outline = np.concatenate(edges)
    pen.fill(outline, body=True)
    pen.stroke(outline, 0.03, 0.7, closed=True)
    pen.fill(ellipse(0.65, 0.5, 0.04, 0.04), 0.6)


def _shoe(pen: Pen, rng: Random) -> None:
    upper = polygon(
        (0.08, 0.82), (0.05, 0.5), (0.1, 0.12), (0.18, 0.04), (0.5, 0.08), (0.62, 0.12), (0.82, 0.38), (1.1, 0.46),
        (1.4, 0.52), (1.6, 0.62), (1.7, 0.82),
    )  # fmt: skip
    pen.fill(upper, body=True)
    pen.fill(ellipse(0.37, 0.1, 0.24, 0.07), 0.3)
    pen.fill(polygon((1.4, 0.52), (1.6, 0.62), (1.7, 0.82), (1.3, 0.82), (1.3, 0.64)), 0.7)
    for x, y in ((0.66, 0.26), (0.77, 0.37), (0.9, 0.44)):
        pen.stroke(polygon((x - 0.03, y - 0.08), (x - 0.12, y + 0.12)), 0.06, colour=_LIGHT)
    pen.fill(polygon((0.05, 0.78), (1.68, 0.78), (1.75, 0.86), (1.72, 0.98), (0.06, 0.98), (0.02, 0.88)), colour=_LIGHT)
    pen.stroke(polygon((0.04, 0.89), (1.74, 0.89)), 0.025, colour=_STEEL)


@dataclass(frozen=True)
class Kind:
    """How a kind is drawn: aspect = width / height, height relative to the image's, tilt in radians."""

    draw: Callable[[Pen, Random], None]
    aspect: float
    height: float
    shading: str
    tilt: float = 0.0


KINDS: dict[str, Kind] = {
    "ball": Kind(_ball, 1.0, 0.24, "sphere", 0.6),
    "mug": Kind(_mug, 1.05, 0.23, "cylinder"),
    "bottle": Kind(_bottle, 0.36, 0.38, "cylinder"),
    "book": Kind(_book, 0.84, 0.29, "flat", 0.06),
    "box": Kind(_box, 1.15, 0.26, "flat"),
    "apple": Kind(_apple, 1.0, 0.2, "sphere", 0.12),
    "banana": Kind(_banana, 1.78, 0.15, "flat", 0.25),
    "lamp": Kind(_lamp, 0.66, 0.37, "cylinder"),
    "bowl": Kind(_bowl, 1.8, 0.16, "cylinder"),
    "vase": Kind(_vase, 0.72, 0.35, "cylinder"),
    "clock": Kind(_clock, 0.9, 0.25, "flat", 0.05),
    "chair": Kind(_chair, 0.72, 0.38, "flat"),
    "umbrella": Kind(_umbrella, 1.1, 0.34, "sphere", 0.12),
    "hat": Kind(_hat, 1.8, 0.17, "cylinder", 0.08),
    "pillow": Kind(_pillow, 1.3, 0.22, "sphere", 0.15),
    "shoe": Kind(_shoe, 1.77, 0.17, "flat", 0.04),
}
