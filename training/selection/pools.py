"""The pools that the selector is trained and validated on, built from labelled photos, their candidates and layouts."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cris_edge.tokenizer import Tokenizer
from training.data.photos import REFCOCO_SOURCES, Layout, Photo
from training.model.nanodet import CLASSES
from training.phrases.edits import COLOURS, mirror, misspell, shorten, swap_colour, word_set, words
from training.phrases.grammar import Describer
from training.phrases.nouns import Lexicon
from training.phrases.things import Scene
from training.selection.candidate_cache import CachedPhoto
from training.selection.examples import Bank, Example, Pool, make_pool, soft_targets
from training.selection.layout_examples import LayoutExamples, place_layouts
from training.selection.photo_scenes import PhotoScene, box_iou, object_boxes, photo_scene

MIX: Mapping[str, float] = {
    "refcoco": 0.14,
    "flickr": 0.18,
    "layouts": 0.4,
    "templates": 0.22,
    "absent": 0.06,
    "swapped": 0.04,
}
"""Share of each pool in a batch."""
TUNING_MIX: Mapping[str, float] = {
    "refcoco": 0.34,
    "flickr": 0.15,
    "layouts": 0.25,
    "templates": 0.17,
    "absent": 0.05,
    "swapped": 0.04,
}
"""Shares in the last steps: more RefCOCO sentences on photos, which are too few to train on for long."""
_PLACES = word_set(
    "left right top bottom middle center centre corner side front back upper lower far near closest nearest farthest "
    "first second third 2nd 3rd big bigger biggest small smaller smallest large larger largest background foreground "
    "only one"
)
_NONE_IF_MISSED = 0.25  # share of the examples whose object was not detected that ask for "none"
_PER_PHOTO = 6  # template sentences of a photo and its mirror image, each
_LEAST_ABSENT = 0.1  # a category below this in every candidate is taken for absent


@dataclass(frozen=True)
class Shots:
    """Photos with their candidates, originals first, then mirrored ones, and where each is in the bank."""

    photos: list[Photo]
    cache: list[CachedPhoto]
    bank: Bank

    def of(self, *, validation: bool, mirrored: bool | None = None) -> list[int]:
        """Return the indices of the photos on one side of the split."""
        return [
            index
            for index, (photo, cached) in enumerate(zip(self.photos, self.cache, strict=True))
            if photo.validation == validation and mirrored in (None, cached.mirrored)
        ]


def gather_shots(photos: Sequence[Photo], cache: Sequence[CachedPhoto]) -> Shots:
    """Pair cached candidates with the labels of their photos; photos without candidates are left out."""
    labels = {photo.image: photo for photo in photos}
    kept = [one for one in cache if one.image in labels and one.detected]
    return Shots([labels[one.image] for one in kept], kept, Bank(kept))


def human_examples(
    shots: Shots, indices: Sequence[int], rng: random.Random, *, refcoco: bool, augment: bool
) -> list[Example]:
    """Make examples of human sentences.

    Args:
        shots: photos and candidates.
        indices: of the photos to use.
        rng: for the augmentation.
        refcoco: whether to use RefCOCO sentences, else phrases of Flickr30k Entities.
        augment: whether to add shortened and misspelled forms, and the labelled box where the detector missed it.
            Without, targets of missed objects are empty and sum to zero.
    """
    made = []
    frequency: Counter[str] = Counter()
    for index in indices:
        photo, cached = shots.photos[index], shots.cache[index]
        boxes = object_boxes(photo, cached)
        start, detected, total = int(shots.bank.start[index]), cached.detected, len(cached.boxes)
        overlap = box_iou(boxes, cached.boxes)
        for number, one in enumerate(photo.objects):
            if not one.refers_to_one or (one.source in REFCOCO_SOURCES) != refcoco:
                continue
            if not refcoco and one.source != "flickr8k":
                continue
            columns = list(range(detected))
            weights = soft_targets(overlap[number])
            missed = not weights[:detected].any()
            if missed and not augment and not refcoco:
                continue
            none = 0.0
            if missed and augment:
                extra = detected + int(overlap[number, detected:].argmax()) if total > detected else -1
                if extra < 0 or overlap[number, extra] < 0.9:
                    continue  # nothing to point at
                if rng.random() < _NONE_IF_MISSED:
                    none = 1.0
                else:
                    columns.append(extra)
            for sentence in one.sentences:
                text = " ".join(words(sentence))
                turned = mirror(text) if cached.mirrored else text
                if not text or turned is None:
                    continue
                forms = [turned, shorten(turned, rng), misspell(turned, rng)] if augment else [turned]
                best = cached.probabilities[int(overlap[number, :detected].argmax())]
                frequency[CLASSES[int(best.argmax())]] += 1
                made += [
                    Example(
                        rows=[start + column for column in columns],
                        targets=[float(weights[column]) for column in columns],
                        none=none,
                        sentence=form,
                        aspect=cached.width / cached.height,
                        mosaic=not _PLACES & set(form.split()) and len(form.split()) > 1,
                        weight=weight,
                    )
                    for form, weight in zip(dict.fromkeys(forms), (1.0, 0.5, 0.1), strict=False)
                ]
    return made


def template_examples(
    shots: Shots,
    scenes: Mapping[int, PhotoScene],
    describer: Describer,
    rng: random.Random,
    *,
    per_photo: int = _PER_PHOTO,
) -> tuple[list[Example], list[Example]]:
    """Make sentences about what is in the photos, and false ones that differ by a colour.

    Returns:
        Examples with a target, and examples that mean none of the candidates.
    """
    true: list[Example] = []
    false: list[Example] = []
    for index, found in scenes.items():
        scene, cached = found.scene, shots.cache[index]
        start = int(shots.bank.start[index])
        rows = list(range(start, start + cached.detected))
        sure = [i for i, thing in enumerate(scene.things) if thing.sure]
        if not sure:
            continue
        counts = Counter(thing.category for thing in scene.things)
        weights = [(3.0 if counts[scene.things[i].category] > 1 else 1.0) for i in sure]
        for target in rng.choices(sure, weights, k=min(per_photo, 2 * len(sure))):
            described = describer.describe(scene, target, rng)
            if described is None:
                continue
            thing = scene.things[target]
            candidate = found.candidates[target]
            same = (shots.bank.row_class[rows].numpy() == CLASSES.index(thing.category)).astype(float)
            soft = soft_targets(box_iou(cached.boxes[candidate][None], cached.boxes[: cached.detected])[0]) * same
            soft[candidate] = max(soft[candidate], 0.4)
            common: dict[str, Any] = {"rows": rows, "aspect": cached.width / cached.height}
            relative = bool(set(described.kinds) & {"side", "corner", "middle", "ordinal", "size", "depth", "relation"})
            true.append(
                Example(
                    **common,
                    targets=[float(value) for value in soft],
                    none=0.0,
                    sentence=described.text,
                    mosaic=not relative and thing.category in described.text,
                    weight=1.0,
                )
            )
            wrong = (
                swap_colour(described.text, rng.choice)
                if "colour" in described.kinds or "clothing" in described.kinds
                else None
            )
            if wrong is not None and _untrue(scene, thing.category, set(words(wrong)) & set(COLOURS)):
                false.append(Example(**common, targets=[0.0] * len(rows), none=1.0, sentence=wrong))
    return _balanced(true, shots), false


def absent_examples(
    shots: Shots, indices: Sequence[int], prompts: Sequence[tuple[str, str]], rng: random.Random, count: int
) -> list[Example]:
    """Make examples of prompts whose category is not in the photo.

    Args:
        shots: photos and candidates.
        indices: of the photos to use.
        prompts: sentences with their category.
        rng: chooses.
        count: examples to make.
    """
    made: list[Example] = []
    strongest = shots.bank.strongest.numpy()
    for _ in range(20 * count):
        if len(made) == count:
            break
        index = rng.choice(indices)
        sentence, category = rng.choice(prompts)
        photo, cached = shots.photos[index], shots.cache[index]
        if strongest[index, CLASSES.index(category)] > _LEAST_ABSENT or any(
            o.category == category for o in photo.objects
        ):
            continue
        start = int(shots.bank.start[index])
        rows = list(range(start, start + cached.detected))
        made.append(
            Example(
                rows=rows, targets=[0.0] * len(rows), none=1.0, sentence=sentence, aspect=cached.width / cached.height
            )
        )
    return made


def build_scenes(shots: Shots, indices: Sequence[int], lexicon: Lexicon) -> dict[int, PhotoScene]:
    """Return the scene of each photo."""
    return {index: photo_scene(shots.photos[index], shots.cache[index], lexicon) for index in indices}


def training_pools(
    shots: Shots,
    layouts: Sequence[Layout],
    lexicon: Lexicon,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    variants: int = 6,
    absent: int = 20_000,
) -> dict[str, Pool]:
    """Build all pools for training; nothing held out goes into them.

    Args:
        shots: photos and candidates.
        layouts: those that may be trained on.
        lexicon: nouns of categories.
        tokenizer: for the prompts.
        seed: of what is random.
        variants: examples of each layout.
        absent: examples of prompts about absent categories.
    """
    rng = random.Random(seed)
    train = shots.of(validation=False)
    scenes = build_scenes(shots, train, lexicon)
    describer = Describer(lexicon.names, lexicon.general)
    true, false = template_examples(shots, scenes, describer, rng)
    refcoco = human_examples(shots, train, rng, refcoco=True, augment=True)
    flickr = human_examples(shots, train, rng, refcoco=False, augment=True)
    placed = place_layouts(layouts, lexicon)
    maker = LayoutExamples(placed, shots.bank, shots.of(validation=False, mirrored=False))
    prompts = [(one.sentence, CLASSES[one.kind]) for one in placed]
    for example in true:
        prompts.append(
            (example.sentence, CLASSES[int(shots.bank.row_class[example.rows[int(np.argmax(example.targets))]])])
        )
    without = absent_examples(shots, train, _even(prompts, rng), rng, absent)
    pools = {"refcoco": refcoco, "flickr": flickr, "templates": true, "swapped": false, "absent": without}
    human = ("refcoco", "flickr")
    made = {name: make_pool(examples, tokenizer, human=name in human) for name, examples in pools.items()}
    made["layouts"] = make_pool(maker.all(rng, variants), tokenizer, seen=False, human=True)
    return made


def _even(prompts: Sequence[tuple[str, str]], rng: random.Random, most: int = 400) -> list[tuple[str, str]]:
    """Limit the prompts of each category, so that persons do not crowd out the rest."""
    found: dict[str, list[tuple[str, str]]] = {}
    for prompt in rng.sample(list(prompts), len(prompts)):
        found.setdefault(prompt[1], []).append(prompt)
    return [prompt for group in found.values() for prompt in group[:most]]


def _untrue(scene: Scene, category: str, colours: set[str]) -> bool:
    """Whether nothing of a category can have one of these colours; what is unknown can have any."""
    for thing in scene.things:
        if thing.category == category:
            known = (thing.upper, thing.lower) if category == "person" else (thing.colour,)
            if None in known or colours & set(known):
                return False
    return True


def _balanced(examples: list[Example], shots: Shots) -> list[Example]:
    """Weigh examples so that a category with n of them counts as its square root."""
    kinds = [int(shots.bank.row_class[one.rows[int(np.argmax(one.targets))]]) for one in examples]
    counts = Counter(kinds)
    largest = max(counts.values(), default=1)
    return [
        dataclasses.replace(one, weight=one.weight * (largest / counts[kind]) ** 0.5)
        for one, kind in zip(examples, kinds, strict=True)
    ]
