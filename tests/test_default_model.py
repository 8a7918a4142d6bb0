"""The embedded model does its job on the example pictures: each sentence finds its object, another one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cris_edge import Segmenter
from cris_edge.backends import registry
from cris_edge.image import load_image
from cris_edge.metrics import iou
from training.scenes.synthetic import draw_scene

# The examples are scenes of the validation split, so that what each sentence means can be drawn again.
PICTURES = {"table.jpg": 70010, "hats.jpg": 70013}
SENTENCES = [
    ("table.jpg", "the red mug", ("mug", "red")),
    ("table.jpg", "the white mug", ("mug", "white")),
    ("table.jpg", "red banana", ("banana", "red")),
    ("table.jpg", "pink hat", ("hat", "pink")),
    ("table.jpg", "blue bowl", ("bowl", "blue")),
    ("hats.jpg", "blue hat", ("hat", "blue")),
    ("hats.jpg", "the lamp", ("lamp", "blue")),
    ("hats.jpg", "leftmost hat", ("hat", "black")),
]


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    assert request.param in registry.available()
    return Segmenter(runtime=request.param, cache_dir=None)


@pytest.mark.parametrize(("picture", "sentence", "meant"), SENTENCES)
def test_each_sentence_finds_its_object(
    segmenter: Segmenter, root: Path, picture: str, sentence: str, meant: tuple[str, str]
) -> None:
    scene = draw_scene(PICTURES[picture], "val", 480, 640)
    image = load_image(root / "examples" / picture)
    assert np.abs(image.astype(int) - scene.image).mean() < 5, "the picture is not the scene that the test draws"
    result = segmenter(image, sentence)
    overlaps = {(thing.kind, thing.colour): iou(result.mask, scene.mask(i)) for i, thing in enumerate(scene.objects)}
    assert max(overlaps, key=lambda name: overlaps[name]) == meant, overlaps
    assert overlaps[meant] > 0.5, overlaps
