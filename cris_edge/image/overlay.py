"""Overlays: an image with the object highlighted, outlined and labelled with its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ACCENT = (255, 64, 112)  # RGB; a red-pink that is rare in photos
_TINT = 0.24  # weight of the accent colour inside the mask
_SHADE = 0.6  # brightness outside the mask
_INK = (255, 255, 255)
_PLATE = (24, 24, 28)


def draw_overlay(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    caption: str = "",
    note: str = "",
    *,
    accent: tuple[int, int, int] = ACCENT,
) -> NDArray[np.uint8]:
    """Draw a mask on its image.

    Args:
        image: (H, W, 3) uint8 RGB; not modified.
        mask: (H, W) bool. An empty mask leaves the brightness unchanged.
        caption: One line of text; shortened to the width of the image, omitted where it would be illegible.
        note: A few words after the caption that are never shortened, such as a score.
        accent: Colour of tint and outline, RGB.

    Returns:
        (H, W, 3) uint8 RGB, of the same resolution.
    """
    import cv2

    height, width = mask.shape
    # Line width and text size scale with the image, so that a thumbnail and a poster look alike.
    unit = max(1.0, (height * width) ** 0.5 / 400)
    canvas: NDArray[np.uint8] = image.copy()
    box: Sequence[int] | None = None
    if mask.any():
        inside = mask.view(np.uint8)
        shaded = cv2.convertScaleAbs(image, alpha=_SHADE)
        tinted = cv2.addWeighted(image, 1 - _TINT, np.full_like(image, accent), _TINT, 0)
        # A soft edge hides the mask's aliasing; the outline is drawn over it.
        width_of_edge = 2 * round(0.7 * unit) + 1
        canvas = _blend(shaded, tinted, cv2.blur(inside * np.uint8(255), (width_of_edge, width_of_edge)))
        outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        # Thick lines cost time per point, so a poster's outline must not have one per pixel.
        outlines = [cv2.approxPolyDP(outline, 0.3 * unit, closed=True) for outline in outlines]
        cv2.drawContours(canvas, outlines, -1, _INK, round(3.2 * unit), cv2.LINE_AA)
        cv2.drawContours(canvas, outlines, -1, accent, max(1, round(1.6 * unit)), cv2.LINE_AA)
        box = cv2.boundingRect(inside)
    if caption or note:
        _write(canvas, caption, note, box, unit)
    return np.asarray(canvas, np.uint8)


def _blend(under: NDArray[Any], over: NDArray[Any], weight: NDArray[Any]) -> NDArray[np.uint8]:
    import cv2

    # In bytes, not floats: a poster has a hundred million pixels.
    share, rest = cv2.merge([weight] * 3), cv2.merge([~weight] * 3)
    return np.asarray(
        cv2.add(cv2.multiply(over, share, scale=1 / 255), cv2.multiply(under, rest, scale=1 / 255)), np.uint8
    )


def _write(canvas: NDArray[np.uint8], caption: str, note: str, box: Sequence[int] | None, unit: float) -> None:
    """Write one line of text on a dark plate: above the box if there is room, else below it, else at the top."""
    import cv2

    height, width = canvas.shape[:2]
    font, scale, weight = cv2.FONT_HERSHEY_DUPLEX, 0.5 * unit, max(1, round(unit))
    margin = round(6 * unit)

    def extent(line: str) -> tuple[int, int]:
        (columns, rows), below = cv2.getTextSize(line, font, scale, weight)
        return columns, rows + below

    text = _fit(caption, note, width - 4 * margin, lambda line: extent(line)[0])
    columns, rows = extent(text)
    if not text or rows + 4 * margin > height:
        return
    plate_height = rows + 2 * margin
    left, top = margin, margin
    if box is not None:
        left = int(np.clip(box[0], margin, width - columns - 3 * margin))
        above = box[1] - plate_height - 2 * margin
        below = box[1] + box[3] + 2 * margin
        if above >= 0:
            top = above
        elif below + plate_height + margin <= height:
            top = below
    right, bottom = left + columns + 2 * margin, top + plate_height
    plate = canvas.copy()
    radius = min(margin, plate_height // 2)
    cv2.rectangle(plate, (left + radius, top), (right - radius, bottom), _PLATE, -1)
    cv2.rectangle(plate, (left, top + radius), (right, bottom - radius), _PLATE, -1)
    for x in (left + radius, right - radius):
        for y in (top + radius, bottom - radius):
            cv2.circle(plate, (x, y), radius, _PLATE, -1, cv2.LINE_AA)
    region = np.s_[top : bottom + 1, left : right + 1]
    canvas[region] = cv2.addWeighted(plate[region], 0.78, canvas[region], 0.22, 0)
    baseline = cv2.getTextSize(text, font, scale, weight)[1]
    cv2.putText(canvas, text, (left + margin, bottom - margin - baseline), font, scale, _INK, weight, cv2.LINE_AA)


def _fit(caption: str, note: str, room: int, measure: Callable[[str], int]) -> str:
    """Join caption and note in one line of at most `room` pixels; empty if not even the note fits."""
    # OpenCV cannot draw control characters or lone surrogates.
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in caption).split())
    line = f"{text}  {note}".strip()
    while text and measure(line) > room:
        # Shorten in proportion to the excess, so that a text of any length takes a few steps.
        text = text[: max(0, min(len(text) - 1, len(text) * room // measure(line)))]
        line = f"{text.rstrip()}...  {note}" if text else note
    return line if measure(line) <= room else ""
