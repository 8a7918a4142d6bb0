"""Pools hold what is true of the photos, and nothing that is held out."""

from __future__ import annotations

import random

import numpy as np
import torch

from cris_edge.tokenizer import Tokenizer
from training.data.photos import Layout
from training.model.nanodet import CLASSES
from training.phrases.grammar import Describer
from training.phrases.nouns import Lexicon
from training.selection.layout_examples import LayoutExamples, PlacedLayout, place_layouts
from training.selection.photo_scenes import observations, photo_scene
from training.selection.pools import (
    Shots,
    absent_examples,
    build_scenes,
    human_examples,
    template_examples,
    training_pools,
)


def layout(
    sentence: str, *, person: bool | None = None, box: tuple[float, float, float, float] = (10, 10, 40, 90)
) -> Layout:
    return Layout(
        coco_id=5,
        width=100,
        height=100,
        box=box,
        person=person,
        sentence=sentence,
        person_boxes=((10, 10, 40, 90), (60, 10, 90, 90)) if person else None,
        dataset="refcoco",
    )


def test_a_scene_has_the_things_that_were_detected_with_their_colours(shots: Shots, lexicon: Lexicon) -> None:
    found = photo_scene(shots.photos[0], shots.cache[0], lexicon)
    assert [(thing.category, thing.colour, thing.sure) for thing in found.scene.things] == [
        ("cup", "red", True),
        ("cup", "blue", True),
        ("dog", "brown", True),
    ]
    assert found.candidates == (0, 1, 2)
    assert found.scene.things[0].names == ("cup",), "the human sentence's noun"


def test_the_category_of_a_sentence_is_that_of_its_box(shots: Shots) -> None:
    assert list(observations(shots.photos[:1], shots.cache[:1])) == [("red cup on left", "cup")]


def test_human_sentences_are_mirrored_with_their_photo(shots: Shots) -> None:
    turned = next(index for index, one in enumerate(shots.cache) if one.mirrored)
    plain = human_examples(shots, [0], random.Random(0), refcoco=True, augment=False)
    mirrored = human_examples(shots, [turned], random.Random(0), refcoco=True, augment=False)
    assert [one.sentence for one in plain] == ["red cup on left"]
    assert [one.sentence for one in mirrored] == ["red cup on right"]
    for examples in (plain, mirrored):
        assert np.argmax(examples[0].targets) == 0 and sum(value > 0 for value in examples[0].targets) == 1
    assert human_examples(shots, [0], random.Random(0), refcoco=False, augment=True) == []


def test_templates_point_at_what_they_name_and_swapped_colours_at_nothing(shots: Shots, lexicon: Lexicon) -> None:
    scenes = build_scenes(shots, range(8), lexicon)
    true, false = template_examples(shots, scenes, Describer(lexicon.names), random.Random(0))
    assert len(true) > 20 and false
    for one in true:
        target = int(np.argmax(one.targets))
        if "dog" in one.sentence.split() and len(one.sentence.split()) < 3:
            assert target == 2
        if "red" in one.sentence.split():
            assert target == 0
    for one in false:
        assert one.none == 1.0 and not any(one.targets)
        assert not ("red" in one.sentence and "cup" in one.sentence)


def test_a_prompt_about_an_absent_category_means_none(shots: Shots) -> None:
    made = absent_examples(shots, range(8), [("a bus", "bus"), ("a dog", "dog")], random.Random(0), 10)
    assert len(made) == 10 and {one.sentence for one in made} == {"a bus"}
    assert all(one.none == 1.0 for one in made)


def test_layouts_keep_their_persons_and_get_rivals_where_the_sentence_allows(shots: Shots, lexicon: Lexicon) -> None:
    placed = place_layouts(
        [layout("left man", person=True), layout("the left cup"), layout("thing"), layout("man on bus")], lexicon
    )
    assert [one.kind for one in placed] == [CLASSES.index("person"), CLASSES.index("cup")]
    assert len(placed[0].persons) == 1, "the object meant is not its own rival"
    maker = LayoutExamples(placed, shots.bank, range(8))
    cup = CLASSES.index("cup")
    rivals = 0
    for seed in range(200):
        example = maker.make(placed[1], random.Random(seed))
        assert example is not None and example.boxes is not None
        right = "right" in example.sentence
        own = example.boxes[0, [0, 2]].mean()
        for row, box in list(zip(example.rows, example.boxes, strict=True))[1:]:
            strong = bool(shots.bank.row_score[row] > 0.3)
            if strong and int(shots.bank.row_class[row]) == cup:
                rivals += 1
                assert (box[[0, 2]].mean() < own) == right
    assert rivals > 20


def test_a_layout_without_augmentation_is_as_annotated(shots: Shots) -> None:
    one = PlacedLayout(sentence="left dog", kind=CLASSES.index("dog"), box=(0.1, 0.1, 0.4, 0.9), persons=(), aspect=1.0)
    example = LayoutExamples([one], shots.bank, range(8)).make(one, random.Random(0), augment=False)
    assert example is not None and example.boxes is not None
    assert example.sentence == "left dog" and example.targets == [1.0]
    assert example.boxes.tolist() == np.array([one.box], np.float32).tolist()


def test_nothing_held_out_is_trained_on(shots: Shots, lexicon: Lexicon) -> None:
    pools = training_pools(
        shots, [layout("the left cup"), layout("a bus")], lexicon, Tokenizer(), variants=1, absent=20
    )
    train = set(shots.of(validation=False))
    start = shots.bank.start
    allowed = {int(start[i]) + k for i in train for k in range(int(shots.bank.count[i]))}
    for name in ("refcoco", "templates", "absent", "layouts"):
        rows = pools[name].rows
        assert len(rows) and set(rows[rows >= 0].tolist()) <= allowed, name
        assert torch.allclose(pools[name].targets.sum(1), torch.ones(len(rows))), name
