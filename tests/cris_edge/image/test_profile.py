"""Images with a colour profile are converted to sRGB."""

from __future__ import annotations

import builtins
import io
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cris_edge.image import load_image
from cris_edge.image.profile import is_foreign, read_profile

pytest.importorskip("PIL")
from PIL import Image, ImageCms


@pytest.fixture(scope="module")
def swapped() -> bytes:
    """A profile in which the first channel is green and the second red; otherwise that of sRGB."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", data, 128)
    tags = {bytes(data[at : at + 4]): at + 4 for at in range(132, 132 + 12 * count, 12)}
    red, green = (data[tags[name] : tags[name] + 8] for name in (b"rXYZ", b"gXYZ"))
    data[tags[b"rXYZ"] : tags[b"rXYZ"] + 8], data[tags[b"gXYZ"] : tags[b"gXYZ"] + 8] = green, red
    return bytes(data).replace(b"s\0R\0G\0B", b"t\0e\0s\0t")


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, :12] = (200, 40, 40)
    pixels[:, 12:] = (128, 128, 128)
    return pixels


def encoded(image: NDArray[np.uint8], kind: str, profile: bytes) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    Image.fromarray(image).save(buffer, kind, icc_profile=profile, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_another_space_is_converted(image: NDArray[np.uint8], swapped: bytes, kind: str) -> None:
    data = encoded(image, kind, swapped)
    assert read_profile(data) == swapped
    expected = image[:, :, [1, 0, 2]]
    np.testing.assert_allclose(load_image(data).astype(int), expected, atol=4)
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_allclose(load_image(opened).astype(int), expected, atol=4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_srgb_is_left_as_it_is(image: NDArray[np.uint8], kind: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(image, kind, profile)
    assert read_profile(data) is None and not is_foreign(profile)
    np.testing.assert_allclose(load_image(data).astype(int), image, atol=4)


def test_a_profile_in_several_parts_is_joined(swapped: bytes, image: NDArray[np.uint8]) -> None:
    plain = encoded(image, "JPEG", b"")
    half = len(swapped) // 2
    parts = b"".join(
        b"\xff\xe2" + struct.pack(">H", 16 + len(part)) + b"ICC_PROFILE\0" + bytes((number, 2)) + part
        for number, part in ((2, swapped[half:]), (1, swapped[:half]))
    )
    assert read_profile(plain[:2] + parts + plain[2:]) == swapped


def test_a_damaged_profile_is_ignored(image: NDArray[np.uint8], swapped: bytes) -> None:
    broken = swapped[:128] + b"\xff" * 40
    np.testing.assert_allclose(load_image(encoded(image, "PNG", broken)).astype(int), image)
    for data in (b"\xff\xd8", b"\xff\xd8\xff\xe2\0", b"\x89PNG\r\n\x1a\n\0\0", b"RIFF\0\0\0\0WEBPVP8X", b"", b"GIF"):
        assert read_profile(data) is None


def test_without_pillow_the_profile_is_ignored(
    image: NDArray[np.uint8], swapped: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "PIL":
            raise ModuleNotFoundError(name=name)
        return original(name, *args)

    data = encoded(image, "PNG", swapped)
    monkeypatch.setattr(builtins, "__import__", without)
    with caplog.at_level(logging.INFO, "cris_edge"):
        np.testing.assert_array_equal(load_image(data), image)
    assert "is ignored without Pillow" in caplog.text


def test_every_rgb_profile_of_this_machine_is_read(image: NDArray[np.uint8]) -> None:
    folder = Path("/usr/share/color/icc/ghostscript")
    if not folder.is_dir():
        pytest.skip("Ghostscript's profiles are not installed")
    for name in ("a98", "rommrgb", "ps_rgb"):
        profile = (folder / f"{name}.icc").read_bytes()
        found = load_image(encoded(image, "PNG", profile)).astype(int)
        if is_foreign(profile):
            assert found[0, 0, 0] > 200, name  # the same numbers mean a stronger red there
