"""Facts that tell an object from the others of its kind, each with the objects that it could also be taken to fit.

A fact is stated of one thing. ``fits`` is the set of rivals (indices into the scene, the thing included) that a reader
could take it to mean; a sentence that states several facts means the intersection. Margins are wide, so that a sentence
stays true when the boxes are a little off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from training.phrases.edits import word_set
from training.phrases.things import Scene, Thing, overlap

MARGIN = 0.05
"""Share of the photo's side by which centres must differ to be told apart."""
SIZE_RATIO = 1.5
"""Ratio of box areas from which one thing is bigger than another."""
SUPPORTS = frozenset({"dining table", "bed", "couch", "bench", "chair", "table", "desk", "sofa", "plate"})
"""Categories that things stand on."""
CARRIED = word_set(
    "backpack;umbrella;handbag;tie;suitcase;frisbee;skis;snowboard;sports ball;kite;"
    "baseball bat;baseball glove;skateboard;surfboard;tennis racket;bottle;wine glass;cup;knife;"
    "banana;apple;sandwich;hot dog;pizza;donut;cake;laptop;remote;cell phone;book;teddy bear;"
    "toothbrush",
    ";",
)
"""Categories that a person may hold."""
ORDINALS = ("first", "second", "third", "fourth", "fifth")
_SHORT = ("1st", "2nd", "3rd", "4th", "5th")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something true of a thing.

    Attributes:
        kind: ``colour``, ``clothing``, ``side``, ``corner``, ``middle``, ``ordinal``, ``size``, ``depth`` or
            ``relation``.
        fits: indices of the rivals that it may be taken to fit, the thing itself included.
        before: words that may stand before the noun.
        after: words that may stand after it.
        alone: words that may stand without a noun.
    """

    kind: str
    fits: frozenset[int]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()


def facts(scene: Scene, index: int, rivals: Sequence[int], noun: Callable[[Thing], str]) -> list[Fact]:
    """List the facts about one thing.

    Args:
        scene: the photo's objects.
        index: of the thing.
        rivals: indices of all things that the noun could mean, ``index`` included.
        noun: names a landmark, such as the laptop of "cup behind the laptop".
    """
    thing = scene.things[index]
    group = {other: scene.things[other] for other in rivals}
    found = [*_colours(thing, group, index)]
    if scene.complete(thing.category):
        found += [
            *_places(thing, group, index),
            *_ordinals(group, index),
            *_sizes(thing, group, index),
        ]
    found += _relations(scene, index, group, noun)
    return found


def _colours(thing: Thing, group: dict[int, Thing], index: int) -> Iterator[Fact]:
    def fits(attribute: str, colour: str) -> frozenset[int]:
        return frozenset(i for i, other in group.items() if getattr(other, attribute) in (None, colour)) | {index}

    if thing.category != "person":
        if thing.colour:
            c = thing.colour
            yield Fact(kind="colour", fits=fits("colour", c), before=(c,), after=(f"that is {c}", c))
        return
    if thing.upper:
        c = thing.upper
        yield Fact(
            kind="clothing",
            fits=fits("upper", c),
            before=(c, f"{c} shirt", f"{c} shirted"),
            after=(
                f"in {c}",
                f"in {c} shirt",
                f"in the {c} shirt",
                f"wearing {c}",
                f"with {c} top",
                f"{c} shirt",
                f"in a {c} top",
            ),
            alone=(f"{c} shirt", f"{c} top", f"{c}"),
        )
    if thing.lower and thing.lower != thing.upper:
        c = thing.lower
        yield Fact(
            kind="clothing",
            fits=fits("lower", c),
            after=(f"in {c} pants", f"with {c} pants", f"{c} pants", f"wearing {c} shorts"),
            alone=(f"{c} pants",),
        )


def _places(thing: Thing, group: dict[int, Thing], index: int) -> Iterator[Fact]:
    x, y = thing.centre
    xs = {i: other.centre[0] for i, other in group.items()}
    ys = {i: other.centre[1] for i, other in group.items()}
    others = [i for i in group if i != index]
    lefts = frozenset(i for i in group if xs[i] < x + MARGIN)
    rights = frozenset(i for i in group if xs[i] > x - MARGIN)
    tops = frozenset(i for i in group if ys[i] < y + MARGIN)
    bottoms = frozenset(i for i in group if ys[i] > y - MARGIN)
    for word, fits, there, end in (
        ("left", lefts, x < 0.45, x < 0.3),
        ("right", rights, x > 0.55, x > 0.7),
    ):
        extreme = fits == {index} and bool(others)
        if extreme or there:
            yield Fact(
                kind="side",
                fits=fits,
                before=(word, word, f"{word} side"),
                after=(
                    word,
                    f"on {word}",
                    f"on the {word}",
                    f"to the {word}",
                    f"on {word} side",
                    f"at {word}",
                    f"on the {word} side",
                ),
                alone=(word, f"{word} one", f"on {word}", f"{word} side", f"the one on the {word}"),
            )
        if extreme and end:
            yield Fact(
                kind="side",
                fits=fits,
                before=(f"far {word}", f"{word} most", f"{word}most", f"furthest {word}"),
                after=(
                    f"far {word}",
                    f"on far {word}",
                    f"on the far {word}",
                    f"all the way {word}",
                    f"farthest to the {word}",
                ),
                alone=(f"far {word}", f"{word}most", f"on far {word}"),
            )
    for word, other_word, fits, there in (
        ("top", "upper", tops, y < 0.42),
        ("bottom", "lower", bottoms, y > 0.58),
    ):
        if (fits == {index} and others) or there:
            yield Fact(
                kind="side",
                fits=fits,
                before=(word, other_word),
                after=(f"at {word}", f"on {word}", f"at the {word}", f"on the {word}", word),
                alone=(word, f"{word} one", f"{word} most"),
            )
        for side, side_fits, at_side in (("left", lefts, x < 0.45), ("right", rights, x > 0.55)):
            if there and at_side:
                phrase = (f"{word} {side}", f"{other_word} {side}")
                yield Fact(
                    kind="corner",
                    fits=fits & side_fits,
                    before=phrase,
                    after=(*phrase, f"in {word} {side}", f"on the {word} {side}", f"in {other_word} {side} corner"),
                    alone=(*phrase, f"{word} {side} corner"),
                )
    central = abs(x - 0.5) < 0.12
    between = any(xs[i] < x - MARGIN for i in others) and any(xs[i] > x + MARGIN for i in others)
    if central and (between or not others):
        fits = frozenset(i for i in group if abs(xs[i] - 0.5) < abs(x - 0.5) + 2 * MARGIN)
        yield Fact(
            kind="middle",
            fits=fits,
            before=("middle", "center", "the middle"),
            after=("in middle", "in the middle", "in center", "in the center", "middle", "center"),
            alone=("middle", "center", "middle one", "in the middle"),
        )


def _ordinals(group: dict[int, Thing], index: int) -> Iterator[Fact]:
    if len(group) < 3 or not all(thing.sure for thing in group.values()):
        return
    order = sorted(group, key=lambda i: group[i].centre[0])
    xs = [group[i].centre[0] for i in order]
    if min(b - a for a, b in pairwise(xs)) < MARGIN:
        return
    rank = order.index(index)
    if len(group) == 3 and rank == 1:
        yield Fact(
            kind="middle",
            fits=frozenset({index}),
            before=("middle", "center"),
            after=("in middle", "in the middle", "in the center", "middle"),
            alone=("middle", "middle one", "center"),
        )
    for side, count in (("left", rank), ("right", len(group) - 1 - rank)):
        if 1 <= count < len(ORDINALS):
            first = (ORDINALS[count], _SHORT[count])
            yield Fact(
                kind="ordinal",
                fits=frozenset({index}),
                after=tuple(f"{word} from {article}{side}" for word in first for article in ("", "the ")),
                alone=tuple(
                    f"{word} {one}from {article}{side}"
                    for word in first
                    for one in ("", "one ")
                    for article in ("", "the ")
                ),
                before=(),
            )


def _sizes(thing: Thing, group: dict[int, Thing], index: int) -> Iterator[Fact]:
    others = {i: other for i, other in group.items() if i != index}
    if not others:
        return
    pair = len(group) == 2
    big = frozenset(i for i, other in others.items() if thing.area < SIZE_RATIO * other.area) | {index}
    small = frozenset(i for i, other in others.items() if other.area < SIZE_RATIO * thing.area) | {index}
    if big == {index}:
        yield Fact(
            kind="size",
            fits=big,
            before=("bigger", "larger", "big", "large") if pair else ("biggest", "largest", "big"),
            alone=("bigger one", "larger one", "big one") if pair else ("biggest one", "biggest", "largest one"),
        )
    if small == {index}:
        yield Fact(
            kind="size",
            fits=small,
            before=("smaller", "small", "little") if pair else ("smallest", "small", "tiny"),
            alone=("smaller one", "small one") if pair else ("smallest one", "smallest"),
        )
    low = thing.box[3]
    near = frozenset(i for i, o in others.items() if low < o.box[3] + MARGIN or thing.area < 1.2 * o.area) | {index}
    far = frozenset(i for i, o in others.items() if o.box[3] < low + MARGIN or o.area < 1.2 * thing.area) | {index}
    if near == {index}:
        yield Fact(
            kind="depth",
            fits=near,
            before=("front", "closest", "nearest", "closer"),
            after=(
                "in front",
                "closest to camera",
                "closest",
                "closest to us",
                "in the front",
                "in foreground",
                "nearest",
            ),
            alone=("closest one", "front one", "in front", "closest to camera", "the one in front"),
        )
    if far == {index}:
        yield Fact(
            kind="depth",
            fits=far,
            before=("back", "background", "farthest", "far"),
            after=("in back", "in the back", "in background", "in the background", "behind", "farthest away"),
            alone=("back one", "in back", "in the background"),
        )


def _relations(scene: Scene, index: int, group: dict[int, Thing], noun: Callable[[Thing], str]) -> Iterator[Fact]:
    thing = scene.things[index]
    for number, mark in enumerate(scene.things):
        same_kind = sum(other.category == mark.category for other in scene.things)
        if number in group or not mark.sure or same_kind > 1 or not scene.complete(mark.category):
            continue
        for words, holds in _ways(thing, mark):
            fits = frozenset(
                i
                for i, other in group.items()
                if i == index or any(True for w, _ in _ways(other, mark, True) if w == words)
            )
            if holds:
                name = noun(mark)
                yield Fact(
                    kind="relation",
                    fits=fits,
                    after=tuple(f"{word} {a}{name}" for word in words for a in ("", "the ", "a ")),
                )


def _ways(thing: Thing, mark: Thing, loose: bool = False) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield the relations of a thing to a landmark; ``loose`` also yields those that a reader might see."""
    slack = MARGIN if loose else 0.0
    (x, y), (mx, my) = thing.centre, mark.centre
    width = min(thing.box[2], mark.box[2]) - max(thing.box[0], mark.box[0])
    height = min(thing.box[3], mark.box[3]) - max(thing.box[1], mark.box[1])
    inside, around = overlap(thing, mark), overlap(mark, thing)
    level = height > 0.3 * min(thing.box[3] - thing.box[1], mark.box[3] - mark.box[1])
    aligned = width > 0.3 * min(thing.box[2] - thing.box[0], mark.box[2] - mark.box[0])
    gap = max(-width, -height)
    if (level or loose) and x < mx - 2 * MARGIN + slack and width < 0.02 + slack:
        yield ("left of", "to the left of"), True
    if (level or loose) and x > mx + 2 * MARGIN - slack and width < 0.02 + slack:
        yield ("right of", "to the right of"), True
    if (aligned or loose) and thing.box[3] < mark.box[1] + 0.02 + slack:
        yield ("above", "over"), True
    if (aligned or loose) and thing.box[1] > mark.box[3] - 0.02 - slack:
        yield ("below", "under", "beneath"), True
    if gap < 0.06 + slack and (loose or (level and inside < 0.5 and around < 0.5)):
        yield ("next to", "beside", "near", "by"), True
    person, carried = thing.category == "person", mark.category in CARRIED
    standing_on = mark.category in SUPPORTS and not person and thing.area < 0.5 * mark.area + slack
    if standing_on and inside > (0.3 if loose else 0.6) and y < my + slack:
        yield ("on",), True
    holding = carried and person and mark.area < 0.5 * thing.area + slack
    if holding and around > (0.1 if loose else 0.5):
        yield ("with", "holding"), True
    in_depth = not carried and thing.category not in CARRIED  # things that stand on the ground
    hidden = inside > 0.15 - slack and thing.box[3] < mark.box[3] - MARGIN + slack and around < 0.6 + slack
    if in_depth and hidden and mark.category not in SUPPORTS:
        yield ("behind", "in back of"), True
    hiding = around > 0.15 - slack and thing.box[3] > mark.box[3] + MARGIN - slack
    if in_depth and hiding and not person:
        yield ("in front of",), True
