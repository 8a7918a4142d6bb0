"""Background of a scene: ground, wall, clutter, shadows, and the camera's light, blur and noise."""

from __future__ import annotations

from functools import cache
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Tone = tuple[int, int, int]

GROUNDS: tuple[tuple[str, Tone, Tone], ...] = (  # texture, darkest tone, lightest tone
    ("planks", (134, 98, 66), (206, 170, 128)),
    ("planks", (172, 146, 112), (232, 212, 180)),
    ("planks", (92, 74, 62), (150, 126, 106)),
    ("planks", (150, 148, 144), (206, 204, 198)),
    ("tiles", (158, 156, 150), (222, 220, 212)),
    ("tiles", (120, 130, 136), (186, 196, 200)),
    ("carpet", (150, 142, 126), (206, 198, 182)),
    ("carpet", (104, 112, 122), (164, 172, 180)),
    ("carpet", (142, 120, 112), (196, 176, 166)),
    ("cloth", (168, 176, 184), (226, 230, 234)),
    ("cloth", (186, 170, 150), (232, 222, 206)),
    ("marble", (172, 170, 170), (228, 226, 222)),
    ("marble", (96, 98, 102), (160, 160, 162)),
)
WALLS: tuple[Tone, ...] = (
    (214, 208, 196), (190, 198, 200), (172, 184, 172), (204, 190, 178), (168, 174, 190), (224, 222, 216),
    (148, 146, 144), (196, 186, 160),
)  # fmt: skip
_BANK = 768


def _noise(rng: np.random.Generator, rows: float, columns: float) -> NDArray[np.float32]:
    """Smooth noise between 0 and 1 with features of about rows x columns pixels."""
    shape = (max(2, round(_BANK / rows)), max(2, round(_BANK / columns)))
    field = cv2.resize(rng.random(shape, dtype=np.float32), (_BANK, _BANK), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 0, 1)


@cache
def _texture(name: str) -> Image:
    """A (768, 768) uint8 texture, the same on every machine."""
    rng = np.random.default_rng([len(name), *name.encode()])
    y, x = np.mgrid[0:_BANK, 0:_BANK]
    if name == "planks":
        row = y // 48
        field = 0.35 * _noise(rng, 3, 90) + 0.3 * _noise(rng, 7, 200)
        field += 0.35 * rng.random(17, dtype=np.float32)[row]
        seam = (y % 48 < 2) | ((x + row * 149) % 310 < 2)
        field = np.where(seam, 0.02, field)
    elif name == "tiles":
        field = 0.72 + 0.1 * _noise(rng, 4, 4) + 0.18 * rng.random((13, 13), dtype=np.float32)[y // 64, x // 64]
        field = np.where((y % 64 < 3) | (x % 64 < 3), 0.1, field)
    elif name == "carpet":
        field = 0.55 * _noise(rng, 2, 2) + 0.25 * _noise(rng, 5, 5) + 0.2 * _noise(rng, 90, 90)
    elif name == "cloth":
        field = 0.6 + 0.12 * np.sin(x * np.pi / 2) * np.sin(y * np.pi / 2) + 0.3 * (_noise(rng, 60, 120) - 0.3)
    else:
        warp = 40 * _noise(rng, 60, 60) + 12 * _noise(rng, 14, 14)
        field = 0.25 + 0.5 * np.abs(np.sin((x * 0.6 + y + warp * 6) / 60)) ** 0.35 + 0.25 * _noise(rng, 25, 25)
    return np.asarray(np.clip(field, 0, 1) * 255, dtype=np.uint8)


@cache
def _light() -> NDArray[np.float32]:
    """A (256, 256) light field, from 1 in the upper left to 0 in the lower right, slightly curved."""
    y, x = np.mgrid[0:256, 0:256].astype(np.float32) / 255
    return np.asarray(1 - (0.55 * x + 0.45 * y) ** 1.2, dtype=np.float32)


@cache
def _grain() -> NDArray[np.int16]:
    """Sensor noise (512, 512, 3) of standard deviation 64, mostly shared by the three channels."""
    rng = np.random.default_rng(20)
    grey, tint = rng.normal(0, 56, (512, 512, 1)), rng.normal(0, 30, (512, 512, 3))
    return np.asarray(grey + tint, dtype=np.int16)


def _crop(bank: NDArray[np.uint8], height: int, width: int, rng: Random) -> Image:
    rows, columns = min(height, _BANK), min(width, _BANK)
    y, x = rng.randint(0, _BANK - rows), rng.randint(0, _BANK - columns)
    part = bank[y : y + rows, x : x + columns]
    return part if (rows, columns) == (height, width) else np.asarray(cv2.resize(part, (width, height)), dtype=np.uint8)


def backdrop(height: int, width: int, rng: Random) -> tuple[Image, int]:
    """Draw the wall and the ground.

    Returns:
        The image, (H, W, 3) uint8 RGB, and the row where the ground begins (0 without a wall).
    """
    name, dark, light = rng.choice(GROUNDS)
    horizon = 0 if rng.random() < 0.35 else round(height * rng.uniform(0.14, 0.36))
    depth = height - horizon
    far = rng.uniform(0.35, 0.8) if horizon else rng.uniform(0.75, 1.0)  # width of the far edge: perspective
    zoom = rng.uniform(0.8, 1.6) * 320 / width
    gray = _crop(_texture(name), min(_BANK, round(depth * zoom * 1.4)), min(_BANK, round(width * zoom * 1.3)), rng)
    if rng.random() < 0.3:
        gray = np.flip(gray, rng.choice((0, 1)))
    rows, columns = gray.shape
    shift = rng.uniform(-0.15, 0.15) * columns
    left, right = columns * (0.5 - far / 2), columns * (0.5 + far / 2)
    source = np.array([[shift * 0.3, 0], [columns + shift * 0.3, 0], [right, rows], [left, rows]], dtype=np.float32)
    target = np.array([[0, 0], [width, 0], [width, depth], [0, depth]], dtype=np.float32)
    matrix = cv2.getPerspectiveTransform(source, target)
    ground = cv2.warpPerspective(gray, matrix, (width, depth), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    ramp = np.linspace(0, 1, 256)[:, None]
    table = np.asarray(np.array(dark) + ramp * (np.array(light) - np.array(dark)), dtype=np.uint8).reshape(256, 1, 3)
    image = np.empty((height, width, 3), np.uint8)
    image[horizon:] = cv2.LUT(cv2.merge([ground, ground, ground]), table)
    if horizon:
        wall = rng.choice(WALLS)
        image[:horizon] = wall
        style = rng.random()
        if style < 0.25:
            step = rng.randint(14, 40)
            for x in range(rng.randrange(step), width, step):
                cv2.line(image[:horizon], (x, 0), (x, horizon), tuple(int(c * 0.93) for c in wall), 2, cv2.LINE_AA)
        elif style < 0.4:
            x0 = rng.randint(0, width // 2)
            x1 = x0 + rng.randint(width // 6, width // 3)
            pane = image[: max(1, horizon - 8)]
            cv2.rectangle(pane, (x0, -4), (x1, horizon - 14), (206, 222, 232), -1)
            cv2.rectangle(pane, (x0, -4), (x1, horizon - 14), (240, 240, 238), 3)
            cv2.line(pane, ((x0 + x1) // 2, 0), ((x0 + x1) // 2, horizon - 14), (240, 240, 238), 2)
        band = max(2, height // 60)
        factor = rng.uniform(0.55, 1.12)
        board = tuple(min(255, int(c * factor)) for c in wall)
        cv2.rectangle(image, (0, horizon - band), (width, horizon), board, -1)
        cv2.line(image, (0, horizon), (width, horizon), tuple(int(c * 0.6) for c in dark), 1)
    return image, horizon


def clutter(image: Image, x: int, y: int, unit: float, rng: Random) -> tuple[int, int]:
    """Draw a small neutral item flat on the ground at (x, y); return its (width, height)."""
    style = rng.randrange(4)
    tone = rng.choice(((168, 164, 158), (120, 118, 116), (212, 206, 196), (92, 90, 90)))
    if style == 0:  # coins
        for _ in range(rng.randint(1, 3)):
            at = (x + rng.randint(-6, 6), y + rng.randint(-2, 2))
            cv2.ellipse(image, at, (round(4 * unit), round(2.2 * unit)), 0, 0, 360, (98, 94, 88), -1, cv2.LINE_AA)
            at = (at[0], at[1] - 1)
            cv2.ellipse(image, at, (round(4 * unit), round(2.2 * unit)), 0, 0, 360, (176, 172, 160), -1, cv2.LINE_AA)
        return round(20 * unit), round(8 * unit)
    if style == 1:  # a pencil
        dx, dy = round(rng.uniform(-14, 14) * unit), round(rng.uniform(-5, 5) * unit)
        cv2.line(image, (x - dx, y - dy + 2), (x + dx, y + dy + 2), (80, 76, 72), 2, cv2.LINE_AA)
        cv2.line(image, (x - dx, y - dy), (x + dx, y + dy), tone, 2, cv2.LINE_AA)
        return 2 * abs(dx) + 4, 2 * abs(dy) + 4
    if style == 2:  # a sheet of paper
        a, b, s = 11 * unit, 6 * unit, rng.uniform(-7, 7) * unit
        sheet = np.array([[x - a + s, y - b], [x + a + s, y - b * 0.7], [x + a - s, y + b], [x - a - s, y + b * 0.8]])
        cv2.fillPoly(image, [(sheet * 16 + (12, 24)).astype(np.int32)], (112, 108, 104), cv2.LINE_AA, 4)
        cv2.fillPoly(image, [(sheet * 16).astype(np.int32)], (228, 226, 220), cv2.LINE_AA, 4)
        return round(2 * a), round(2 * b)
    points = np.array([[x + k * 5 * unit, y + rng.uniform(-4, 4) * unit] for k in range(-3, 4)])
    cv2.polylines(image, [(points * 16).astype(np.int32)], False, tone, 1, cv2.LINE_AA, 4)  # a piece of string
    return round(32 * unit), round(9 * unit)


def cast_shadows(image: Image, feet: list[tuple[float, float, float, float]], rng: Random) -> None:
    """Darken the ground under objects, each (x, ground, width, height); light comes from the upper left."""
    height, width = image.shape[:2]
    h, w = (height + 3) // 4, (width + 3) // 4
    layer = np.zeros((h, w), np.uint8)
    strength, reach = rng.uniform(0.3, 0.6), rng.uniform(0.12, 0.3)
    for x, y, wide, tall in feet:
        centre = (round((x + reach * tall * 0.6) * 4), round((y - 0.04 * wide) * 4))
        axes = (round((wide * 0.52 + reach * tall * 0.5) * 4), round(max(2.0, 0.13 * wide + 0.03 * tall) * 4))
        cv2.ellipse(layer, centre, axes, 0, 0, 360, round(255 * strength), -1, cv2.LINE_8, 4)
    soft = cv2.GaussianBlur(layer, (0, 0), rng.uniform(1.0, 2.2) * height / 240)
    keep = 255 - cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR)
    cv2.multiply(image, cv2.merge([keep, keep, keep]), dst=image, scale=1 / 255)


def camera(image: Image, rng: Random) -> Image:
    """Apply a light gradient, brightness, a warm or cold tint, mild blur and noise."""
    height, width = image.shape[:2]
    field = _light()
    side = rng.randrange(3)
    if side:
        field = np.flip(field, side - 1)
    fall, level = rng.uniform(0.05, 0.4), rng.uniform(0.82, 1.12)
    gain = cv2.resize(field, (width, height)) * fall + (level - fall * 0.6)
    warm = rng.uniform(-0.05, 0.05)
    gains = cv2.merge([gain * (1 + warm), gain, gain * (1 - warm)])
    lit = cv2.multiply(image, gains, dtype=cv2.CV_8U)
    if rng.random() < 0.5:
        sigma = rng.uniform(0.35, 0.85) * height / 240
        lit = cv2.GaussianBlur(lit, (0, 0) if sigma > 1 else (3, 3), sigma)
    grain = _grain()
    if height <= 512 and width <= 512:
        y, x = rng.randint(0, 512 - height), rng.randint(0, 512 - width)
        part = grain[y : y + height, x : x + width]
    else:
        part = np.tile(grain, (height // 512 + 1, width // 512 + 1, 1))[:height, :width]
    shift = rng.choice((4, 5, 5, 6))  # standard deviation 4, 2, 2 or 1 grey levels
    return np.asarray(cv2.add(lit, part >> shift, dtype=cv2.CV_8U), dtype=np.uint8)
