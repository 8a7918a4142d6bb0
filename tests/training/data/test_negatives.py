from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_edge.errors import DataError
from cris_edge.image.labelled import read_samples
from training.data.negatives import COLOURS, Negatives
from training.data.samples import LabelledSource, open_source
from training.data.transforms import Transform


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images: one with a cup, one with two dogs, and one that does not say what is in it."""
    for name in "abc":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((40, 60, 3), 90, np.uint8))
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    lines = [
        {"image": "a.png", "sentences": ["the red cup"], "mask": square, "category": "cup", "categories": {"cup": 1}},
        {"image": "a.png", "sentences": ["the dog"], "mask": None, "categories": {"cup": 1}},
        {"image": "b.png", "sentences": ["brown dog"], "mask": square, "category": "dog", "categories": {"dog": 2}},
        {"image": "c.png", "sentences": ["blue kite"], "mask": square, "category": "kite"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_prompts_are_of_absent_categories_or_of_another_colour(data: Path) -> None:
    samples = read_samples(data)
    negatives, rng = Negatives(samples), np.random.default_rng(0)
    assert negatives
    cup = {negatives.draw(samples[:2], rng) for _ in range(200)}
    assert {"brown dog", "blue kite"} < cup
    swapped = cup - {"brown dog", "blue kite"}
    assert swapped and all(prompt.startswith("the ") and prompt.endswith(" cup") for prompt in swapped if prompt)
    colours = {str(prompt).split()[1] for prompt in swapped}
    assert colours <= set(COLOURS) - {"red", "maroon", "orange"}
    dogs = {negatives.draw(samples[2:3], rng) for _ in range(100)}
    assert dogs == {"the red cup", "blue kite"}  # two dogs: another one may have the other colour
    assert negatives.draw(samples[3:], rng) is None  # what the image lacks is not known


def test_data_that_does_not_say_what_is_absent_has_none(data: Path, tmp_path: Path) -> None:
    assert not Negatives(read_samples(data)[3:])
    assert open_source("scenes:val:2:1").negatives


@pytest.mark.parametrize("counts", [["cup"], {"cup": 0}, {"cup": "1"}, {"cup": True}])
def test_wrong_counts_are_named(data: Path, counts: object) -> None:
    line = json.loads(data.read_text(encoding="utf-8").splitlines()[0]) | {"categories": counts}
    data.write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match='line 1: its "categories" are'):
        Negatives(read_samples(data))


def test_examples_carry_what_matches_nothing(data: Path) -> None:
    source = LabelledSource(data, by_image=True)
    example = source.load(0, 64)
    assert example.sentences == ["the red cup", "the dog"]
    assert example.absent == {1} and example.truth(0).any() and not example.truth(1).any()
    made = Transform(word_len=8, sentences=2)(example, 64, np.random.default_rng(0))
    order = sorted(zip(made["present"].tolist(), made["mask"].sum(axis=(1, 2, 3)).tolist(), strict=True))
    assert order[0] == (0.0, 0.0) and order[1][0] == 1.0 and order[1][1] > 0


@pytest.mark.parametrize("spec", ["scenes:val:4:1", "labelled"])
def test_negatives_are_drawn_on_the_fly(data: Path, spec: str) -> None:
    example = (LabelledSource(data, by_image=True) if spec == "labelled" else open_source(spec)).load(0, 128)
    every = Transform(word_len=17, sentences=2, negatives=1.0)(example, 128, np.random.default_rng(0))
    assert every["present"].tolist() == [0, 0] and not every["mask"].any()
    again = Transform(word_len=17, sentences=2, negatives=1.0)(example, 128, np.random.default_rng(0))
    np.testing.assert_array_equal(every["tokens"], again["tokens"])
    none = Transform(word_len=17, sentences=1)(
        open_source("scenes:val:4:1").load(0, 128), 128, np.random.default_rng(0)
    )
    assert none["present"].tolist() == [1]
