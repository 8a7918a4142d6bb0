"""Scatter plots of accuracy against latency, as SVG written without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

_WIDTH, _HEIGHT = 1080, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 440, 48, 56  # margins; the right one holds the legend
# Distinguishable with every kind of colour vision (Okabe and Ito), and in grey by shape.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_GREY, _INK = "#d8d8dc", "#24242a"
_FONT = "font-family='system-ui, Helvetica, Arial, sans-serif'"


@dataclass(frozen=True)
class Point:
    """One case: `x` with its interval `low` to `high`, and `y`; a `group` shares colour and shape."""

    label: str
    group: str
    x: float
    low: float
    high: float
    y: float


def draw(points: Sequence[Point], *, title: str, x_title: str, y_title: str) -> str:
    """Draw the plot as SVG, with a logarithmic x axis and a legend numbered from the fastest point.

    Args:
        points: At least one; x above 0.
        title: Title of the plot.
        x_title: Title of the x axis, with its unit.
        y_title: Title of the y axis, with its unit.
    """
    xs = _logarithmic_ticks(min(point.low for point in points), max(point.high for point in points))
    ys = _linear_ticks(min(point.y for point in points), max(point.y for point in points))

    def across(value: float) -> float:
        share = (log10(value) - log10(xs[0])) / (log10(xs[-1]) - log10(xs[0]))
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def up(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - ys[0]) / (ys[-1] - ys[0]) * (_HEIGHT - _TOP - _BOTTOM)

    size = f"viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' height='{_HEIGHT}'"
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' {size}>",
        f"<rect width='{_WIDTH}' height='{_HEIGHT}' fill='#ffffff'/>",
        _text(_LEFT, 22, title, size=15, weight="bold"),
        _text(_LEFT, 40, y_title, size=12),
        _text(_WIDTH - _RIGHT, _HEIGHT - 14, x_title, anchor="end", size=12),
    ]
    for value in xs:
        parts.append(_line(across(value), _TOP, across(value), _HEIGHT - _BOTTOM))
        parts.append(_text(across(value), _HEIGHT - _BOTTOM + 18, f"{value:g}", anchor="middle", size=12))
    for value in ys:
        parts.append(_line(_LEFT, up(value), _WIDTH - _RIGHT, up(value)))
        parts.append(_text(_LEFT - 8, up(value) + 4, f"{value:g}", anchor="end", size=12))
    groups = list(dict.fromkeys(point.group for point in points))
    taken: list[tuple[float, float]] = []
    for number, point in enumerate(sorted(points, key=lambda point: (point.x, -point.y)), start=1):
        group = groups.index(point.group)
        colour, x, y = _COLOURS[group % len(_COLOURS)], across(point.x), up(point.y)
        row = _TOP + 12 + 22 * (number - 1)
        figures = f"{point.x:.3g}, {point.y:.1f}"
        parts += [
            _line(across(point.low), y, across(point.high), y, colour, 2),
            _mark(group, x, y, colour),
            _text(x, _free(x, y - 9, taken), str(number), anchor="middle", size=12, weight="bold", colour=colour),
            _mark(group, _WIDTH - _RIGHT + 48, row - 4, colour),
            _text(_WIDTH - _RIGHT + 38, row, str(number), anchor="end", size=12, weight="bold", colour=colour),
            _text(_WIDTH - _RIGHT + 60, row, f"{point.label}: {figures}", size=12),
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _free(x: float, y: float, taken: list[tuple[float, float]]) -> float:
    """Return a height for a number above its point that overlaps no earlier number, and reserve it."""
    while any(abs(x - column) < 14 and abs(y - row) < 13 for column, row in taken):
        y -= 1
    taken.append((x, y))
    return y


def _mark(number: int, x: float, y: float, colour: str) -> str:
    shape = number % 3
    if shape == 0:
        return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='5' fill='{colour}'/>"
    if shape == 1:
        return f"<rect x='{x - 4.5:.1f}' y='{y - 4.5:.1f}' width='9' height='9' fill='{colour}'/>"
    corners = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y + 5:.1f} {x - 6:.1f},{y + 5:.1f}"
    return f"<polygon points='{corners}' fill='{colour}'/>"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = _GREY, width: int = 1) -> str:
    ends = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
    return f"<line {ends} stroke='{colour}' stroke-width='{width}'/>"


def _text(
    x: float, y: float, text: str, *, size: int, anchor: str = "start", weight: str = "normal", colour: str = _INK
) -> str:
    style = f"font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' fill='{colour}' {_FONT}"
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{escape(text)}</text>"


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5, 10, 20, … from below `low` to above `high`."""
    ticks = [
        factor * 10.0**power for power in range(floor(log10(low)) - 1, floor(log10(high)) + 2) for factor in (1, 2, 5)
    ]
    first = max(index for index, tick in enumerate(ticks) if tick < low)
    last = min(index for index, tick in enumerate(ticks) if tick > high)
    return ticks[first : last + 1]


def _linear_ticks(low: float, high: float) -> list[float]:
    """Return about five round, evenly spaced numbers from below `low` to above `high`."""
    span = max(high - low, 0.05 * abs(high), 1e-9)  # so that negligible differences do not fill the plot
    size = 10.0 ** floor(log10(span / 4))
    step = size * next(factor for factor in (1, 2, 5, 10) if factor * size >= span / 4)
    first, last = floor(low / step - 0.15), floor(high / step + 0.15) + 1
    return [round(index * step, 10) for index in range(first, last + 1)]
