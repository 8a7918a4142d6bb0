from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_edge.errors import ImageError
from cris_edge.image import MAX_PIXELS, MEAN, STD, Letterbox, load_image, postprocess, preprocess


def test_golden(golden: Path) -> None:
    arrays = np.load(golden / "pre_post.npz")
    for index in sorted(name.split("/")[0] for name in arrays.files if name.endswith("/bgr")):
        assert_as_reference(arrays, index)


def assert_as_reference(golden: Mapping[str, np.ndarray], index: str) -> None:
    rgb = load_image(golden[f"{index}/bgr"], color="bgr")
    pixels, letterbox = preprocess(rgb, int(golden["input_size"]))
    # OpenCV 4 interpolates in fixed point: up to three of the 255 levels
    tolerance = 1e-4 if int(cv2.__version__.split(".")[0]) >= 5 else 0.05
    np.testing.assert_allclose(pixels[0], golden[f"{index}/input"], atol=tolerance)
    np.testing.assert_allclose(letterbox.matrix, golden[f"{index}/matrix"], atol=1e-6)
    np.testing.assert_allclose(letterbox.inverse, golden[f"{index}/inverse"], atol=1e-6)
    probability = postprocess(golden[f"{index}/logits"], letterbox)
    np.testing.assert_allclose(probability, golden[f"{index}/probability"], atol=1e-4)
    differing = (probability > 0.35) != golden[f"{index}/mask"]
    assert np.abs(golden[f"{index}/probability"][differing] - 0.35).max(initial=0) < 1e-4


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3), (480, 640), (96, 96), (417, 33)])
@pytest.mark.parametrize("size", [96, 160])
def test_postprocess_is_upsampling_and_warping(shape: tuple[int, int], size: int) -> None:
    functional = pytest.importorskip("torch.nn.functional")
    torch = pytest.importorskip("torch")
    letterbox = Letterbox.fit(*shape, size)
    logits = np.random.default_rng(0).normal(0, 5, (1, 1, size // 4, size // 4)).astype(np.float32)
    probability = torch.sigmoid(torch.from_numpy(logits))
    larger = functional.interpolate(probability, size=(size, size), mode="bicubic", align_corners=True)[0, 0].numpy()
    # Cubic convolution straight from its definition, one original pixel at a time
    expected = np.zeros(shape)
    for row, column in np.ndindex(*shape):
        x, y = letterbox.matrix @ [column, row, 1]
        for j in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
            for i in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                if 0 <= j < size and 0 <= i < size:
                    expected[row, column] += kernel(y - j) * kernel(x - i) * larger[j, i]
        if row * column > 2000:  # enough of a large image
            break
    computed = postprocess(logits, letterbox)
    assert computed.shape == shape
    assert computed.dtype == np.float32
    seen = expected != 0
    np.testing.assert_allclose(computed[seen], expected[seen], atol=1e-5)


def kernel(distance: float) -> float:
    t = abs(distance)
    if t <= 1:
        return 1.25 * t**3 - 2.25 * t**2 + 1
    return -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def test_letterbox_round_trip() -> None:
    letterbox = Letterbox.fit(333, 250, 416)
    forth, back = np.vstack([letterbox.matrix, [0, 0, 1]]), np.vstack([letterbox.inverse, [0, 0, 1]])
    np.testing.assert_allclose(back @ forth, np.eye(3), atol=1e-4)
    corners = letterbox.matrix @ np.array([[0, 250], [0, 333], [1, 1]])
    np.testing.assert_allclose(corners, [[51.8438, 364.1562], [0, 416]], atol=1e-3)
    assert letterbox == Letterbox.fit(333, 250, 416) != Letterbox.fit(250, 333, 416)
    with pytest.raises(ValueError, match="read-only"):
        letterbox.matrix[0, 0] = 1


def test_preprocess_normalizes_on_the_mean_colour() -> None:
    pixels, _ = preprocess(np.full((10, 20, 3), (200, 100, 50), np.uint8), 64)
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    inside = [(value / 255 - mean) / std for value, mean, std in zip((200, 100, 50), MEAN, STD, strict=True)]
    np.testing.assert_allclose(pixels[0, :, 32, 32], inside, atol=1e-6)
    np.testing.assert_allclose(pixels[0, :, 2, 32], 0, atol=0.01)  # the border is the mean, but for rounding


def test_preprocess_accepts_the_mean_of_another_model() -> None:
    pixels, _ = preprocess(np.full((8, 8, 3), 255, np.uint8), 32, mean=(0.5, 0.25, 0), std=(0.5, 0.25, 1))
    np.testing.assert_allclose(pixels[0, :, 16, 16], [1, 3, 1], atol=1e-6)


@pytest.mark.parametrize(
    "array",
    [
        None,
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_preprocess_refuses_other_arrays(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="load_image"):
        preprocess(array, 64)


def test_threads_share_the_geometry() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    logits = np.random.default_rng(1).normal(0, 4, (1, 1, 40, 40)).astype(np.float32)
    pixels, letterbox = preprocess(rgb, 160)
    probability = postprocess(logits, letterbox)
    equal: list[bool] = []

    def work() -> None:
        for _ in range(20):
            again, box = preprocess(rgb, 160)
            equal.append((again == pixels).all() and (postprocess(logits, box) == probability).all())

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(equal) == 80
    assert all(equal)


@pytest.mark.parametrize("value", [-1e4, -100, 100, 1e4, np.inf, -np.inf])
def test_extreme_logits_saturate(value: float) -> None:
    probability = postprocess(np.full((1, 1, 16, 16), value, np.float32), Letterbox.fit(50, 50, 64))
    # At the border taps outside the input count as zero, so only the middle is exactly the value
    np.testing.assert_allclose(probability[10:40, 10:40], float(value > 0), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1), (1, 5000, 3), (5000, 1, 3), (65_535, 3, 3), (2, 65_535)])
def test_thin_and_tiny_images_work(shape: tuple[int, ...]) -> None:
    rgb = load_image(np.full(shape, 77, np.uint8))
    pixels, letterbox = preprocess(rgb, 64)
    assert np.isfinite(pixels).all()
    probability = postprocess(np.zeros((1, 1, 16, 16), np.float32), letterbox)
    assert probability.shape == shape[:2]
    assert np.isfinite(probability).all()


@pytest.mark.slow
def test_a_hundred_megapixels_work() -> None:
    rgb = load_image(np.zeros((10_000, 10_000, 3), np.uint8))
    assert rgb.shape[0] * rgb.shape[1] == MAX_PIXELS
    _, letterbox = preprocess(rgb, 416)
    probability = postprocess(np.zeros((1, 1, 104, 104), np.float32), letterbox)
    assert probability[5000, 5000] == pytest.approx(0.5)
