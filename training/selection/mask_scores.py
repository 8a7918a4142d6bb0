"""Scores of masks on held-out photos: template sentences about objects with masks, and human ones about boxes."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cris_edge.files import write_whole
from cris_edge.image import load_image, postprocess, preprocess
from cris_edge.tokenizer import Tokenizer
from training.data.photos import REFCOCO_SOURCES, Photo, PhotoObject
from training.data.samples import LabelledSource
from training.model.nanodet import CLASSES
from training.phrases.grammar import Describer
from training.phrases.nouns import Lexicon
from training.phrases.things import Scene, Thing
from training.scoring import Predictor, score
from training.selection.candidate_cache import CachedPhoto
from training.selection.photo_scenes import box_iou, object_boxes, photo_scene
from training.selection.pools import Shots
from training.selection.ratings import kinds_of_sentences

OBJECTS = 500
"""Objects with masks that are described, by turns from each source."""
_UNUSED = frozenset(("part", "all_people_in_one_mask", "whole_image"))
_SMALLEST = 0.002  # share of the photo
_SAME = 0.6  # IoU of a thing with the labelled box that it is


def write_template_samples(
    shots: Shots, lexicon: Lexicon, root: Path, path: Path, *, count: int = OBJECTS, seed: int = 11
) -> int:
    """Write one sentence for each of ``count`` held-out objects with a mask, as JSON Lines, and return their number.

    Args:
        shots: photos and candidates.
        lexicon: nouns of categories.
        root: folder of the photo collection.
        path: the file; the paths of the images in it are absolute.
        count: objects, as many from each source as there are.
        seed: of what is random.
    """
    rng = random.Random(seed)
    describer = Describer(lexicon.names, lexicon.general)
    by_source: dict[str, list[dict[str, Any]]] = {}
    for index in shots.of(validation=True, mirrored=False):
        photo, cached = shots.photos[index], shots.cache[index]
        scene, things = labelled_scene(photo, cached, lexicon)
        for number, thing in things.items():
            described = describer.describe(scene, thing, rng, typos=0.0)
            one = photo.objects[number]
            if described is not None:
                row = {
                    "image": str((root / one.image).resolve()),
                    "sentences": [described.text],
                    "mask": dict(one.mask or {}),
                    "category": scene.things[thing].category,
                    "source": one.source,
                    "kinds": list(described.kinds),
                }
                by_source.setdefault(one.source, []).append(row)
    for rows in by_source.values():
        rng.shuffle(rows)
    chosen: list[dict[str, Any]] = []
    while len(chosen) < count and any(by_source.values()):
        chosen += [rows.pop() for _, rows in sorted(by_source.items()) if rows]
    chosen = chosen[:count]
    write_whole(path, "".join(json.dumps(row) + "\n" for row in chosen).encode())
    return len(chosen)


def labelled_scene(photo: Photo, cached: CachedPhoto, lexicon: Lexicon) -> tuple[Scene, dict[int, int]]:
    """Return the scene of a photo with its labelled objects in it, and the thing that each object with a mask is.

    Objects that the detector did not find, or does not know, are sure things here: they are labelled.
    """
    found = photo_scene(photo, cached, lexicon)
    things = [thing for thing, candidate in zip(found.scene.things, found.candidates, strict=True) if candidate >= 0]
    boxes = np.array([thing.box for thing in things], np.float32).reshape(-1, 4)
    labelled = object_boxes(photo, cached)
    overlap = box_iou(labelled, boxes) if len(boxes) else np.zeros((len(labelled), 0))
    is_thing: dict[int, int] = {}
    for number, one in enumerate(photo.objects):
        if one.category is None or one.flags & _UNUSED or _unclear(one):
            continue
        same = [
            int(i)
            for i in np.flatnonzero(overlap[number] > _SAME)
            if things[i].category == one.category or one.category not in CLASSES
        ]
        left, top, right, bottom = map(float, labelled[number])
        if same and one.category in CLASSES:
            place = max(same, key=lambda i: overlap[number, i])
        else:
            place = len(things)
            things.append(Thing(category=one.category, box=(left, top, right, bottom)))
        if one.mask is not None and things[place].area >= _SMALLEST:
            is_thing[number] = place
    sure = set(is_thing.values())
    things = [dataclasses.replace(thing, sure=True) if place in sure else thing for place, thing in enumerate(things)]
    return Scene(things=tuple(things)), is_thing


def score_by_source(predictor: Predictor, path: Path, threshold: float) -> dict[str, dict[str, float]]:
    """Score a predictor on a file of samples; return mIoU, Pr@50 and the number of sentences, by source and in all.

    Args:
        predictor: gives the logits.
        path: JSON Lines with a ``source`` in each line.
        threshold: probability above which a pixel belongs to the object.
    """
    sources = [json.loads(line).get("source", "") for line in path.read_text(encoding="utf-8").splitlines()]
    cases = score(predictor, LabelledSource(path), threshold=threshold).cases
    by_source: dict[str, list[float]] = {"all": []}
    for case in cases:
        by_source["all"].append(case.iou)
        by_source.setdefault(sources[case.index], []).append(case.iou)
    return {name: _figures(ious) for name, ious in by_source.items() if ious}


def score_by_part(predictor: Predictor, path: Path, threshold: float) -> dict[str, dict[str, float]]:
    """Score a predictor on labelled data, in all and by kind of sentence, size of the object and its category.

    Args:
        predictor: gives the logits.
        path: JSON Lines; lines may have a ``category``.
        threshold: probability above which a pixel belongs to the object.
    """
    categories = [json.loads(line).get("category") for line in path.read_text(encoding="utf-8").splitlines()]
    cases = score(predictor, LabelledSource(path), threshold=threshold).cases
    kinds = kinds_of_sentences([case.sentence for case in cases])
    areas = np.array([case.area for case in cases])
    known = np.array([categories[case.index] in CLASSES for case in cases])
    parts = {
        "all": np.ones(len(cases), bool),
        **{f"sentence: {name}": chosen for name, chosen in kinds.items()},
        "object below 5 % of the image": areas < 0.05,
        "object of 5 to 15 %": (areas >= 0.05) & (areas < 0.15),
        "object above 15 %": areas >= 0.15,
        "person": np.array([categories[case.index] == "person" for case in cases]),
        "category that the detector knows": known,
        "other category": ~known,
    }
    ious = np.array([case.iou for case in cases])
    return {name: _figures(ious[chosen].tolist()) for name, chosen in parts.items() if chosen.any()}


def human_box_accuracy(predictor: Predictor, photos: Sequence[Photo], root: Path, threshold: float) -> dict[str, float]:
    """Score human sentences by the bounding box of the mask, since no photo has both a human sentence and a mask.

    Args:
        predictor: gives the logits.
        photos: those that are held out are used.
        root: folder of the photo collection.
        threshold: probability above which a pixel belongs to the object.

    Returns:
        The number of RefCOCO sentences, and the share whose mask's box has an IoU above 0.5 with the labelled one.
    """
    tokenizer, right = Tokenizer(), []
    for photo in photos:
        objects = [one for one in photo.objects if one.source in REFCOCO_SOURCES and one.refers_to_one]
        if not photo.validation or not objects:
            continue
        pixels, letterbox = preprocess(load_image(root / photo.image), predictor.input_size)
        owners = [(one, sentence) for one in objects for sentence in one.sentences]
        tokens = tokenizer([sentence for _, sentence in owners], length=predictor.word_len)
        for (one, _), logits in zip(owners, predictor.logits(pixels, tokens), strict=True):
            mask = postprocess(logits[None], letterbox) > threshold
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            if not len(rows):
                right.append(False)
                continue
            box = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32)
            right.append(bool(box_iou(box, np.array([one.box], np.float32))[0, 0] > 0.5))
    return {"sentences": len(right), "accuracy": float(np.mean(right)) if right else 0.0}


def _figures(ious: Sequence[float]) -> dict[str, float]:
    return {
        "sentences": len(ious),
        "mIoU": float(np.mean(ious)),
        "Pr@50": float(np.mean([iou > 0.5 for iou in ious])),
    }


def _unclear(one: PhotoObject) -> bool:
    """Whether one mask covers several objects of a class, so that a sentence about one would be wrong."""
    return one.same_class_components > 3
