"""What the sentence engine knows about the objects of a photo."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object of a scene.

    Attributes:
        category: its class; things of one category are rivals for a sentence.
        box: left, top, right, bottom as shares of the photo's width and height.
        names: nouns that people used for this very object, besides those of its category.
        colour: colour of the whole object; None where no colour stands out.
        upper: colour of a person's upper clothing, or None.
        lower: colour of a person's lower clothing, or None.
        sure: False for an object that may not be there: no sentence is about it, but no sentence may fit it either.
    """

    category: str
    box: tuple[float, float, float, float]
    names: tuple[str, ...] = ()
    colour: str | None = None
    upper: str | None = None
    lower: str | None = None
    sure: bool = True

    @cached_property
    def centre(self) -> tuple[float, float]:
        """Centre of the box."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @cached_property
    def area(self) -> float:
        """Share of the photo that the box covers."""
        return max(0.0, self.box[2] - self.box[0]) * max(0.0, self.box[3] - self.box[1])


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The objects of a photo, ready to be described.

    Attributes:
        things: every object that a sentence could be taken to mean.
        countable: categories of which every object is among ``things``; None when that holds for all. Sentences whose
            truth depends on the others of a kind are only made for these.
    """

    things: tuple[Thing, ...]
    countable: frozenset[str] | None = None

    def complete(self, category: str) -> bool:
        """Whether all objects of a category are known."""
        return self.countable is None or category in self.countable


def overlap(a: Thing, b: Thing) -> float:
    """Return the share of ``a``'s box that lies inside ``b``'s."""
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    return max(0.0, width) * max(0.0, height) / max(a.area, 1e-9)
