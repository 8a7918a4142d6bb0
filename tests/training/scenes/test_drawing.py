"""Images of scenes, and masks of the visible pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from training.scenes.drawing import draw_scene
from training.scenes.scene import COLOURS
from training.scenes.shapes import KINDS


def test_scenes_contain_look_alikes() -> None:
    shared = 0
    for seed in range(100):
        objects = draw_scene(seed, "train").objects
        assert 3 <= len(objects) <= 10
        kinds, colours = [o.kind for o in objects], [o.colour for o in objects]
        shared += len(set(kinds)) < len(kinds) or len(set(colours)) < len(colours)
    assert shared >= 85


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
    with pytest.raises(IndexError, match="Object 99"):
        scene.mask(99)


def test_pixels_under_a_mask_have_the_color_of_the_object() -> None:
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
