from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cris_edge.image import Letterbox, postprocess
from cris_edge.tokenizer import Tokenizer
from training.data.samples import Example
from training.data.transforms import MASK_TARGETS, Transform, area_mask, letterbox_mask, mirrored


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("the man on the left", "the man on the right"),
        ("Leftmost cup, right side", "rightmost cup, left side"),
        ("second dog from the right", "second dog from the left"),
        ("person to the right of the left-hand car", "person to the left of the right-hand car"),
        ("red one", "red one"),
        ("guy in the bright shirt", "guy in the bright shirt"),
        ("lefty", "righty"),
    ],
)
def test_a_mirrored_sentence_is_true_of_the_mirrored_image(sentence: str, expected: str) -> None:
    assert mirrored(sentence) == expected


@pytest.mark.parametrize(
    "sentence",
    [
        "the dog right behind the bench",
        "pizza slice right next to the glass",
        "the leftover pizza",
        "the one left over",
        "only banana left behind",
        "second chair",
        "third one in the row",
        "player number 7",
        "number seven",
        "hand of the clock",
        "bag that says hello",
        "sign with letters",
        "plate at 3 o'clock",
    ],
)
def test_a_sentence_that_may_become_false_is_not_mirrored(sentence: str) -> None:
    assert mirrored(sentence) is None


def two_sides(sentence: str, side: str) -> Example:
    image = np.zeros((40, 60, 3), np.uint8)
    mask = np.zeros((40, 60), bool)
    columns = slice(2, 22) if side == "left" else slice(38, 58)
    mask[10:30, columns] = True
    image[mask] = 255
    return Example("sample", image, [sentence], lambda _: mask)


def test_a_flip_mirrors_image_mask_and_words_together_or_nothing() -> None:
    always = Transform(word_len=17, flip=1.0)
    flipped = always(two_sides("the left box", "left"), 64, np.random.default_rng(0))
    original = Transform(word_len=17)(two_sides("the right box", "right"), 64, np.random.default_rng(0))
    for name in ("image", "tokens", "mask"):
        np.testing.assert_allclose(flipped[name], original[name], atol=1e-6)
    unsafe = always(two_sides("the box right behind", "left"), 64, np.random.default_rng(0))
    kept = Transform(word_len=17)(two_sides("the box right behind", "left"), 64, np.random.default_rng(0))
    np.testing.assert_array_equal(unsafe["image"], kept["image"])
    np.testing.assert_array_equal(unsafe["tokens"], kept["tokens"])


def test_the_target_is_the_references_training_mask_where_the_loss_looks(golden: Path) -> None:
    with np.load(golden / "pre_post.npz") as arrays:
        numbers = sorted({name.split("/")[0] for name in arrays if name.endswith("/train_mask")})
        for number in numbers:
            expected = arrays[f"{number}/train_mask"]
            truth = arrays[f"{number}/gt"] > 0
            letterbox = Letterbox.fit(*truth.shape, expected.shape[0])
            found = letterbox_mask(truth, letterbox)
            np.testing.assert_allclose(found, expected[::4, ::4], atol=1e-6)


def drawn_by_inference(target: np.ndarray, letterbox: Letterbox, threshold: float) -> np.ndarray:
    """Return the mask of a network that predicts its target exactly."""
    share = np.clip(target, 1e-6, 1 - 1e-6)
    odds = share / (1 - share) * (threshold / (1 - threshold))
    return postprocess(np.log(odds).astype(np.float32)[None, None], letterbox) > threshold


@pytest.mark.parametrize("size", [128, 224, 416])
def test_the_area_is_what_inference_draws_and_the_papers_target_is_not(size: int) -> None:
    rng = np.random.default_rng(size)
    found: dict[str, list[float]] = {"area": [], "nearest": []}
    for _ in range(20):
        truth = np.zeros((3 * size // 4, size), np.uint8)
        place = [int(rng.integers(int(0.1 * side), int(0.9 * side))) for side in truth.shape[::-1]]
        axes = [int(rng.integers(int(0.04 * size), int(0.12 * size))) for _ in range(2)]
        cv2.ellipse(truth, place, axes, float(rng.integers(180)), 0, 360, 1, -1)
        letterbox = Letterbox.fit(*truth.shape, size)
        for name, ious in found.items():
            mask = drawn_by_inference(MASK_TARGETS[name](truth > 0, letterbox), letterbox, 0.35)
            ious.append(float((mask & (truth > 0)).sum() / (mask | (truth > 0)).sum()))
    area, nearest = np.mean(found["area"]), np.mean(found["nearest"])
    assert area > 0.9 and area > nearest + 0.05, (area, nearest)


def test_a_mask_of_everything_has_an_area_of_one_up_to_the_border() -> None:
    found = area_mask(np.ones((50, 50), bool), Letterbox.fit(50, 50, 96))
    # Beyond the centre of the image's last pixel the reference's letterbox has nothing.
    np.testing.assert_allclose(found[:-1, :-1], 1, atol=1e-6)
    assert found.dtype == np.float32 and found.shape == (24, 24)


def test_shapes_dtypes_and_repeated_sentences() -> None:
    example = two_sides("the left box", "left")
    made = Transform(word_len=9, sentences=3)(example, 96, np.random.default_rng(0))
    assert made["image"].shape == (3, 96, 96) and made["image"].dtype == np.float32
    assert made["tokens"].shape == (3, 9) and made["tokens"].dtype == np.int64
    assert made["mask"].shape == (3, 1, 24, 24) and made["mask"].dtype == np.float32
    np.testing.assert_array_equal(made["tokens"], Tokenizer()(["the left box"] * 3, length=9))
    assert made["mask"].min() >= 0 and made["mask"].max() == 1


def test_randomness_comes_from_the_generator_alone() -> None:
    transform = Transform(word_len=17, flip=0.5, jitter=0.3)
    example = two_sides("the left box", "left")

    def draw(seed: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        return [transform(example, 64, rng) for _ in range(4)]

    for first, second in zip(draw(1), draw(1), strict=True):
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
    assert any(not np.array_equal(a["image"], b["image"]) for a, b in zip(draw(1), draw(2), strict=True))


def test_jitter_keeps_hue() -> None:
    image = cv2.cvtColor(np.full((32, 32, 3), (60, 200, 120), np.uint8), cv2.COLOR_HSV2RGB)
    example = Example("plain", image, ["a wall"], lambda _: np.ones((32, 32), bool))
    mean = np.array([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = np.array([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    for seed in range(5):
        made = Transform(word_len=17, jitter=0.2)(example, 32, np.random.default_rng(seed))
        pixels = np.clip(np.rint((made["image"] * std + mean) * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        hue = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2HSV)[16, 16, 0]
        assert abs(int(hue) - 60) <= 2


def test_long_sentences_are_cut_without_a_warning() -> None:
    sentence = " ".join(["very"] * 40) + " left box"
    made = Transform(word_len=17)(two_sides(sentence, "left"), 64, np.random.default_rng(0))
    assert made["tokens"].shape == (1, 17) and made["tokens"][0, -1] == Tokenizer().end
