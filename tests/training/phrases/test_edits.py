"""Sentences are mirrored, shortened, misspelled and given other colours."""

from __future__ import annotations

import random

import pytest

from training.phrases.edits import COLOURS, mirror, misspell, shorten, swap_colour, words


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Left guy", "right guy"),
        ("2nd from left", "2nd from right"),
        ("second dog from the right", "second dog from the left"),
        ("guy right behind the left chair", "guy right behind the right chair"),
        ("leftmost bowl, right side", "rightmost bowl left side"),
        ("the sign that says left", None),
        ("the red cup", "the red cup"),
    ],
)
def test_left_and_right_change_places_where_that_is_what_they_mean(sentence: str, expected: str | None) -> None:
    assert mirror(sentence) == expected


def test_mirroring_twice_gives_the_sentence_back() -> None:
    sentence = "far left cup next to the righthand bowl"
    mirrored = mirror(sentence)
    assert mirrored is not None and mirrored != sentence and mirror(mirrored) == sentence


def test_a_swapped_colour_is_another_one() -> None:
    rng = random.Random(0)
    swapped = swap_colour("man in red shirt", rng.choice)
    assert swapped is not None
    found = set(words(swapped)) & set(COLOURS)
    assert len(found) == 1 and "red" not in found
    assert swap_colour("the left man", rng.choice) is None


def test_shortening_drops_only_words_without_meaning() -> None:
    assert shorten("the man in the red shirt", random.Random(0), share=1.0) == "man in red shirt"
    assert shorten("that", random.Random(0), share=1.0) == "that", "something must be left"


def test_a_typo_changes_one_long_word_and_no_colour() -> None:
    for seed in range(30):
        changed = misspell("yellow elephant on top", random.Random(seed)).split()
        assert changed[0] == "yellow" and changed[2:] == ["on", "top"] and abs(len(changed[1]) - 8) <= 1
    assert misspell("red cup", random.Random(0)) == "red cup"
