from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from cris_edge.benchmark.scatter import Point, draw

SVG = "{http://www.w3.org/2000/svg}"


def plot(*points: Point) -> ElementTree.Element:
    return ElementTree.fromstring(draw(points, title="A < B", x_title="ms", y_title="mIoU"))


def texts(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def marks(root: ElementTree.Element) -> list[tuple[float, float]]:
    """The circles of the plot, without those of the legend."""
    found = [(float(mark.attrib["cx"]), float(mark.attrib["cy"])) for mark in root.iter(f"{SVG}circle")]
    return [position for position in found if position[0] <= 640]


def test_faster_is_left_and_better_is_up() -> None:
    root = plot(
        Point("slow & good", "one", 100.0, 90.0, 110.0, 70.0),
        Point("fast & bad", "one", 10.0, 9.0, 11.0, 60.0),
    )
    (fast_x, fast_y), (slow_x, slow_y) = marks(root)
    assert fast_x < slow_x
    assert slow_y < fast_y  # up is a smaller y
    assert {"A < B", "fast & bad: 10, 60.0", "slow & good: 100, 70.0"} <= set(texts(root))


@pytest.mark.parametrize("value", [0.3, 1.0, 4.7, 99.9, 100.0, 12345.0])
def test_every_point_lies_inside_the_axes(value: float) -> None:
    ((x, y),) = marks(plot(Point("a", "one", value, value, value, 50.0)))
    assert 64 < x < 640
    assert 48 < y < 424


def test_numbers_of_equal_points_do_not_cover_each_other() -> None:
    root = plot(*(Point(f"case {number}", "one", 10.0, 9.0, 11.0, 50.0) for number in range(5)))
    rows = sorted(
        float(text.attrib["y"])
        for text in root.iter(f"{SVG}text")
        if text.attrib["font-weight"] == "bold" and text.attrib["text-anchor"] == "middle"
    )
    assert len(rows) == 5
    assert all(below - above >= 13 for above, below in pairwise(rows))


def test_groups_are_distinguishable() -> None:
    root = plot(*(Point(name, name, 10.0, 9.0, 11.0, 50.0) for name in ("a", "b")))
    assert len(marks(root)) == 1
    numbers = [text for text in root.iter(f"{SVG}text") if text.text in ("1", "2")]
    assert len({number.attrib["fill"] for number in numbers}) == 2
