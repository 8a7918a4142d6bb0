"""The meaning of a prompt, and which objects of a scene it matches: yes, no, or too close to call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from training.scenes.scene import Scene, SceneObject

SIDES = ("left", "right", "top", "bottom", "middle", "front", "back")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
SUPERLATIVES = ("largest", "smallest", "tallest")
RELATIONS = ("left of", "right of", "behind", "in front of", "closest to", "next to", "between")
NO, MAYBE, YES = 0, 1, 2


@dataclass(frozen=True)
class Noun:
    """Properties of an object; None leaves a property open."""

    kind: str | None = None
    colour: str | None = None
    pattern: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Query:
    """The meaning of a prompt: the one object that is `noun` and passes the test.

    Attributes:
        noun: Properties of the object.
        test: "" (the noun alone), a side, a corner, "rank", a superlative or a relation.
        rank: For "rank": 1 is the outermost, counted from `side`.
        side: For "rank": "left" or "right".
        anchors: For relations: the other objects, one, or two for "between".
    """

    noun: Noun
    test: str = ""
    rank: int = 0
    side: str = ""
    anchors: tuple[Noun, ...] = ()


def fits(noun: Noun, thing: SceneObject) -> int:
    """Return whether an object is `noun`, regardless of its position; MAYBE for a medium size."""
    if (
        (noun.kind is not None and noun.kind != thing.kind)
        or (noun.colour is not None and noun.colour != thing.colour)
        or (noun.pattern is not None and noun.pattern != thing.pattern)
    ):
        return NO
    if noun.size is not None and noun.size != thing.size:
        return MAYBE if "medium" in (noun.size, thing.size) else NO
    return YES


def _side(test: str, thing: SceneObject, group: Sequence[SceneObject], height: int, width: int) -> int:
    x, y = thing.centre[0] / width, thing.centre[1] / height
    others = [g for g in group if g is not thing]
    if test == "middle":
        spread = [abs(g.centre[0] / width - 0.5) for g in others]
        if abs(x - 0.5) > 0.2:
            return NO
        return YES if abs(x - 0.5) < 0.1 and min(spread, default=1.0) > 0.2 else MAYBE
    if test in ("left", "right"):
        values, mine, gap, outer = [g.centre[0] / width for g in others], x, 0.1, 0.48
    elif test in ("top", "bottom"):
        values, mine, gap, outer = [g.centre[1] / height for g in others], y, 0.12, 0.46
    else:
        values, mine, gap, outer = [g.ground / height for g in others], thing.ground / height, 0.1, 1.0
    if test in ("right", "bottom", "front"):
        values, mine = [-v for v in values], -mine
        low = mine + 1 < outer
    else:
        low = mine < outer
    lead = min(values, default=9.0) - mine
    if lead >= gap:
        return YES if low else MAYBE
    return NO if lead < -gap else MAYBE


def _corner(test: str, thing: SceneObject, height: int, width: int) -> int:
    x, y = thing.centre[0] / width, thing.centre[1] / height
    if "right" in test:
        x = 1 - x
    if "bottom" in test:
        y = 1 - y
    if x < 0.38 and y < (0.4 if "bottom" in test else 0.44):
        return YES
    return MAYBE if x < 0.5 and y < 0.54 else NO


def _rank(query: Query, thing: SceneObject, group: Sequence[SceneObject], width: int) -> int:
    sign = 1 if query.side == "left" else -1
    values = sorted(sign * g.centre[0] / width for g in group)
    if len(values) <= query.rank or not all(g.clear for g in group):
        return MAYBE
    head = values[: query.rank + 1]
    if any(b - a < 0.05 for a, b in pairwise(head)):
        return MAYBE
    return YES if sign * thing.centre[0] / width == values[query.rank - 1] else NO


def _superlative(test: str, thing: SceneObject, group: Sequence[SceneObject]) -> int:
    if len(group) < 2 or not all(g.clear for g in group):
        return MAYBE
    others = [g for g in group if g is not thing]
    if test == "tallest":
        mine, rest, ratio = [thing.extent[1]], [[g.extent[1]] for g in others], 1.18
    else:
        mine, rest, ratio = [thing.area, thing.visible], [[g.area, g.visible] for g in others], 1.35
    if test == "smallest":
        if all(m * ratio <= r for o in rest for m, r in zip(mine, o, strict=True)):
            return YES
        return NO if any(m >= r * ratio for o in rest for m, r in zip(mine, o, strict=True)) else MAYBE
    if all(m >= r * ratio for o in rest for m, r in zip(mine, o, strict=True)):
        return YES
    return NO if any(m * ratio <= r for o in rest for m, r in zip(mine, o, strict=True)) else MAYBE


def _distance(a: SceneObject, b: SceneObject, width: int) -> float:
    return math.hypot(a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]) / width


def _relation(
    test: str, thing: SceneObject, group: Sequence[SceneObject], anchors: Sequence[SceneObject], height: int, width: int
) -> int:
    anchor = anchors[0]
    dx, dy = (thing.centre[0] - anchor.centre[0]) / width, (thing.centre[1] - anchor.centre[1]) / width
    if test in ("left of", "right of"):
        ahead = -dx if test == "left of" else dx
        if ahead < -0.03:
            return NO
        return YES if ahead > 0.07 and abs(dy) < 1.3 * ahead else MAYBE
    if test in ("behind", "in front of"):
        back = (anchor.ground - thing.ground) / height
        if test == "in front of":
            back = -back
        reach = (anchor.extent[0] + thing.extent[0]) / 2 / width
        if back < -0.02 or abs(dx) > 1.25 * reach + 0.03:
            return NO
        return YES if 0.05 < back < 0.4 and abs(dx) < 0.7 * reach else MAYBE
    if test in ("closest to", "next to"):
        mine = _distance(thing, anchor, width)
        rest = [_distance(g, anchor, width) for g in group if g is not thing and g is not anchor]
        nearest = min(rest, default=9.0)
        if mine > 1.3 * nearest:
            return NO
        near = 0.28 if test == "next to" else 0.5
        return YES if mine * 1.35 < nearest and mine < near else MAYBE
    a, b = anchors[0].centre, anchors[1].centre
    ux, uy = b[0] - a[0], b[1] - a[1]
    length = math.hypot(ux, uy)
    if length < 0.2 * width:
        return MAYBE
    px, py = thing.centre[0] - a[0], thing.centre[1] - a[1]
    along, aside = (px * ux + py * uy) / length**2, abs(px * uy - py * ux) / length / width
    if not -0.1 < along < 1.1 or aside > 0.26:
        return NO
    return YES if 0.2 < along < 0.8 and aside < 0.11 else MAYBE


def candidates(noun: Noun, scene: Scene) -> list[tuple[SceneObject, int]]:
    """Return objects that are, or might be, `noun`; clutter only for a noun without properties."""
    if noun == Noun():
        return [(thing, YES) for thing in scene.objects + scene.clutter if thing.visible]
    return [(thing, state) for thing in scene.objects if (state := fits(noun, thing)) and thing.visible]


def only(noun: Noun, scene: Scene) -> SceneObject | None:
    """Return the one clear object that is `noun`, or None."""
    found = candidates(noun, scene)
    return found[0][0] if len(found) == 1 and found[0][1] == YES and found[0][0].clear else None


def judge(query: Query, scene: Scene) -> list[tuple[SceneObject, int]]:
    """Return the objects that match a query (YES) or might (MAYBE), two at most.

    A query matches exactly one object when the list is one clear object with YES.
    """
    height, width = scene.labels.shape
    found = candidates(query.noun, scene)
    anchors = []
    for noun in query.anchors:
        anchor = only(noun, scene)
        if anchor is None:
            return []
        anchors.append(anchor)
    if query.test in RELATIONS:
        found = [(t, s) for t, s in found if all(t is not a for a in anchors)]
    group = [t for t, _ in found]
    verdicts = []
    for thing, state in found:
        if query.test == "":
            verdict = YES
        elif query.test in SIDES:
            verdict = _side(query.test, thing, group, height, width)
            if query.test in ("front", "back"):  # also relative to the whole scene
                grounds = [o.ground for o in scene.objects if o.visible]
                ahead = thing.ground - sum(grounds) / len(grounds)
                verdict = min(verdict, YES if (ahead if query.test == "front" else -ahead) > 0 else MAYBE)
        elif query.test in CORNERS:
            verdict = _corner(query.test, thing, height, width)
        elif query.test == "rank":
            verdict = _rank(query, thing, group, width)
        elif query.test in SUPERLATIVES:
            verdict = _superlative(query.test, thing, group)
        elif query.test in RELATIONS:
            verdict = _relation(query.test, thing, group, anchors, height, width)
        else:
            raise ValueError(f"Unknown test {query.test!r}.")
        verdict = min(verdict, state)
        if verdict:
            verdicts.append((thing, verdict))
            if len(verdicts) > 1:
                break
    return verdicts


def target(query: Query, scene: Scene) -> SceneObject | None:
    """Return the one object that matches, or None if there is none, several, or a close call."""
    verdicts = judge(query, scene)
    if len(verdicts) != 1 or verdicts[0][1] != YES:
        return None
    thing = verdicts[0][0]
    return thing if thing.clear and thing.index >= 0 else None
