"""Masks are scored against what is labelled."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cris_edge.image.coco import encode_rle
from training.photo_model import scores_table
from training.phrases.nouns import Lexicon
from training.selection.mask_scores import (
    human_box_accuracy,
    labelled_scene,
    score_by_part,
    score_by_source,
    write_template_samples,
)
from training.selection.pools import Shots

SIZE, LEFT_CUP = 100, (0.05, 0.4, 0.25, 0.7)  # of the photos in conftest.py


class LeftCup:
    """Answers every prompt with the left cup's columns."""

    input_size, word_len, runtime, precision = 64, 17, "test", "float32"

    def logits(self, pixels: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        answer = np.full((len(tokens), 1, 16, 16), -9.0, np.float32)
        left, top, right, bottom = (round(16 * side) for side in LEFT_CUP)
        answer[:, :, top:bottom, left:right] = 9.0
        return answer


def with_masks(shots: Shots) -> Shots:
    """The same photos, whose left cups have masks."""
    left, top, right, bottom = (int(SIZE * side) for side in LEFT_CUP)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top:bottom, left:right] = True
    rle = encode_rle(mask)
    photos = [
        dataclasses.replace(photo, objects=tuple(dataclasses.replace(one, mask=rle) for one in photo.objects))
        for photo in shots.photos
    ]
    return Shots(photos, shots.cache, shots.bank)


@pytest.fixture
def root(tmp_path: Path, shots: Shots) -> Path:
    from PIL import Image

    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    for photo in shots.photos:
        Image.fromarray(pixels).save(tmp_path / photo.image)
    return tmp_path


def test_a_labelled_object_is_the_thing_that_was_detected_there(shots: Shots, lexicon: Lexicon) -> None:
    masked = with_masks(shots)
    scene, things = labelled_scene(masked.photos[0], masked.cache[0], lexicon)
    assert len(scene.things) == 3 and things == {0: 0}


def test_templates_are_written_for_held_out_objects_and_scored_by_source(
    shots: Shots, lexicon: Lexicon, root: Path
) -> None:
    path = root / "templates.jsonl"
    count = write_template_samples(with_masks(shots), lexicon, root, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert count == len(rows) == 4
    held_out = {photo.image for photo in shots.photos if photo.validation}
    assert {str(Path(row["image"]).relative_to(root)) for row in rows} <= held_out
    scores = score_by_source(LeftCup(), path, 0.5)
    assert scores["all"]["sentences"] == 4 and scores["all"] == scores["coco256"]
    assert scores["all"]["mIoU"] > 0.75 and scores["all"]["Pr@50"] == 1.0


def test_scores_are_broken_down(shots: Shots, lexicon: Lexicon, root: Path) -> None:
    path = root / "templates.jsonl"
    write_template_samples(with_masks(shots), lexicon, root, path)
    parts = score_by_part(LeftCup(), path, 0.5)
    assert parts["all"]["sentences"] == parts["category that the detector knows"]["sentences"] == 4
    assert parts["object of 5 to 15 %"]["sentences"] == 4 and "person" not in parts


def test_human_sentences_are_scored_by_the_box_of_the_mask(shots: Shots, root: Path) -> None:
    assert human_box_accuracy(LeftCup(), shots.photos[:12], root, 0.5) == {"sentences": 4, "accuracy": 1.0}


def test_the_table_has_every_score() -> None:
    figures = {"sentences": 4, "mIoU": 0.5, "Pr@50": 0.25}
    scores = {
        "selection": {"human": 0.6},
        "human_masks": {"sentences": 3, "accuracy": 0.5},
        "templates": {"all": figures},
        "test": {"all": figures, "person": figures},
    }
    table = scores_table(scores)
    assert "| human | 60.0 |" in table and "| all | 4 | 50.0 | 25.0 |" in table and "| person | 4 |" in table
