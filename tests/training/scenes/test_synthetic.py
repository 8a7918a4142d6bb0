"""Data sets of scenes, and the command that writes them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from cris_edge.image.coco import decode_rle
from training.scenes.describing import describe
from training.scenes.drawing import RESERVED, draw_scene
from training.scenes.scene import COLOURS, SPLITS
from training.scenes.shapes import KINDS
from training.scenes.synthetic import SyntheticScenes, main


def test_relations_split_has_only_relations() -> None:
    scenes = SyntheticScenes("relations", 40)
    assert {r.family for i in range(40) for r in scenes.example(i)[1]} == {"relation"}


def test_reserved_pairs_appear_only_in_compositions() -> None:
    assert len(RESERVED) == round(0.1 * len(KINDS) * len(COLOURS))
    assert len({kind for kind, _ in RESERVED}) == len(KINDS)
    for split in ("train", "val", "relations"):
        drawn = {(o.kind, o.colour) for seed in range(150) for o in draw_scene(seed, split).objects}
        assert not drawn & RESERVED
        assert len(drawn) > 100
    scenes = SyntheticScenes("compositions", 60)
    named = set()
    for i in range(60):
        scene, references = scenes.example(i)
        for r in references:
            thing = scene.objects[r.index]
            assert (r.query.noun.kind, r.query.noun.colour) == (thing.kind, thing.colour)
            named.add((thing.kind, thing.colour))
    assert named <= RESERVED
    assert len(named) > 10


def test_scenes_are_reproducible_and_splits_are_disjoint() -> None:
    images = set()
    for split in SPLITS:
        for seed in range(25):
            once, again = draw_scene(seed, split), draw_scene(seed, split)
            assert np.array_equal(once.image, again.image) and np.array_equal(once.labels, again.labels)
            assert once.objects == again.objects
            assert describe(once, seed, split) == describe(again, seed, split)
            images.add(once.image.tobytes())
    assert len(images) == 25 * len(SPLITS)


def test_scenes_do_not_depend_on_the_order_of_access() -> None:
    first, second = SyntheticScenes("val", 30, seed=5), SyntheticScenes("val", 9, seed=5)
    ahead = [first[i] for i in range(6)]
    for i in (5, 0, 3):
        image, sentences, masks = second[i]
        assert np.array_equal(image, ahead[i][0])
        assert sentences == ahead[i][1]
        assert all(np.array_equal(a, b) for a, b in zip(masks, ahead[i][2], strict=True))
    assert not np.array_equal(SyntheticScenes("val", 9, seed=6)[0][0], ahead[0][0])


def test_shapes_dtypes_and_number_of_prompts() -> None:
    image, sentences, masks = SyntheticScenes("train", 2, height=168, width=224, sentences_per_scene=3)[1]
    assert image.shape == (168, 224, 3)
    assert image.dtype == np.uint8
    assert len(sentences) == len(masks) == 3
    assert all(m.shape == (168, 224) and m.dtype == np.bool_ for m in masks)


def test_invalid_arguments() -> None:
    with pytest.raises(ValueError, match="Unknown split 'test'"):
        draw_scene(0, "test")
    with pytest.raises(ValueError, match="out of range"):
        draw_scene(-1)
    with pytest.raises(ValueError, match="too small"):
        draw_scene(0, height=32)
    with pytest.raises(ValueError, match="sentences_per_scene 0"):
        SyntheticScenes("val", 3, sentences_per_scene=0)
    with pytest.raises(IndexError, match="Scene 3 of 3"):
        SyntheticScenes("val", 3)[3]


def test_command_writes_labelled_json_lines(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--output", str(tmp_path / "scenes"), "--split", "val", "--count", "3"])
    assert result.exit_code == 0, result.output
    lines = [json.loads(x) for x in (tmp_path / "scenes" / "val.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = SyntheticScenes("val", 3)
    written = []
    for line in lines:
        bgr = cv2.imread(str(tmp_path / "scenes" / line["image"]))
        i = int(line["image"][-10:-4])
        image, sentences, masks = expected[i]
        assert np.array_equal(bgr[:, :, ::-1], image)
        mask = decode_rle(line["mask"])
        for sentence in line["sentences"]:
            assert np.array_equal(masks[sentences.index(sentence)], mask)
            written.append((i, sentence))
    assert sorted(written) == sorted((i, s) for i in range(3) for s in set(expected[i][1]))


def test_command_reports_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = CliRunner().invoke(main, ["--output", str(tmp_path / "file" / "scenes"), "--count", "1"])
    assert result.exit_code == 1
    assert "could not be written" in result.output
