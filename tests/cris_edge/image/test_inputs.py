"""Encoded images of many kinds, with the pixels that viewers show (tests/data/inputs/index.jsonl)."""

from __future__ import annotations

import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cris_edge.errors import ImageError
from cris_edge.image import load_image
from cris_edge.image.header import read_header

INPUTS = Path(__file__).resolve().parents[2] / "data" / "inputs"
CASES = [json.loads(line) for line in (INPUTS / "index.jsonl").read_text(encoding="utf-8").splitlines()]


def reads(file: str) -> bool:
    """Whether this build of OpenCV has the decoder."""
    return not file.endswith(".avif") or cv2.haveImageReader(str(INPUTS / file))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["file"]))
def test_pixels_are_those_that_viewers_show(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("rawpy", "pillow_heif"):
        monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    path = INPUTS / case["file"]
    if not reads(case["file"]):
        pytest.skip("this build of OpenCV reads no AVIF")
    if "error" in case:
        with pytest.raises(ImageError, match=case["error"]):
            load_image(path)
        return
    expected = cv2.imread(str(INPUTS / case["pixels"]))[:, :, ::-1]
    found = load_image(path)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= case["tolerance"]


@pytest.mark.parametrize("maximum", [1, 7, 100, 255, 256, 1000, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_pnm_is_scaled_by_its_own_maximum(kind: str, maximum: int) -> None:
    channels = 3 if kind in ("P3", "P6") else 1
    values = [0, maximum // 2, maximum]
    pixels = [value for value in values for _ in range(channels)]
    if kind in ("P2", "P3"):
        body = " ".join(map(str, pixels)).encode() + b"\n"
    else:
        body = b"".join(struct.pack(">H" if maximum > 255 else "B", value) for value in pixels)
    data = f"{kind}\n# a comment\n3 1\n{maximum}\n".encode() + body
    found = load_image(data)[0, :, 0].tolist()
    assert found == pytest.approx([255 * value / maximum for value in values], abs=1)


def jpeg(image: np.ndarray[Any, Any], *options: int) -> bytes:
    return cv2.imencode(".jpg", image, options)[1].tobytes()


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("image", ["noise", "flat", "flat below"])
def test_complete_jpegs_are_accepted_with_and_without_the_end_marker(image: str, progressive: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 80, 3)).astype(np.uint8)
    if image != "noise":
        pixels[0 if image == "flat" else 48 :] = (40, 80, 120)
    data = jpeg(pixels, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    assert np.array_equal(load_image(data), load_image(data[:-2]))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
@pytest.mark.parametrize("restart", [0, 4])
def test_missing_rows_of_a_jpeg_are_an_error_that_says_how_many(share: float, end: bytes, restart: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (160, 80, 3)).astype(np.uint8)
    data = jpeg(pixels, cv2.IMWRITE_JPEG_RST_INTERVAL, restart)
    cut = data[: int(share * len(data))] + end
    with pytest.raises(ImageError, match=r"incomplete: \d+% of its rows are missing") as error:
        load_image(cut)
    stated = int(str(error.value).partition("%")[0].rpartition(" ")[2]) / 100
    assert stated == pytest.approx(1 - share, abs=0.15)
    assert load_image(cut, incomplete=True).shape == (160, 80, 3)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_missing_scans_of_a_progressive_jpeg_are_an_error(share: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (160, 80, 3)).astype(np.uint8)
    data = jpeg(pixels, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    with pytest.raises(ImageError, match="incomplete"):
        load_image(data[: int(share * len(data))] + b"\xff\xd9")


def test_the_limit_of_pixels_is_settable_and_checked_before_decoding() -> None:
    data = jpeg(np.zeros((100, 100, 3), np.uint8))
    assert load_image(data, max_pixels=10_000).shape == (100, 100, 3)
    with pytest.raises(ImageError, match="megapixels"):
        load_image(data, max_pixels=9_999)
    with pytest.raises(ImageError, match="megapixels"):
        load_image(np.zeros((100, 100, 3), np.uint8), max_pixels=9_999)


@pytest.mark.parametrize("file", ["huge_bigtiff.tif", "lab.tif", "raw.dng", "avif_12bit.avif", "exif_twice.jpg"])
def test_damaged_headers_never_raise(file: str) -> None:
    data = (INPUTS / file).read_bytes()[:2000]
    random = np.random.default_rng(0)
    for _ in range(300):
        mutated = bytearray(data)
        for at in random.integers(4, min(len(data), 200), 3):
            mutated[at] = random.integers(256)
        read_header(bytes(mutated))
        read_header(bytes(mutated[: random.integers(len(data))]))


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("I;16", [0, 32768, 65535], [0, 128, 255]),
        ("I", [0, 32768, 65535], [0, 128, 255]),
        ("F", [0.0, 0.5, 1.0], [0, 128, 255]),
        ("F", [0.0, 100.0, 255.0], [0, 100, 255]),
    ],
)
def test_grey_of_more_than_8_bits_in_pil_images(mode: str, values: list[float], expected: list[int]) -> None:
    image_module = pytest.importorskip("PIL.Image")
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    image = image_module.fromarray(np.array([values], dtype))
    assert image.mode == mode
    assert load_image(image)[0, :, 0].tolist() == pytest.approx(expected, abs=1)


def test_nan_in_pil_images_is_an_error() -> None:
    image_module = pytest.importorskip("PIL.Image")
    with pytest.raises(ImageError, match="convert it to 8 bits"):
        load_image(image_module.fromarray(np.array([[np.nan, 1]], np.float32)))


def test_heic_is_decoded_where_the_library_is() -> None:
    library = pytest.importorskip("pillow_heif", reason="HEIC is decoded with pillow-heif")
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32] = (200, 30, 30)
    buffer = io.BytesIO()
    library.from_pillow(image_module.fromarray(pixels)).save(buffer, quality=95)
    found = load_image(buffer.getvalue())
    assert found.shape == (64, 96, 3)
    assert np.abs(found.astype(int) - pixels)[8:24].max() < 12


def test_raw_is_decoded_where_the_library_is() -> None:
    rawpy = pytest.importorskip("rawpy", reason="raw files are decoded with rawpy")
    found = load_image(INPUTS / "raw.dng")
    with rawpy.imread(str(INPUTS / "raw.dng")) as raw:
        assert found.shape[:2] in ((raw.sizes.height, raw.sizes.width), (raw.sizes.width, raw.sizes.height))


def test_the_check_for_missing_rows_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 80, 3)).astype(np.uint8)
    load_image(jpeg(pixels, cv2.IMWRITE_JPEG_PROGRESSIVE, 1))
    pixels[48:] = (40, 80, 120)
    load_image(jpeg(pixels)[:-2])
    assert capfd.readouterr().err == ""
