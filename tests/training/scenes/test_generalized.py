from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest

from training.scenes.describing import describe
from training.scenes.drawing import draw_scene
from training.scenes.generalized import NEGATIVES, absent, generalize, several
from training.scenes.meaning import NO, YES, Noun, Query, fits
from training.scenes.prompts import phrase_several, plural
from training.scenes.scene import COLOURS
from training.scenes.synthetic import SyntheticScenes

SCENES = SyntheticScenes("val", 60, seed=3, height=128, width=160)


def test_what_matches_nothing_fits_no_object() -> None:
    checked = 0
    for index in range(40):
        scene, references = SCENES.example(index)
        for reference in references:
            prompt = absent(scene, reference, Random(index))
            if prompt is None:
                continue
            assert prompt.indices == () and prompt.family == "nothing"
            words = prompt.text.replace("violet", "purple").split()
            colours = [word for word in words if word in COLOURS]
            if reference.query.anchors or reference.query.noun.pattern or len(colours) != 1:
                continue  # the colour may be an anchor's, which stays true, or the pattern alone may be wrong
            if set(words) & {"striped", "stripy", "stripes", "dotted", "spotted", "dot", "plain", "solid", "pattern"}:
                continue
            checked += 1
            kinds = {thing.kind for thing in scene.objects if thing.colour == colours[0]}
            assert not kinds & set(words), prompt.text
    assert checked > 20


def test_several_means_every_object_of_the_group() -> None:
    found = 0
    for index in range(40):
        scene, _ = SCENES.example(index)
        prompt = several(scene, Random(index))
        if prompt is None:
            continue
        found += 1
        assert len(prompt.indices) >= 2 and prompt.family == "several"
        kinds = {scene.objects[number].kind for number in prompt.indices}
        assert len(kinds) == 1
        colours = {scene.objects[number].colour for number in prompt.indices}
        named = colours if len(colours) == 1 and set(prompt.text.split()) & (colours | {"violet"}) else {None}
        noun = Noun(kinds.pop(), named.pop())
        assert prompt.indices == tuple(o.index for o in scene.objects if o.visible and fits(noun, o) == YES)
        assert all(fits(noun, o) == NO for o in scene.objects if o.visible and o.index not in prompt.indices)
    assert found > 10


def test_shares_and_repeatability() -> None:
    families: Counter[str] = Counter()
    for index in range(60):
        scene, references = SCENES.example(index)
        prompts = generalize(scene, references, Random(index))
        assert prompts == generalize(scene, references, Random(index))
        families.update(prompt.family for prompt in prompts)
        for prompt, reference in zip(prompts, references, strict=True):
            if prompt.family not in ("nothing", "several"):
                assert (prompt.text, prompt.indices) == (reference.prompt, (reference.index,))
    share = families["nothing"] / families.total()
    assert abs(share - NEGATIVES) < 0.1
    assert families["several"] > 0


def test_generalized_examples_have_the_masks_of_their_prompts() -> None:
    scenes = SyntheticScenes("val", 12, seed=3, height=128, width=160, generalized=True)
    plain = SyntheticScenes("val", 12, seed=3, height=128, width=160)
    counts: Counter[int] = Counter()
    for index in range(12):
        image, sentences, masks = scenes[index]
        np.testing.assert_array_equal(image, plain[index][0])
        scene, prompts = scenes.prompts(index)
        for sentence, mask, prompt in zip(sentences, masks, prompts, strict=True):
            assert sentence == prompt.text
            expected = np.isin(scene.labels, [number + 1 for number in prompt.indices])
            np.testing.assert_array_equal(mask, expected)
            counts[min(2, len(prompt.indices))] += 1
    assert min(counts[0], counts[1]) > 5 and counts[2] > 0


@pytest.mark.parametrize(("noun", "expected"), [("mug", "mugs"), ("box", "boxes"), ("coffee mug", "coffee mugs")])
def test_plurals(noun: str, expected: str) -> None:
    assert plural(noun) == expected


def test_forms_of_a_plural_prompt() -> None:
    rng = Random(0)
    red = {phrase_several(Query(Noun("mug", "red")), 2, rng) for _ in range(300)}
    assert {"all the red mugs", "both red mugs", "the two red mugs", "every red mug"} <= red
    hats = {phrase_several(Query(Noun("hat")), 3, rng) for _ in range(300)}
    assert "the three hats" in hats and not any("both" in form or "two" in form for form in hats)


def test_a_scene_without_a_group_has_no_plural_prompt() -> None:
    for seed in range(200):
        scene = draw_scene(seed, "val", 128, 160)
        kinds = Counter(thing.kind for thing in scene.objects)
        if max(kinds.values()) == 1:
            assert several(scene, Random(0)) is None
            return
    pytest.fail("every scene has two objects of a kind")


def test_negatives_come_from_true_prompts() -> None:
    scene, _ = SCENES.example(0)
    for reference in describe(scene, 1, count=4):
        prompt = absent(scene, reference, Random(0))
        assert prompt is None or prompt.text != reference.prompt
