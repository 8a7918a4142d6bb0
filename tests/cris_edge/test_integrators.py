"""docs/integrators.md, implemented literally in numpy, gives the same results as the SDK."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cris_edge.bundle import Bundle
from cris_edge.bundle.presence import calibrated_presence
from cris_edge.image import MEAN, STD, postprocess, preprocess
from cris_edge.tokenizer import Tokenizer

Values = NDArray[np.float64]
SIZES = [(96, 160), (300, 200), (64, 64), (50, 333), (1, 1), (480, 640)]


def k(distance: Values) -> Values:
    a, d = -0.75, np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    return np.where(d <= 1, near, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a)


def matrix(positions: Values, count: int, outside: str) -> tuple[Values, Values]:
    """Return (len(positions), count) weights, and the weight of each row that lies outside."""
    weights, lost = np.zeros((len(positions), count)), np.zeros(len(positions))
    for row, position in enumerate(positions):
        first = int(np.floor(position))
        for column in range(first - 1, first + 3):
            weight = float(k(np.array(position - column)))
            if 0 <= column < count:
                weights[row, column] += weight
            elif outside == "repeats":
                weights[row, min(max(column, 0), count - 1)] += weight
            else:
                lost[row] += weight
    return weights, lost


def letterbox(height: int, width: int, size: int) -> tuple[float, float, float]:
    scale = min(size / height, size / width)
    return scale, (size - scale * width) / 2, (size - scale * height) / 2


def image_to_input(rgb: NDArray[np.uint8], size: int) -> Values:
    height, width = rgb.shape[:2]
    scale, left, top = letterbox(height, width, size)
    across, _ = matrix((np.arange(size) - left) / scale, width, "border")
    down, _ = matrix((np.arange(size) - top) / scale, height, "border")
    image = np.empty((1, 3, size, size))
    for channel in range(3):
        border = round(255 * MEAN[channel])
        # The weights of a pixel sum to one, so the border has the remaining weight.
        value = border + down @ (rgb[:, :, channel].astype(float) - border) @ across.T
        image[0, channel] = (np.clip(np.round(value), 0, 255) / 255 - MEAN[channel]) / STD[channel]
    return image


def logits_to_probability(logits: NDArray[np.float32], height: int, width: int) -> Values:
    small = logits.shape[-1]
    size = 4 * small
    scale, left, top = letterbox(height, width, size)
    enlarge, _ = matrix(np.arange(size) * (small - 1) / (size - 1), small, "repeats")
    across, _ = matrix(scale * np.arange(width) + left, size, "zero")
    down, _ = matrix(scale * np.arange(height) + top, size, "zero")
    probability = 1 / (1 + np.exp(-logits[0, 0].astype(float)))
    return (down @ enlarge) @ probability @ (across @ enlarge).T


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pictures(height: int, width: int) -> None:
    import cv2

    generator = np.random.default_rng(height)
    rgb = cv2.resize(generator.integers(0, 256, (12, 12, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    ours, theirs = image_to_input(np.asarray(rgb), 128), preprocess(np.asarray(rgb), 128)[0]
    levels = np.abs(ours - theirs) * 255 * np.reshape(STD, (1, 3, 1, 1))
    exact = int(cv2.__version__.partition(".")[0]) >= 5
    assert levels.max() < (1.01 if exact else 5.01)
    assert levels.mean() < (0.01 if exact else 0.5)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_masks(height: int, width: int) -> None:
    logits = np.random.default_rng(width).normal(0, 3, (1, 1, 32, 32)).astype(np.float32)
    _, box = preprocess(np.zeros((height, width, 3), np.uint8), 128)
    np.testing.assert_allclose(postprocess(logits, box), logits_to_probability(logits, height, width), atol=1e-5)


def test_prompts(tiny: Path) -> None:
    page_start, page_end = 49406, 49407
    document = json.loads((tiny / "tokenizer.json").read_bytes())
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer.from_str(json.dumps(document))
    assert library.get_vocab_size() == 49408
    ours = Tokenizer()
    for prompt in ("the man in the red shirt", "  A  DOG's\tball ", "x" * 200, "left-most 3rd one, please!"):
        text = re.sub(r"\s+", " ", prompt).strip().lower()
        ids = library.encode(text, add_special_tokens=False).ids[:15]
        expected = [page_start, *ids, page_end]
        with pytest.warns() if len(library.encode(text, add_special_tokens=False).ids) > 15 else _Nothing():
            found = ours(prompt, 17)[0].tolist()
        assert found == expected + [0] * (17 - len(expected))


class _Nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def test_the_golden_file_is_as_described(tiny: Path) -> None:
    manifest = Bundle.open(tiny).manifest
    with zipfile.ZipFile(tiny / "golden.npz") as archive:
        assert sorted(archive.namelist()) == ["image.npy", "logits.npy", "tokens.npy"]
    with np.load(tiny / "golden.npz") as golden:
        image = golden["image"]
    # Already letterboxed: step 4 alone gives the network's input.
    step4 = (image[0] / 255 - np.array(manifest.mean)) / np.array(manifest.std)
    np.testing.assert_allclose(preprocess(image[0], manifest.input_size)[0][0], step4.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_presence_from_logits(scale: float) -> None:
    generator = np.random.default_rng(7)
    logits = scale * generator.standard_normal((1, 1, 56, 56)) - scale
    names = ("intercept", "peak", "top", "mean", "inside", "area", "certain")
    coefficients = dict(zip(names, generator.uniform(-0.2, 0.2, len(names)).tolist(), strict=True))
    x, t = np.sort(np.clip(logits.ravel(), -30, 30)), np.log(0.35 / 0.65)
    inside = x[x > t]
    statistics = {
        "peak": x[-1],
        "top": x[-max(1, round(len(x) / 100)) :].mean(),
        "mean": x.mean(),
        "inside": inside.mean() if len(inside) else t,
        "area": np.log((len(inside) + 1) / len(x)),
        "certain": (2 * np.abs(1 / (1 + np.exp(-x)) - 0.5)).mean(),
    }
    z = coefficients["intercept"] + sum(coefficients[name] * value for name, value in statistics.items())
    assert calibrated_presence(logits, coefficients) == pytest.approx(1 / (1 + np.exp(-z)), abs=1e-9)
