from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cris_edge.image.overlay import draw_overlay


def grey(height: int = 120, width: int = 200) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def box(height: int = 120, width: int = 200) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[height // 2 :, width // 4 : width // 2] = True
    return mask


def test_the_object_is_tinted_and_the_rest_is_shaded() -> None:
    image = grey()
    drawn = draw_overlay(image, box(), accent=(255, 0, 0))
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (image == 128).all()  # the image itself is untouched
    inside, outside = drawn[100, 75], drawn[20, 150]
    assert inside[0] > 128 > inside[2]
    assert (outside < 100).all()
    assert len(set(outside.tolist())) == 1


def test_the_outline_has_the_accent() -> None:
    drawn = draw_overlay(grey(), box(), accent=(0, 255, 0))
    edge = drawn[90, 45:56]
    assert (np.abs(edge.astype(int) - (0, 255, 0)).sum(axis=1) < 30).any()


def test_an_empty_mask_leaves_the_image() -> None:
    image = grey()
    drawn = draw_overlay(image, np.zeros((120, 200), bool))
    assert (drawn == image).all()
    assert drawn is not image


def test_a_caption_does_not_hide_the_object() -> None:
    plain, written = draw_overlay(grey(), box()), draw_overlay(grey(), box(), "a mug", "93%")
    changed = (plain != written).any(axis=2)
    assert changed.any()
    assert not changed[box()].any()


def test_a_caption_without_room_below_or_above_is_written_at_the_top() -> None:
    whole = np.ones((120, 200), bool)
    changed = (draw_overlay(grey(), whole) != draw_overlay(grey(), whole, "a mug")).any(axis=2)
    assert changed.any()
    assert not changed[60:].any()


def test_a_long_caption_is_shortened_and_its_note_is_kept() -> None:
    drawn = [draw_overlay(grey(), box(), caption * 50, "93%") for caption in ("dog ", "dog cat ")]
    assert (drawn[0] != draw_overlay(grey(), box(), "", "93%")).any()
    assert (drawn[0] != drawn[1]).any()
    changed = (drawn[0] != draw_overlay(grey(), box())).any(axis=2)
    assert not changed[:, :3].any()
    assert not changed[:, -3:].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 4), (12, 300), (300, 12)])
def test_images_without_room_for_text_get_none(shape: tuple[int, int]) -> None:
    mask = np.ones(shape, bool)
    assert (draw_overlay(grey(*shape), mask, "a mug", "93%") == draw_overlay(grey(*shape), mask)).all()


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200), st.integers(1, 150), st.integers(1, 150))
def test_any_caption_on_any_image(caption: str, height: int, width: int) -> None:
    mask = np.zeros((height, width), bool)
    mask[::3, ::2] = True
    assert draw_overlay(grey(height, width), mask, caption, "5%").shape == (height, width, 3)


@pytest.mark.parametrize("caption", ["\ud800", "a\nb\x00c", "猫 مرحبا 👩\u200d👧", "%s %n", "\u202eabc"])
def test_hostile_captions(caption: str) -> None:
    assert draw_overlay(grey(), box(), caption, "5%").shape == (120, 200, 3)
