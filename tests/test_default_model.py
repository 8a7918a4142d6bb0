"""The default model finds the object of each prompt in the example images, and another prompt finds another object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cris_edge import Segmenter
from cris_edge.backends import registry
from cris_edge.image import load_image
from cris_edge.metrics import iou
from training.scenes.synthetic import draw_scene

# The examples are scenes of the validation split: their ground truth can be drawn again from the seed.
SEEDS = {"table.jpg": 70010, "hats.jpg": 70013}
PROMPTS = [
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
    pytest.importorskip(request.param)
    assert request.param in registry.available()
    return Segmenter(runtime=request.param, cache_dir=None)


@pytest.mark.parametrize(("name", "prompt", "expected"), PROMPTS)
def test_each_prompt_finds_its_object(
    segmenter: Segmenter, root: Path, name: str, prompt: str, expected: tuple[str, str]
) -> None:
    scene = draw_scene(SEEDS[name], "val", 480, 640)
    image = load_image(root / "examples" / name)
    assert np.abs(image.astype(int) - scene.image).mean() < 5, "the image is not the scene that the seed draws"
    result = segmenter(image, prompt)
    overlaps = {(thing.kind, thing.colour): iou(result.mask, scene.mask(i)) for i, thing in enumerate(scene.objects)}
    assert max(overlaps, key=lambda key: overlaps[key]) == expected, overlaps
    assert overlaps[expected] > 0.5, overlaps
