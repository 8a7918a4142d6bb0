"""Scenes are deterministic, their masks are what is seen, and every sentence is true of exactly one object."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from training.scenes.describing import FAMILIES, describe
from training.scenes.meaning import RELATIONS
from training.scenes.scene import COLOURS, MIN_PIXELS, MIN_SHARE, SPLITS, Scene, SceneObject
from training.scenes.shapes import KINDS
from training.scenes.synthetic import RESERVED, SyntheticScenes, draw_scene, main, rle

# A second reading of the sentences, written apart from the generator: it parses the words and looks at the label map.

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


class Facts:
    """Where an object is, measured on the label map; its whole size and ground are taken from the scene."""

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
    """Take the noun phrase out of the text; return the properties and what is left."""
    found: dict[str, str] = {}
    text = re.sub(r"\bthat is (\w+)\b", r"\1", text)
    for name, table in (("pattern", _PATTERN), ("kind", _KIND), ("colour", _COLOUR), ("size", _SIZE)):
        for words in sorted(table, key=len, reverse=True):
            left, count = re.subn(rf"\b{words}\b", " ", text)
            if count:
                assert name not in found, f"two of {name} in {text!r}"
                found[name], text = table[words], left
    return found, " ".join(w for w in text.split() if w != "the")


def _matching(found: dict[str, str], facts: list[Facts]) -> list[Facts]:
    """Things that fit; one of middling size counts as fitting, so that it makes the sentence ambiguous."""
    bare = not any(found.values())
    return [
        f
        for f in facts
        if f.seen
        and (bare or f.thing.index >= 0)
        and all(getattr(f.thing, name) == value for name, value in found.items() if value and name != "size")
        and ("size" not in found or f.thing.size in ("medium", found["size"]))
    ]


def _extreme(group: list[Facts], key: Callable[[Facts], float]) -> list[Facts]:
    best = min(key(f) for f in group)
    return [f for f in group if key(f) == best]


def _related(name: str, group: list[Facts], anchors: list[Facts]) -> list[Facts]:
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


def read(sentence: str, scene: Scene) -> list[int]:
    """Return the indices of all objects that the sentence may mean."""
    facts = [Facts(t, scene.labels) for t in scene.objects + scene.clutter]
    height, width = scene.labels.shape
    for pattern, name in _RELATION:
        match = re.search(rf"^(.+?) ({pattern}) (.+)$", sentence)
        if match and not re.search(r"closest to us$|nearest to the camera$", sentence):
            if not all(re.search(rf"\b({'|'.join(_KIND)})\b", match.group(k)) for k in (1, 3)):
                continue
            body, rest = _noun(match.group(1))
            assert not rest, f"{rest!r} was not understood in {sentence!r}"
            anchors = []
            for part in match.group(3).split(" and "):
                found, rest = _noun(part)
                assert not rest, f"{rest!r} was not understood in {sentence!r}"
                named = _matching(found, facts)
                assert len(named) == 1, f"{part!r} in {sentence!r} is {len(named)} things"
                anchors += named
            group = [f for f in _matching(body, facts) if f not in anchors]
            return [f.thing.index for f in _related(name, group, anchors)]

    order = re.search(
        r"\b(first|second|third|fourth|fifth)\b.*from (?:the )?(left|right)|farthest (left|right)", sentence
    )
    best = re.search(r"\b(largest|biggest|smallest|tiniest|littlest|tallest)\b", sentence)
    corner = re.search(r"\b(?:(?:at|in|on) the )?(top|bottom) (left|right)(?: corner)?", sentence)
    if order:
        side, rank = order.group(2) or order.group(3), _NUMBER.get(order.group(1), 1)
        text = re.sub(
            r"\b(first|second|third|fourth|fifth)\b|from (the )?(left|right)|farthest (left|right)", " ", sentence
        )
        found, rest = _noun(text)
        group = sorted(_matching(found, facts), key=lambda f: f.x, reverse=side == "right")
        answer = group[rank - 1 : rank]
    elif best:
        found, rest = _noun(sentence.replace(best.group(1), " "))
        group = _matching(found, facts)
        assert len(group) > 1, sentence
        key = (lambda f: f.tall) if best.group(1) == "tallest" else (lambda f: f.seen)
        sign = 1 if best.group(1) in ("smallest", "tiniest", "littlest") else -1
        answer = _extreme(group, lambda f: sign * key(f))
    elif corner:
        found, rest = _noun(sentence.replace(corner.group(0), " "))
        top, left = corner.group(1) == "top", corner.group(2) == "left"
        answer = [f for f in _matching(found, facts) if (f.y < height / 2) == top and (f.x < width / 2) == left]
    else:
        place = ""
        text = sentence
        for pattern, name in _PLACE:
            text, count = re.subn(rf"\b({pattern})\b", " ", sentence, count=1)
            if count:
                place = name
                break
        found, rest = _noun(text)
        group = _matching(found, facts)
        keys: dict[str, Callable[[Facts], float]] = {
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
        halves: dict[str, Callable[[Facts], bool]] = {  # the word must also be true of the picture as a whole
            "left": lambda f: f.x < width / 2,
            "right": lambda f: f.x > width / 2,
            "top": lambda f: f.y < height / 2,
            "bottom": lambda f: f.y > height / 2,
            "front": lambda f: f.ground > level,
            "back": lambda f: f.ground < level,
            "middle": lambda f: abs(f.x - width / 2) < width / 4,
        }
        if place and not re.search("leftmost|rightmost", sentence):
            answer = [f for f in answer if halves[place](f)]
    assert not rest, f"{rest!r} was not understood in {sentence!r}"
    return [f.thing.index for f in answer]


@pytest.mark.parametrize(("split", "scenes"), [("train", 150), ("val", 70), ("compositions", 60), ("relations", 60)])
def test_every_sentence_is_true_of_exactly_one_object(split: str, scenes: int) -> None:
    targets = RESERVED if split == "compositions" else None
    count = 0
    for seed in range(scenes):
        scene = draw_scene(seed, split)
        for reference in describe(scene, seed, split, 8, targets=targets, typos=0.0):
            assert read(reference.sentence, scene) == [reference.index], (split, seed, reference)
            count += 1
    assert count > 3.5 * scenes


def test_the_second_reading_can_disagree() -> None:
    scene = draw_scene(1, "val")
    references = describe(scene, 1, "val", 8, typos=0.0)
    others = [r for r in references if r.index != references[0].index]
    assert read(others[0].sentence, scene) != [references[0].index]
    assert read("thing", scene) != [references[0].index]
    with pytest.raises(AssertionError, match="not understood"):
        read("the zebra", scene)


def test_named_objects_are_seen_well_enough() -> None:
    for seed in range(60):
        scene = draw_scene(seed, "train", 224, 224)
        for reference in describe(scene, seed, count=6):
            assert scene.mask(reference.index).sum() >= MIN_PIXELS
            assert scene.objects[reference.index].share >= MIN_SHARE


def test_sentences_vary_and_stay_short() -> None:
    families: dict[str, int] = dict.fromkeys(FAMILIES, 0)
    tests, sentences = set(), []
    for seed in range(150):
        for reference in describe(draw_scene(seed, "train"), seed, count=4):
            families[reference.family] += 1
            tests.add(reference.query.test)
            sentences.append(reference.sentence)
    assert min(families.values()) > 0.04 * len(sentences)
    assert set(RELATIONS) <= tests
    assert max(len(s.split()) for s in sentences) <= 13
    assert len(set(sentences)) > 0.7 * len(sentences)
    assert all(s == s.lower().strip() and "  " not in s for s in sentences)


def test_scenes_hold_look_alikes() -> None:
    shared = 0
    for seed in range(100):
        objects = draw_scene(seed, "train").objects
        assert 3 <= len(objects) <= 10
        kinds, colours = [o.kind for o in objects], [o.colour for o in objects]
        shared += len(set(kinds)) < len(kinds) or len(set(colours)) < len(colours)
    assert shared >= 85


def test_relations_split_has_relations_alone() -> None:
    scenes = SyntheticScenes("relations", 40)
    assert {r.family for i in range(40) for r in scenes.example(i)[1]} == {"relation"}


def test_reserved_pairs_are_drawn_in_compositions_only() -> None:
    assert len(RESERVED) == round(0.1 * len(KINDS) * len(COLOURS))
    assert len({kind for kind, _ in RESERVED}) == len(KINDS)
    for split in ("train", "val", "relations"):
        drawn = {(o.kind, o.colour) for seed in range(150) for o in draw_scene(seed, split).objects}
        assert not drawn & RESERVED
        assert len(drawn) > 100
    scenes = SyntheticScenes("compositions", 60)
    named = set()
    for i in range(60):
        scene, references = scenes.example(i)
        for r in references:
            thing = scene.objects[r.index]
            assert (r.query.noun.kind, r.query.noun.colour) == (thing.kind, thing.colour)
            named.add((thing.kind, thing.colour))
    assert named <= RESERVED
    assert len(named) > 10


def test_same_number_same_scene_and_splits_never_meet() -> None:
    pictures = set()
    for split in SPLITS:
        for seed in range(25):
            once, again = draw_scene(seed, split), draw_scene(seed, split)
            assert np.array_equal(once.image, again.image) and np.array_equal(once.labels, again.labels)
            assert once.objects == again.objects
            assert describe(once, seed, split) == describe(again, seed, split)
            pictures.add(once.image.tobytes())
    assert len(pictures) == 25 * len(SPLITS)


def test_dataset_does_not_depend_on_the_order_of_access() -> None:
    first, second = SyntheticScenes("val", 30, seed=5), SyntheticScenes("val", 9, seed=5)
    ahead = [first[i] for i in range(6)]
    for i in (5, 0, 3):
        image, sentences, masks = second[i]
        assert np.array_equal(image, ahead[i][0])
        assert sentences == ahead[i][1]
        assert all(np.array_equal(a, b) for a, b in zip(masks, ahead[i][2], strict=True))
    assert not np.array_equal(SyntheticScenes("val", 9, seed=6)[0][0], ahead[0][0])


def test_shapes_types_and_number_of_sentences() -> None:
    image, sentences, masks = SyntheticScenes("train", 2, height=168, width=224, sentences_per_scene=3)[1]
    assert image.shape == (168, 224, 3)
    assert image.dtype == np.uint8
    assert len(sentences) == len(masks) == 3
    assert all(m.shape == (168, 224) and m.dtype == np.bool_ for m in masks)


def test_masks_are_the_visible_pixels() -> None:
    for seed in range(40):
        scene = draw_scene(seed, "train")
        assert sum(scene.mask(o.index).sum() for o in scene.objects) == (scene.labels > 0).sum()
        for o in scene.objects:
            mask = scene.mask(o.index)
            assert mask.sum() == o.visible <= o.area
            if o.visible:
                rows, columns = mask.nonzero()
                assert o.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert o.centre == pytest.approx((columns.mean(), rows.mean()))
        grounds = [o.ground for o in scene.objects]
        assert scene.objects[-1].share == 1.0, "nothing is painted over the last object"
        assert np.argsort(grounds, kind="stable").tolist() == pytest.approx(range(len(grounds)), abs=1)
    with pytest.raises(IndexError, match="object 99"):
        scene.mask(99)


def test_pixels_under_a_mask_have_the_objects_colour() -> None:
    """The nearest palette colour by hue, over plain bodies of strong colours: ties labels to what is painted."""
    strong = ("red", "yellow", "green", "blue", "purple")
    hues = {c: cv2.cvtColor(np.uint8([[COLOURS[c]]]), cv2.COLOR_RGB2HSV)[0, 0, 0] for c in strong}
    right = total = 0
    for seed in range(150):
        scene = draw_scene(seed, "train")
        hsv = cv2.cvtColor(scene.image, cv2.COLOR_RGB2HSV)
        for o in scene.objects:
            if o.colour in strong and o.pattern == "plain" and o.clear and o.kind in ("ball", "mug", "pillow", "box"):
                inside = hsv[scene.mask(o.index)]
                hue = float(np.median(inside[inside[:, 1] > 60][:, 0])) if (inside[:, 1] > 60).any() else 90.0
                distance = {c: min(abs(hue - h), 180 - abs(hue - h)) for c, h in hues.items()}
                right += min(distance, key=distance.__getitem__) == o.colour
                total += 1
    assert total > 60
    assert right >= 0.97 * total


def test_every_kind_and_colour_is_drawn() -> None:
    objects = [o for seed in range(120) for o in draw_scene(seed, "train").objects]
    assert {o.kind for o in objects} == set(KINDS)
    assert {o.colour for o in objects} == set(COLOURS)
    assert {o.pattern for o in objects} == {"plain", "striped", "dotted"}
    assert any(o.share < 0.9 for o in objects), "some objects hide others"


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="split 'test' is unknown"):
        draw_scene(0, "test")
    with pytest.raises(ValueError, match="out of range"):
        draw_scene(-1)
    with pytest.raises(ValueError, match="too small"):
        draw_scene(0, height=32)
    with pytest.raises(ValueError, match="sentences_per_scene 0"):
        SyntheticScenes("val", 3, sentences_per_scene=0)
    with pytest.raises(IndexError, match="example 3 of 3"):
        SyntheticScenes("val", 3)[3]


def test_rle_counts_columns_from_zero() -> None:
    mask = np.array([[True, False], [True, True]])
    assert rle(mask) == {"size": [2, 2], "counts": [0, 2, 1, 1]}
    assert rle(~mask) == {"size": [2, 2], "counts": [2, 1, 1]}


def test_command_writes_labelled_json_lines(tmp_path) -> None:
    result = CliRunner().invoke(main, ["--output", str(tmp_path / "scenes"), "--split", "val", "--count", "3"])
    assert result.exit_code == 0, result.output
    lines = [json.loads(x) for x in (tmp_path / "scenes" / "val.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = SyntheticScenes("val", 3)
    told = []
    for line in lines:
        bgr = cv2.imread(str(tmp_path / "scenes" / line["image"]))
        i = int(line["image"][-10:-4])
        image, sentences, masks = expected[i]
        assert np.array_equal(bgr[:, :, ::-1], image)
        runs = np.repeat(np.arange(len(line["mask"]["counts"])) % 2, line["mask"]["counts"])
        mask = runs.reshape(line["mask"]["size"], order="F").astype(bool)
        for sentence in line["sentences"]:
            assert np.array_equal(masks[sentences.index(sentence)], mask)
            told.append((i, sentence))
    assert sorted(told) == sorted((i, s) for i in range(3) for s in set(expected[i][1]))


def test_command_reports_a_folder_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = CliRunner().invoke(main, ["--output", str(tmp_path / "file" / "scenes"), "--count", "1"])
    assert result.exit_code == 1
    assert "could not be written" in result.output
