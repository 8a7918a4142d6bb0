"""A handful of made-up photos with candidates, as the detector would leave them."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.photos import Photo, PhotoObject, is_validation
from training.model.candidates import COLOUR_FEATURES, FEATURES
from training.model.colournames import COLOURS
from training.model.nanodet import CLASSES
from training.phrases.nouns import Lexicon
from training.selection.candidate_cache import CachedPhoto
from training.selection.pools import Shots, gather_shots

Box = tuple[float, float, float, float]
SIZE = 100


def cached(image: str, things: list[tuple[str, Box, str]], *, mirrored: bool = False, seed: int = 0) -> CachedPhoto:
    """Candidates of one photo: class, box in shares of the photo, colour."""
    rng = np.random.default_rng(seed)
    count = len(things)
    probabilities = np.full((count, len(CLASSES)), 0.01, np.float16)
    colours = np.zeros((count, COLOUR_FEATURES), np.float16)
    for row, (category, _, colour) in enumerate(things):
        probabilities[row, CLASSES.index(category)] = 0.8
        colours[row, COLOURS.index(colour) :: len(COLOURS) + 3] = 0.9
    return CachedPhoto(
        image=image,
        mirrored=mirrored,
        width=SIZE,
        height=SIZE,
        detected=count,
        probabilities=probabilities,
        boxes=np.array([box for _, box, _ in things], np.float32),
        features=rng.normal(size=(count, FEATURES)).astype(np.float16),
        colours=colours,
        mask_colours={},
    )


THINGS: list[tuple[str, Box, str]] = [
    ("cup", (0.05, 0.4, 0.25, 0.7), "red"),
    ("cup", (0.7, 0.4, 0.9, 0.7), "blue"),
    ("dog", (0.3, 0.1, 0.6, 0.9), "brown"),
]


def photo(image: str, *, sentence: str = "red cup on left") -> Photo:
    """The photo's labels: the left cup, with a sentence as RefCOCO has them."""
    left, top, right, bottom = (SIZE * side for side in THINGS[0][1])
    box = (left, top, right, bottom)
    one = PhotoObject(image=image, source="coco256", category="cup", box=box, sentences=(sentence,), coco_id=1)
    return Photo(image=image, objects=(one,))


def names(count: int, *, validation: bool) -> list[str]:
    """File names on one side of the split."""
    found = (f"images/{number}.jpg" for number in range(10_000))
    return [name for name, _ in zip((n for n in found if is_validation(n) == validation), range(count), strict=False)]


@pytest.fixture
def shots() -> Shots:
    """Eight training photos and four held-out ones, all alike but for their features; one is there mirrored as well."""
    images = [*names(8, validation=False), *names(4, validation=True)]
    photos = [photo(image) for image in images]
    cache = [cached(image, THINGS, seed=number) for number, image in enumerate(images)]
    turned = [(category, (1 - box[2], box[1], 1 - box[0], box[3]), colour) for category, box, colour in THINGS]
    return gather_shots(photos, [*cache, cached(images[0], turned, mirrored=True)])


@pytest.fixture
def lexicon() -> Lexicon:
    """Names of the made-up things."""
    return Lexicon(
        names={"cup": {"cup": 1.0}, "dog": {"dog": 1.0}, "person": {"person": 1.0}, "bus": {"bus": 1.0}},
        kinds={"cup": "cup", "dog": "dog", "bus": "bus", "man": "person"},
    )
