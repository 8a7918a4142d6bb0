"""Examples from layouts: human sentences about a box of a photo that is not there, among boxes that could be.

The object meant is real, and so are the other persons of its photo. Other objects are not annotated; they are drawn so
that the sentence stays true: objects of the same kind lie where its words allow, objects of other kinds anywhere. What
the detector would say of each box is drawn from its real detections of that class.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from training.data.photos import Layout
from training.model.nanodet import CLASSES
from training.phrases.edits import mirror, shorten, word_set, words
from training.phrases.nouns import Lexicon
from training.selection.examples import Bank, Example

PERSON = CLASSES.index("person")
_SMALLEST = 0.0012  # share of the photo below which an annotated person is left out
_MOST_PERSONS = 14
_APART = 0.06  # by how much a rival must differ where the sentence compares
_RELATIVE = word_set(
    "second third fourth 2nd 3rd 4th next between behind beside near by under above with holding on from "
    "middle center centre"
)

Box = tuple[float, float, float, float]
Rule = Callable[[Box, Box], bool]


def _x(box: Box) -> float:
    return (box[0] + box[2]) / 2


def _y(box: Box) -> float:
    return (box[1] + box[3]) / 2


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


_RULES: tuple[tuple[frozenset[str], Rule], ...] = (
    (frozenset(("left", "leftmost", "lefthand")), lambda own, other: _x(other) > _x(own) + _APART),
    (frozenset(("right", "rightmost", "righthand")), lambda own, other: _x(other) < _x(own) - _APART),
    (frozenset(("top", "upper")), lambda own, other: _y(other) > _y(own) + _APART),
    (frozenset(("bottom", "lower")), lambda own, other: _y(other) < _y(own) - _APART),
    (
        word_set("big bigger biggest large larger largest tall taller tallest"),
        lambda own, other: _area(other) < 0.7 * _area(own),
    ),
    (word_set("small smaller smallest little baby tiny"), lambda own, other: _area(other) > 1.4 * _area(own)),
    (word_set("front closest closer nearest foreground"), lambda own, other: other[3] < own[3] - _APART),
    (word_set("back background farthest furthest"), lambda own, other: other[3] > own[3] + _APART),
)
"""Words that compare, and whether a rival leaves them true of the object meant."""


@dataclass(frozen=True, kw_only=True)
class PlacedLayout:
    """A layout whose object has a known class, in shares of the photo's sides."""

    sentence: str
    kind: int
    box: Box
    persons: tuple[Box, ...]
    aspect: float


def place_layouts(layouts: Sequence[Layout], lexicon: Lexicon) -> list[PlacedLayout]:
    """Keep the layouts whose object's class is labelled or told by the sentence's head noun."""
    placed = []
    for one in layouts:
        category = "person" if one.person else lexicon.category(one.sentence)
        if category not in CLASSES or (category == "person" and not one.person):
            continue
        kind = CLASSES.index(category)

        def share(box: Box, width: float = one.width, height: float = one.height) -> Box:
            return box[0] / width, box[1] / height, min(1.0, box[2] / width), min(1.0, box[3] / height)

        own = share(one.box)
        persons = [share(box) for box in one.person_boxes or ()]
        persons = [box for box in persons if _area(box) > _SMALLEST and not (kind == PERSON and _iou(box, own) > 0.7)]
        persons.sort(key=_area, reverse=True)
        placed.append(
            PlacedLayout(
                sentence=" ".join(words(one.sentence)) or one.sentence,
                kind=kind,
                box=own,
                persons=tuple(persons[:_MOST_PERSONS]),
                aspect=one.width / one.height,
            )
        )
    return placed


class LayoutExamples:
    """Turns placed layouts into examples.

    Args:
        placed: the layouts.
        bank: real detections, whose class probabilities stand for those of the boxes.
        photos: indices of the bank's photos that may lend probabilities.
    """

    def __init__(self, placed: Sequence[PlacedLayout], bank: Bank, photos: Sequence[int]) -> None:
        self._placed = list(placed)
        self._others = [(one.kind, one.box) for one in placed if one.kind != PERSON]
        allowed = np.zeros(len(bank.boxes), bool)
        for photo in photos:
            start = int(bank.start[photo])
            allowed[start : start + int(bank.detected[photo])] = True
        kinds, scores = bank.row_class.numpy(), bank.row_score.numpy()
        self._of_kind = {k: np.flatnonzero(allowed & (kinds == k) & (scores > 0.2)) for k in range(len(CLASSES))}
        self._weak = np.flatnonzero(allowed & (scores < 0.2))
        self._weak_of_kind = {k: np.flatnonzero(allowed & (kinds == k) & (scores < 0.3)) for k in range(len(CLASSES))}

    def make(self, one: PlacedLayout, rng: random.Random, *, augment: bool = True) -> Example | None:
        """Make one example; without ``augment`` only the annotated boxes take part."""
        if not len(self._of_kind[one.kind]):
            return None
        found = set(one.sentence.split())
        boxes: list[tuple[int, Box]] = [(one.kind, one.box), *((PERSON, box) for box in one.persons)]
        if augment and one.kind != PERSON:
            self._add_rivals(one, found, boxes, rng)
        elif augment and rng.random() < 0.6:
            self._add_others(boxes, rng.choice((1, 2, 3)), rng, most=0.5)
        rows = [self._row(kind, rng) for kind, _ in boxes]
        placed = [box for _, box in boxes]
        if augment and len(self._weak):
            for _ in range(rng.randrange(12)):  # weak detections: parts and shifted copies, and boxes around nothing
                kind, box = rng.choice(boxes)
                if rng.random() < 0.7:
                    box = self._part(box, rng) if rng.random() < 0.6 else self._shifted(box, rng)
                    weak = self._weak_of_kind[kind] if rng.random() < 0.7 else self._weak
                else:
                    box, weak = rng.choice(self._others)[1] if self._others else box, self._weak
                if _iou(box, one.box) < 0.45 and len(weak):
                    placed.append(box)
                    rows.append(int(weak[rng.randrange(len(weak))]))
        sentence, array = one.sentence, np.array(placed, np.float32).clip(0, 1)
        if augment:
            swapped = mirror(sentence) if rng.random() < 0.5 else None
            if swapped is not None:
                sentence, array = swapped, array[:, [2, 1, 0, 3]]
                array[:, [0, 2]] = 1 - array[:, [0, 2]]
            if rng.random() < 0.3:
                sentence = shorten(sentence, rng)
        return Example(
            rows=rows,
            targets=[1.0] + [0.0] * (len(rows) - 1),
            none=0.0,
            sentence=sentence,
            aspect=one.aspect,
            boxes=array,
        )

    def all(self, rng: random.Random, variants: int = 1) -> list[Example]:
        """Make ``variants`` examples of each layout."""
        made = [self.make(one, rng) for _ in range(variants) for one in self._placed]
        return [one for one in made if one is not None]

    def plain(self, rng: random.Random) -> list[Example]:
        """Make one example of each layout of a person among others, as annotated."""
        chosen = [one for one in self._placed if one.kind == PERSON and one.persons]
        made = [self.make(one, rng, augment=False) for one in chosen]
        return [one for one in made if one is not None]

    def _row(self, kind: int, rng: random.Random) -> int:
        rows = self._of_kind[kind]
        return int(rows[rng.randrange(len(rows))]) if len(rows) else int(rng.choice(self._weak))

    def _add_rivals(self, one: PlacedLayout, found: set[str], boxes: list[tuple[int, Box]], rng: random.Random) -> None:
        """Add objects of the same kind where the sentence allows, and others anywhere."""
        rules = [rule for names, rule in _RULES if names & found]
        relative = bool(found & _RELATIVE)
        for _ in range(rng.choice((0, 0, 1)) if relative else rng.choice((0, 1, 1, 2, 3))):
            if rng.random() < 0.65:
                if not rules and rng.random() < 0.6:
                    continue  # nothing in the sentence tells it from a rival but its looks
                width = (one.box[2] - one.box[0]) * math.exp(rng.gauss(0, 0.3))
                height = (one.box[3] - one.box[1]) * math.exp(rng.gauss(0, 0.3))
                x, y = rng.random(), min(1.0, max(0.0, rng.gauss(_y(one.box), 0.2)))
                rival = _clip((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
                if not all(rule(one.box, rival) for rule in rules):
                    continue
                if _area(rival) > 1e-3 and all(_iou(rival, box) < 0.4 for _, box in boxes):
                    boxes.append((one.kind, rival))
            else:
                self._add_others(boxes, 1, rng, most=0.4, kind=one.kind)

    def _add_others(
        self, boxes: list[tuple[int, Box]], count: int, rng: random.Random, *, most: float, kind: int | None = None
    ) -> None:
        """Add objects of other layouts, of another kind than ``kind``."""
        for _ in range(count if self._others else 0):
            other, box = rng.choice(self._others)
            if other != kind and all(_iou(box, placed) < most for _, placed in boxes):
                boxes.append((other, box))

    @staticmethod
    def _part(box: Box, rng: random.Random) -> Box:
        """Return a part of a box, as a detector finds the upper half of a person."""
        left, top, right, bottom = box
        width, height = (right - left) * rng.uniform(0.5, 1.0), (bottom - top) * rng.uniform(0.3, 0.7)
        x = left + rng.random() * (right - left - width)
        y = top + rng.choice((0.0, rng.random(), 1.0)) * (bottom - top - height)
        return x, y, x + width, y + height

    @staticmethod
    def _shifted(box: Box, rng: random.Random) -> Box:
        width, height = box[2] - box[0], box[3] - box[1]
        by = [rng.gauss(0, 0.25) * side for side in (width, height, width, height)]
        moved = (box[0] + by[0], box[1] + by[1], box[2] + by[2], box[3] + by[3])
        return _clip(
            (min(moved[0], moved[2]), min(moved[1], moved[3]), max(moved[0], moved[2]), max(moved[1], moved[3]))
        )


def _clip(box: Box) -> Box:
    left, top, right, bottom = (min(1.0, max(0.0, side)) for side in box)
    return left, top, right, bottom


def _iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / max(_area(a) + _area(b) - width * height, 1e-9)
