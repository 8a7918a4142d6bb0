"""Every prompt matches exactly one object, checked by an independent parser."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from training.scenes.describing import FAMILIES, describe
from training.scenes.drawing import RESERVED, draw_scene
from training.scenes.meaning import RELATIONS
from training.scenes.scene import COLOURS, MIN_PIXELS, MIN_SHARE, Scene, SceneObject
from training.scenes.shapes import KINDS

# A parser of prompts, independent of the generator: it reads the words and looks at the label map.

_COLOUR = {**{c: c for c in COLOURS}, "violet": "purple"}
_KIND = {
    **{k: k for k in KINDS},
    "coffee mug": "mug", "cup": "mug", "cushion": "pillow", "sneaker": "shoe", "alarm clock": "clock",
    "table lamp": "lamp", "open box": "box", "one": "", "thing": "", "object": "",
}  # fmt: skip
_PATTERN = {
    "with the stripes": "striped", "with stripes": "striped", "striped": "striped", "stripy": "striped",
    "with polka dots": "dotted", "with dots": "dotted", "with spots": "dotted", "polka dot": "dotted",
    "dotted": "dotted", "spotted": "dotted", "without a pattern": "plain", "in one color": "plain", "plain": "plain",
    "solid": "plain",
}  # fmt: skip
_SIZE = {"small": "small", "little": "small", "large": "large", "big": "large"}
_NUMBER = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5}
_RELATION = [  # tried in this order
    (r"that is in front of|right in front of|just in front of|in front of", "in front of"),
    (r"that is behind|right behind|in back of|behind", "behind"),
    (r"that is between|in between|between", "between"),
    (r"to the left of|on the left of|on the left side of|left of", "left of"),
    (r"to the right of|on the right of|on the right side of|right of", "right of"),
    (r"that is closest to|closest to|nearest to|close to|(?<=\w )nearest", "closest to"),
    (r"right next to|next to|beside|near|by", "closest to"),
]
_PLACE = [
    (r"closest to us|nearest to the camera|in the foreground|in the front|in front|front|closest|nearest", "front"),
    (r"in the background|farthest away|farthest from us|at the back|in the back|back|farthest", "back"),
    (r"at the top|on top|at top|higher up|topmost|upper|top", "top"),
    (r"at the bottom|on the bottom|at bottom|lower down|lowest|lower|bottom", "bottom"),
    (r"in the middle|in the center|in middle|center|middle", "middle"),
    (r"on the left side|on the left|on left|to the left|at left|far left|left side|leftmost|left", "left"),
    (r"on the right side|on the right|on right|to the right|at right|far right|right side|rightmost|right", "right"),
]


class Measured:
    """Position of an object, measured on the label map; its full size and ground come from the scene."""

    def __init__(self, thing: SceneObject, labels: np.ndarray) -> None:
        self.thing = thing
        rows, columns = (labels == thing.index + 1).nonzero() if thing.index >= 0 else (np.zeros(0), np.zeros(0))
        self.seen = len(rows) if thing.index >= 0 else thing.visible
        if thing.index >= 0 and self.seen:
            self.x, self.y = float(columns.mean()), float(rows.mean())
        else:
            self.x, self.y = thing.centre
        self.ground, self.wide, self.tall = thing.ground, thing.extent[0], thing.extent[1]


def _noun(text: str) -> tuple[dict[str, str], str]:
    """Split a text into the properties of its noun phrase and the remaining words."""
    found: dict[str, str] = {}
    text = re.sub(r"\bthat is (\w+)\b", r"\1", text)
    for name, table in (("pattern", _PATTERN), ("kind", _KIND), ("colour", _COLOUR), ("size", _SIZE)):
        for words in sorted(table, key=len, reverse=True):
            left, count = re.subn(rf"\b{words}\b", " ", text)
            if count:
                assert name not in found, f"two of {name} in {text!r}"
                found[name], text = table[words], left
    return found, " ".join(w for w in text.split() if w != "the")


def _matching(found: dict[str, str], facts: list[Measured]) -> list[Measured]:
    """Objects that match; a medium size counts as a match, so that it makes the prompt ambiguous."""
    bare = not any(found.values())
    return [
        f
        for f in facts
        if f.seen
        and (bare or f.thing.index >= 0)
        and all(getattr(f.thing, name) == value for name, value in found.items() if value and name != "size")
        and ("size" not in found or f.thing.size in ("medium", found["size"]))
    ]


def _extreme(group: list[Measured], key: Callable[[Measured], float]) -> list[Measured]:
    best = min(key(f) for f in group)
    return [f for f in group if key(f) == best]


def _related(name: str, group: list[Measured], anchors: list[Measured]) -> list[Measured]:
    a = anchors[0]
    if name == "left of":
        return [f for f in group if f.x < a.x]
    if name == "right of":
        return [f for f in group if f.x > a.x]
    if name in ("behind", "in front of"):
        sign = 1 if name == "behind" else -1
        return [f for f in group if sign * (a.ground - f.ground) > 0 and abs(f.x - a.x) < (f.wide + a.wide) / 2]
    if name == "closest to":
        return _extreme(group, lambda f: math.hypot(f.x - a.x, f.y - a.y))
    b = anchors[1]
    length = math.hypot(b.x - a.x, b.y - a.y)
    ux, uy = (b.x - a.x) / length, (b.y - a.y) / length
    near = [f for f in group if abs((f.x - a.x) * uy - (f.y - a.y) * ux) < 0.2 * 320]
    return [f for f in near if 0 < (f.x - a.x) * ux + (f.y - a.y) * uy < length]


def read(prompt: str, scene: Scene) -> list[int]:
    """Return the indices of all objects that a prompt may refer to."""
    facts = [Measured(t, scene.labels) for t in scene.objects + scene.clutter]
    height, width = scene.labels.shape
    for pattern, name in _RELATION:
        match = re.search(rf"^(.+?) ({pattern}) (.+)$", prompt)
        if match and not re.search(r"closest to us$|nearest to the camera$", prompt):
            if not all(re.search(rf"\b({'|'.join(_KIND)})\b", match.group(k)) for k in (1, 3)):
                continue
            body, rest = _noun(match.group(1))
            assert not rest, f"{rest!r} was not parsed in {prompt!r}"
            anchors = []
            for part in match.group(3).split(" and "):
                found, rest = _noun(part)
                assert not rest, f"{rest!r} was not parsed in {prompt!r}"
                named = _matching(found, facts)
                assert len(named) == 1, f"{part!r} in {prompt!r} is {len(named)} things"
                anchors += named
            group = [f for f in _matching(body, facts) if f not in anchors]
            return [f.thing.index for f in _related(name, group, anchors)]

    order = re.search(
        r"\b(first|second|third|fourth|fifth)\b.*from (?:the )?(left|right)|farthest (left|right)", prompt
    )
    best = re.search(r"\b(largest|biggest|smallest|tiniest|littlest|tallest)\b", prompt)
    corner = re.search(r"\b(?:(?:at|in|on) the )?(top|bottom) (left|right)(?: corner)?", prompt)
    if order:
        side, rank = order.group(2) or order.group(3), _NUMBER.get(order.group(1), 1)
        text = re.sub(
            r"\b(first|second|third|fourth|fifth)\b|from (the )?(left|right)|farthest (left|right)", " ", prompt
        )
        found, rest = _noun(text)
        group = sorted(_matching(found, facts), key=lambda f: f.x, reverse=side == "right")
        answer = group[rank - 1 : rank]
    elif best:
        found, rest = _noun(prompt.replace(best.group(1), " "))
        group = _matching(found, facts)
        assert len(group) > 1, prompt
        key = (lambda f: f.tall) if best.group(1) == "tallest" else (lambda f: f.seen)
        sign = 1 if best.group(1) in ("smallest", "tiniest", "littlest") else -1
        answer = _extreme(group, lambda f: sign * key(f))
    elif corner:
        found, rest = _noun(prompt.replace(corner.group(0), " "))
        top, left = corner.group(1) == "top", corner.group(2) == "left"
        answer = [f for f in _matching(found, facts) if (f.y < height / 2) == top and (f.x < width / 2) == left]
    else:
        place = ""
        text = prompt
        for pattern, name in _PLACE:
            text, count = re.subn(rf"\b({pattern})\b", " ", prompt, count=1)
            if count:
                place = name
                break
        found, rest = _noun(text)
        group = _matching(found, facts)
        keys: dict[str, Callable[[Measured], float]] = {
            "left": lambda f: f.x,
            "right": lambda f: -f.x,
            "top": lambda f: f.y,
            "bottom": lambda f: -f.y,
            "front": lambda f: -f.ground,
            "back": lambda f: f.ground,
            "middle": lambda f: abs(f.x - width / 2),
        }
        answer = _extreme(group, keys[place]) if place and group else group
        level = np.mean([f.ground for f in facts if f.thing.index >= 0 and f.seen])
        halves: dict[str, Callable[[Measured], bool]] = {  # the word must also be true of the image as a whole
            "left": lambda f: f.x < width / 2,
            "right": lambda f: f.x > width / 2,
            "top": lambda f: f.y < height / 2,
            "bottom": lambda f: f.y > height / 2,
            "front": lambda f: f.ground > level,
            "back": lambda f: f.ground < level,
            "middle": lambda f: abs(f.x - width / 2) < width / 4,
        }
        if place and not re.search("leftmost|rightmost", prompt):
            answer = [f for f in answer if halves[place](f)]
    assert not rest, f"{rest!r} was not parsed in {prompt!r}"
    return [f.thing.index for f in answer]


@pytest.mark.parametrize(("split", "scenes"), [("train", 150), ("val", 70), ("compositions", 60), ("relations", 60)])
def test_every_prompt_matches_exactly_one_object(split: str, scenes: int) -> None:
    targets = RESERVED if split == "compositions" else None
    count = 0
    for seed in range(scenes):
        scene = draw_scene(seed, split)
        for reference in describe(scene, seed, split, 8, targets=targets, typos=0.0):
            assert read(reference.prompt, scene) == [reference.index], (split, seed, reference)
            count += 1
    assert count > 3.5 * scenes


def test_the_independent_parser_can_disagree() -> None:
    scene = draw_scene(1, "val")
    references = describe(scene, 1, "val", 8, typos=0.0)
    others = [r for r in references if r.index != references[0].index]
    assert read(others[0].prompt, scene) != [references[0].index]
    assert read("thing", scene) != [references[0].index]
    with pytest.raises(AssertionError, match="not parsed"):
        read("the zebra", scene)


def test_described_objects_are_clearly_visible() -> None:
    for seed in range(60):
        scene = draw_scene(seed, "train", 224, 224)
        for reference in describe(scene, seed, count=6):
            assert scene.mask(reference.index).sum() >= MIN_PIXELS
            assert scene.objects[reference.index].share >= MIN_SHARE


def test_prompts_vary_and_stay_short() -> None:
    families: dict[str, int] = dict.fromkeys(FAMILIES, 0)
    tests, prompts = set(), []
    for seed in range(150):
        for reference in describe(draw_scene(seed, "train"), seed, count=4):
            families[reference.family] += 1
            tests.add(reference.query.test)
            prompts.append(reference.prompt)
    assert min(families.values()) > 0.04 * len(prompts)
    assert set(RELATIONS) <= tests
    assert max(len(s.split()) for s in prompts) <= 13
    assert len(set(prompts)) > 0.7 * len(prompts)
    assert all(s == s.lower().strip() and "  " not in s for s in prompts)
