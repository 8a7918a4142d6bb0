"""Prompts that match nothing in an image, drawn during training from other lines of labelled data.

Absence must be known, not assumed: a line whose ``categories`` lists everything annotated in its image, with counts,
says what is not there. ``python -m training.prepare`` writes it. Two kinds of prompts follow: one of another image
about a category that this image lacks, and one of this image with its colour exchanged, where the image holds one
object of the prompt's category and so none of another colour.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from cris_edge.errors import DataError
from cris_edge.image.labelled import Sample

COLOURS = (
    *(
        "red",
        "orange",
        "yellow",
        "green",
        "blue",
        "purple",
        "pink",
        "brown",
        "black",
        "white",
        "gray",
        "grey",
        "silver",
    ),
    *("gold", "tan", "beige", "teal", "maroon"),
)
_LOOK_ALIKE = (
    {"gray", "grey", "silver"},
    {"gold", "yellow", "orange"},
    {"tan", "beige", "brown", "white"},
    {"red", "maroon", "orange"},
    {"teal", "blue", "green"},
    {"purple", "pink"},
)
_COLOUR = re.compile(rf"\b(?:{'|'.join(COLOURS)})\b")


class Negatives:
    """Draws prompts that match nothing.

    Args:
        samples: all of the data.

    Raises:
        DataError: a line's ``categories`` are not an object of counts.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._prompts: dict[str, list[str]] = {}
        for sample in samples:
            category = sample.extra.get("category")
            if isinstance(category, str) and category and sample.mask is not None:
                self._prompts.setdefault(category, []).extend(sample.sentences)
        self._names = sorted(self._prompts)
        self._known = any(_categories(sample) for sample in samples)

    def __bool__(self) -> bool:
        """Whether any can be drawn."""
        return self._known

    def draw(self, group: Sequence[Sample], rng: np.random.Generator) -> str | None:
        """Return a prompt that matches nothing in the image of ``group``, or None where none is known.

        Args:
            group: samples of one image.
            rng: all randomness.
        """
        counts = next(filter(None, map(_categories, group)), None)
        if counts is None:
            return None
        swaps = [prompt for sample in group if (prompt := self._swapped(sample, counts, rng))]
        absent = [name for name in self._names if not counts.get(name)]
        if swaps and (not absent or rng.random() < 0.5):
            return swaps[int(rng.integers(len(swaps)))]
        if not absent:
            return None
        prompts = self._prompts[absent[int(rng.integers(len(absent)))]]
        return prompts[int(rng.integers(len(prompts)))]

    @staticmethod
    def _swapped(sample: Sample, counts: Mapping[str, int], rng: np.random.Generator) -> str | None:
        if sample.mask is None or counts.get(str(sample.extra.get("category"))) != 1:
            return None
        sentence = sample.sentences[int(rng.integers(len(sample.sentences)))].lower()
        found = _COLOUR.findall(sentence)
        if len(found) != 1:  # two colours may be of two things
            return None
        alike = {found[0]}.union(*(group for group in _LOOK_ALIKE if found[0] in group))
        others = [colour for colour in COLOURS if colour not in alike]
        return _COLOUR.sub(others[int(rng.integers(len(others)))], sentence)


def _categories(sample: Sample) -> dict[str, int] | None:
    counts = sample.extra.get("categories")
    if counts is None:
        return None
    if not isinstance(counts, dict) or not all(type(count) is int and count > 0 for count in counts.values()):
        raise DataError(
            f'{sample.source}: its "categories" are {counts!r}; expected an object with the number of objects of every '
            'category in the image, such as {"cup": 2}.'
        )
    return counts
