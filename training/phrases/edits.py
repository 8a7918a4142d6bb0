"""Changes to a sentence that keep or swap its meaning: mirroring, dropped words, typos, swapped attributes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

COLOURS = ("black", "white", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "beige")
"""Colour names that are measured in photos."""


def word_set(text: str, separator: str | None = None) -> frozenset[str]:
    """Return the words of a text as a set; ``separator`` where they are not separated by white space."""
    return frozenset(text.split(separator))


_SIDES = {"left": "right", "lefthand": "righthand", "leftmost": "rightmost", "lefty": "righty", "lft": "rght"}
_SIDES |= {"left-hand": "right-hand", "left-most": "right-most", "l": "r", "lhs": "rhs", "lt": "rt"}
_SIDES |= {other: one for one, other in _SIDES.items()}
_NOT_A_SIDE = re.compile(r"^(next|behind|in|above|below|under|beside|before|after|there|here|now)$")
_FREE = word_set("a an the is are of that this it its his her very really which")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(sentence: str) -> list[str]:
    """Split a sentence into lower-case words; punctuation separates, apostrophes and hyphens inside words stay."""
    return re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", sentence.lower())


def mirror(sentence: str) -> str | None:
    """Return the sentence for the mirrored photo, or None when that cannot be told from the words.

    "left" and "right" change places, but not where "right" means "directly" ("right behind"). Lettering and clock faces
    do not survive mirroring, so sentences about them have no mirror image.
    """
    found = words(sentence)
    if set(found) & {
        "says",
        "reads",
        "word",
        "words",
        "letter",
        "letters",
        "number",
        "clockwise",
        "o'clock",
        "labeled",
    }:
        return None
    if any(word.isdigit() for word in found):
        return None
    changed = []
    for word, following in zip(found, [*found[1:], ""], strict=True):
        directly = word == "right" and _NOT_A_SIDE.match(following)
        changed.append(word if directly else _SIDES.get(word, word))
    return " ".join(changed)


def swap_colour(sentence: str, choose: Callable[[list[str]], str]) -> str | None:
    """Return the sentence with its colour words replaced by other colours, or None when it has none."""
    found = words(sentence)
    present = {word for word in found if word in COLOURS}
    if not present:
        return None
    others = [colour for colour in COLOURS if colour not in present]
    return " ".join(choose(others) if word in COLOURS else word for word in found)


def shorten(sentence: str, rng: random.Random, share: float = 0.7) -> str:
    """Drop articles and other words that carry no meaning, each with probability ``share``."""
    kept = [word for word in words(sentence) if word not in _FREE or rng.random() > share]
    return " ".join(kept) if kept else sentence


def misspell(sentence: str, rng: random.Random) -> str:
    """Make one typing mistake in a word of five letters or more: a dropped, doubled, swapped or wrong letter."""
    found = sentence.split()
    long = [index for index, word in enumerate(found) if len(word) > 4 and word.isalpha() and word not in COLOURS]
    if not long:
        return sentence
    index = rng.choice(long)
    word = found[index]
    at = rng.randrange(1, len(word) - 1)
    found[index] = rng.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + rng.choice(_LETTERS) + word[at + 1 :],
        ]
    )
    return " ".join(found)
