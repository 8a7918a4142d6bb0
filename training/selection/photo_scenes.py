"""Scenes for the sentence engine: what the detector found in a photo, corrected by what is labelled there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from training.data.photos import Photo
from training.model.colournames import COLOURS
from training.model.nanodet import CLASSES
from training.phrases.edits import words
from training.phrases.nouns import Lexicon, heads
from training.phrases.things import Scene, Thing
from training.selection.candidate_cache import CachedPhoto

SURE = 0.38
"""Score from which a detection is taken for true."""
POSSIBLE = 0.2
"""Score from which a detection may be true, so that no sentence may fit it."""
SAME = 0.55
"""IoU from which two boxes are one thing."""
_SMALLEST = 0.002  # share of the photo below which a thing is not described
_STANDS_OUT = 0.45  # share of a region that its colour must have
_REGION = len(COLOURS) + 3  # values per region in the candidates' colours


@dataclass(frozen=True)
class PhotoScene:
    """A scene and where its things come from.

    Attributes:
        scene: the things, sure ones first.
        candidates: index of each thing's candidate; -1 for a labelled object that no candidate covers.
    """

    scene: Scene
    candidates: tuple[int, ...]


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes (n, 4) with boxes (m, 4), (n, m)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = [np.prod(np.clip(one[:, 2:] - one[:, :2], 0, None), axis=-1) for one in (a, b)]
    ious: np.ndarray = shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
    return ious


def object_boxes(photo: Photo, cached: CachedPhoto) -> np.ndarray:
    """Return the boxes of the labelled objects as shares of the photo's width and height, (n, 4)."""
    boxes = np.array([one.box for one in photo.objects], np.float32).reshape(-1, 4)
    boxes /= np.array([cached.width, cached.height] * 2, np.float32)
    if cached.mirrored:
        boxes = boxes[:, [2, 1, 0, 3]]
        boxes[:, [0, 2]] = 1 - boxes[:, [0, 2]]
    return boxes.clip(0, 1)


def category_of(probabilities: np.ndarray) -> tuple[str, float]:
    """Return the likeliest class and its probability."""
    best = int(probabilities.argmax())
    return CLASSES[best], float(probabilities[best])


def observations(photos: Iterable[Photo], cache: Iterable[CachedPhoto]) -> Iterator[tuple[str, str]]:
    """Yield human sentences about objects with their category, as labelled or as detected at the object's box."""
    for photo, cached in zip(photos, cache, strict=True):
        boxes = object_boxes(photo, cached)
        if not len(cached.boxes):
            continue
        overlap = box_iou(boxes, cached.boxes[: cached.detected])
        for index, one in enumerate(photo.objects):
            if not one.refers_to_one:
                continue
            if one.category in CLASSES and one.source != "flickr8k":
                category: str | None = one.category
            else:
                best = int(overlap[index].argmax())
                category, score = category_of(cached.probabilities[best])
                if overlap[index, best] < 0.6 or score < SURE:
                    continue
            if category is not None:
                yield from ((sentence, category) for sentence in one.sentences)


def photo_scene(photo: Photo, cached: CachedPhoto, lexicon: Lexicon | None) -> PhotoScene:
    """Describe a photo to the sentence engine.

    Args:
        photo: with its labels.
        cached: its candidates.
        lexicon: tells which nouns of human sentences name the object itself; None leaves human nouns out.
    """
    labelled = object_boxes(photo, cached)
    things: list[Thing] = []
    candidates: list[int] = []
    taken = np.zeros((0, 4), np.float32)
    covered = np.zeros(len(labelled), bool)
    for number in range(cached.detected):
        category, score = category_of(cached.probabilities[number].astype(np.float32))
        box = cached.boxes[number]
        small = (box[2] - box[0]) * (box[3] - box[1]) < _SMALLEST
        if score < POSSIBLE or (len(taken) and box_iou(box[None], taken).max() > SAME):
            continue
        overlap = box_iou(box[None], labelled)[0] if len(labelled) else np.zeros(0)
        matches = [
            int(i)
            for i in np.flatnonzero(overlap > 0.6)
            if photo.objects[i].category in (category, None) or photo.objects[i].sentences
        ]
        covered[overlap > 0.5] = True
        names = []
        for i in matches:
            one = photo.objects[i]
            if lexicon is not None and one.refers_to_one:
                for sentence in one.sentences:
                    names += [n for n in heads(words(sentence))[:1] if lexicon.kinds.get(n) == category]
        masked = next((cached.mask_colours[i] for i in matches if i in cached.mask_colours), None)
        shape = (box[3] - box[1]) * cached.height / max(1e-3, (box[2] - box[0]) * cached.width)
        whole, upper, lower = _colours(cached.colours[number].astype(np.float32), masked)
        person = category == "person"
        things.append(
            Thing(
                category=category,
                box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                names=tuple(names),
                colour=None if person else whole,
                upper=upper if person and shape > 1.3 else None,
                lower=lower if person and shape > 1.8 else None,
                sure=score >= SURE and not small,
            )
        )
        candidates.append(number)
        taken = np.concatenate([taken, box[None]])
    for index in np.flatnonzero(~covered):  # what the detector missed may still be meant
        one = photo.objects[index]
        if one.category in CLASSES and not one.flags & {"all_people_in_one_mask", "whole_image"}:
            left, top, right, bottom = map(float, labelled[index])
            things.append(Thing(category=one.category or "", box=(left, top, right, bottom), sure=False))
            candidates.append(-1)
    return PhotoScene(Scene(things=tuple(things)), tuple(candidates))


def _colours(shares: np.ndarray, masked: np.ndarray | None) -> tuple[str | None, str | None, str | None]:
    """Name the colours of a candidate: whole, upper part, lower part."""
    regions = [shares[_REGION * part : _REGION * part + len(COLOURS)] for part in range(3)]
    if masked is not None:
        regions = list(masked)
    found = []
    for region in regions:
        best = int(region.argmax())
        found.append(COLOURS[best] if region[best] > _STANDS_OUT else None)
    return found[0], found[1], found[2]
