"""The default model finds the object of each prompt in the example photos, and says when there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cris_edge import Segmenter

# Boxes (x_min, y_min, x_max, y_max): COCO's annotations of the first two photos, drawn by hand for the others.
PROMPTS = [
    ("cat.jpg", "the bird", (409, 161, 497, 268)),
    ("cat.jpg", "the white cat", (2, 91, 276, 426)),
    ("cat.jpg", "the bowl on the left", (137, 257, 334, 371)),
    ("cat.jpg", "bowl on the right", (388, 250, 485, 322)),
    ("horses.jpg", "left horse", (253, 193, 314, 307)),
    ("horses.jpg", "the horse on the right", (324, 167, 475, 322)),
    ("horses.jpg", "person on the left", (233, 126, 296, 248)),
    ("street.jpg", "the red car", (135, 150, 395, 415)),
    ("street.jpg", "man in white shirt", (0, 128, 220, 480)),
    ("coffee.jpg", "the cup", (165, 0, 430, 305)),
    ("chelsea.jpg", "the cat", (0, 0, 420, 300)),
    ("astronaut.jpg", "the woman", (0, 15, 365, 512)),
]
IMAGES = sorted({name for name, _, _ in PROMPTS})


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    pytest.importorskip(request.param)
    return Segmenter(runtime=request.param, cache_dir=None)


def overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize(("name", "prompt", "box"), PROMPTS)
def test_each_prompt_finds_its_object(
    segmenter: Segmenter, root: Path, name: str, prompt: str, box: tuple[int, ...]
) -> None:
    result = segmenter(root / "examples" / name, prompt)
    assert result.matched and result.box is not None
    assert result.presence is not None and result.presence > 0.5
    assert overlap(result.box, box) > 0.5, result


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_absent_matches_nothing(segmenter: Segmenter, root: Path, name: str) -> None:
    result = segmenter(root / "examples" / name, "the green elephant")
    assert result.empty and result.score == 0
    assert result.presence is not None and result.presence < 0.5


def test_synthetic_scenes_are_still_an_example_of_another_model(root: Path) -> None:
    with Segmenter(root / "tests" / "data" / "scenes", runtime="onnxruntime", cache_dir=None) as scenes:
        assert scenes.bundle.manifest.presence is None
        assert scenes(root / "tests" / "data" / "scenes" / "table.jpg", "the red mug").matched
