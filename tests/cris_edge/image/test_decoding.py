from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from cris_edge.errors import ImageError, OptionError
from cris_edge.image import load_image, preprocess

HEIGHT, WIDTH = 24, 36


def picture() -> np.ndarray:
    """Smooth, all different in each corner, so that every orientation and channel order shows."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([rows * 10, columns * 7, 255 - rows * 5 - columns * 3], axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ arrays


def test_an_rgb_array_is_taken_as_it_is() -> None:
    image = picture()
    assert load_image(image) is image


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_arrays_of_every_kind(color: str) -> None:
    image = picture()
    given = image if color == "rgb" else image[:, :, ::-1]
    opaque = np.dstack([given, np.full((HEIGHT, WIDTH), 255, np.uint8)])
    for array in (given, opaque, np.asfortranarray(given), np.dstack([given] * 2)[:, :, :3]):
        loaded = load_image(array, color=color)
        assert loaded.flags.c_contiguous
        assert (loaded == image).all()
    grey = image[:, :, 0]
    for array in (grey, grey[:, :, None], np.asfortranarray(grey), np.repeat(grey, 2, axis=1)[:, ::2]):
        assert (load_image(array, color=color) == grey[:, :, None]).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(-3, 3).filter(bool), st.integers(-3, 3).filter(bool), st.booleans(), st.sampled_from(["rgb", "bgr"]))
def test_strides_do_not_matter(rows: int, columns: int, swap: bool, color: str) -> None:
    view = picture()[::rows, ::columns]
    view = view.transpose(1, 0, 2) if swap else view
    expected = view if color == "rgb" else view[:, :, ::-1]
    assert (load_image(view, color=color) == expected).all()
    preprocess(load_image(view, color=color), 64)


def test_read_only_and_masked_arrays() -> None:
    image = picture()
    image.setflags(write=False)
    assert (load_image(image, color="bgr") == image[:, :, ::-1]).all()
    preprocess(load_image(image), 64)
    assert type(load_image(np.ma.masked_array(image))) is np.ndarray


def test_transparent_arrays_are_composited_on_white() -> None:
    image = np.zeros((1, 3, 4), np.uint8)
    image[0, :, :3] = (100, 0, 255)
    image[0, :, 3] = (0, 128, 255)
    assert load_image(image)[0].tolist() == [[255, 255, 255], [177, 127, 255], [100, 0, 255]]
    assert load_image(image, color="bgr")[0, 2].tolist() == [255, 0, 100]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((8, 8, 3), np.float32), "float32; expected uint8 .* values in"),
        (np.full((8, 8, 3), np.nan, np.float32), "It contains NaN"),
        (np.where(np.eye(8) > 0, np.nan, 0.5), "It contains NaN"),
        (np.full((8, 8, 3), np.inf), "float64; expected uint8"),
        (np.full((8, 8, 3), 200.0), "float64; expected uint8"),
        (np.zeros((8, 8, 3), np.uint16), "uint16; expected uint8 .* 257"),
        (np.zeros((8, 8, 3), np.int64), "int64; expected uint8"),
        (np.zeros((8, 8, 3), bool), "bool; expected uint8"),
        (np.zeros((8, 8, 3), complex), "complex128; expected uint8"),
        (np.array("photo.jpg"), "expected uint8"),
        (np.array([None]), "expected uint8"),
        (np.zeros((0, 0, 3), np.float32), "expected uint8"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
        (np.zeros((8, 0), np.uint8), "no pixels"),
        (np.zeros((), np.uint8), r"shape \(\)"),
        (np.zeros(8, np.uint8), r"shape \(8,\)"),
        (np.zeros((8, 8, 2), np.uint8), r"expected \(H, W, 3\)"),
        (np.zeros((8, 8, 5), np.uint8), r"expected \(H, W, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), "transpose"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"shape \(1, 8, 8, 3\)"),
        (np.broadcast_to(np.uint8(0), (10_001, 10_000, 3)), "100 megapixels"),
        (np.broadcast_to(np.uint8(0), (1, 65_536)), "65536 x 1 pixels; the limit is 65,535 per side"),
        (np.broadcast_to(np.uint8(0), (1 << 40, 1 << 20)), "megapixels"),
    ],
)
def test_unusable_arrays_are_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load_image(array)


def test_the_channel_order_is_checked() -> None:
    with pytest.raises(OptionError, match="color is 'gbr'"):
        load_image(picture(), color="gbr")


# ------------------------------------------------------------------------------------------------ files

SOURCE = Image.fromarray(picture())
LOSSLESS = {
    "PNG": encoded(SOURCE, "PNG"),
    "WEBP": encoded(SOURCE, "WEBP", lossless=True),
    "BMP": encoded(SOURCE, "BMP"),
    "TIFF": encoded(SOURCE, "TIFF", compression="tiff_lzw"),
    "PPM": encoded(SOURCE, "PPM"),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_files_are_read_exactly(kind: str, tmp_path: Path) -> None:
    data = LOSSLESS[kind]
    path = tmp_path / f"фото ü.{kind.lower()}"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data)):
        loaded = load_image(source)
        assert loaded.dtype == np.uint8
        assert loaded.flags.c_contiguous
        assert (loaded == picture()).all()
    assert (load_image(path, color="bgr") == picture()).all()  # a file has no order of its own


LOSSY = ["JPEG"] + [kind for kind, module in (("JPEG2000", "jpg_2000"), ("AVIF", "avif")) if features.check(module)]


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_files_are_read_nearly(kind: str) -> None:
    difference = np.abs(load_image(encoded(SOURCE, kind, quality=95)).astype(int) - picture())
    assert difference.mean() < 4


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "I;16", "CMYK"])
def test_files_of_every_mode(mode: str) -> None:
    grey = picture()[:, :, 0]
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
        expected = np.repeat(grey[:, :, None], 3, axis=2)
    else:
        image = SOURCE.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    data = encoded(image, "JPEG", quality=100) if mode == "CMYK" else encoded(image, "PNG")
    np.testing.assert_allclose(load_image(data).astype(int), expected, atol=12 if mode == "CMYK" else 0)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparent_files_are_composited_on_white(kind: str, depth: int) -> None:
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, WIDTH // 2 :] = 255
    bgra = np.dstack([picture()[:, :, ::-1], alpha])
    bgra = bgra.astype(np.uint16) * 257 if depth == 16 else bgra
    loaded = load_image(cv2.imencode("." + kind.lower(), bgra)[1].tobytes())
    assert (loaded[:, : WIDTH // 2] == 255).all()
    assert (loaded[:, WIDTH // 2 :] == picture()[:, WIDTH // 2 :]).all()


def test_a_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert load_image(encoded(image, "PNG", transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data)[4, 4].tolist() == [255, 0, 0]


ORIENTED = {  # how an image must be stored so that the orientation turns it upright
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image, -1),
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG", "object"])
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(ORIENTED[orientation](picture())))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    if kind == "object":
        stored.getexif()[0x0112] = orientation
        loaded = load_image(stored)
    else:
        loaded = load_image(encoded(stored, kind, exif=exif, **options))
    assert loaded.flags.c_contiguous
    np.testing.assert_allclose(loaded.astype(int), picture(), atol=6 if kind == "JPEG" else 0)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    cases = {
        tmp_path / "none.jpg": "There is no image file",
        tmp_path: "is a folder",
        "": "There is no image file",
        "a\0b.jpg": "cannot be read",
        "x" * 5000: "cannot be read",
        "https://example.com/a.jpg": "on the web",
    }
    for source, words in cases.items():
        with pytest.raises(ImageError, match=words):
            load_image(source)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device file")
def test_a_device_is_not_read() -> None:
    with pytest.raises(ImageError, match="not a regular file"):
        load_image("/dev/zero")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"hello world, this is no image", "not an image of a known format"),
        (b"\x1a\x45\xdf\xa3" + bytes(500), "not an image of a known format"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(12), "HEIC"),
        (b"BM" + bytes(100), "cannot be decoded"),
        (b"GIF89a" + bytes(100), "cannot be decoded"),
    ],
)
def test_other_bytes_are_refused(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=words):
        load_image(data)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=f"photo.jpg' .*{words}"):
        load_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_files_are_refused(kind: str) -> None:
    noise = Image.effect_noise((200, 150), 80).convert("RGB")
    data = encoded(noise, kind)
    for share in (0.01, 0.1, 0.5, 0.9, 0.999):
        with pytest.raises(ImageError, match="incomplete"):
            load_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF", "PPM"])
def test_truncated_files_of_other_formats_are_refused(kind: str) -> None:
    data = encoded(Image.effect_noise((200, 150), 80), kind)
    for share in (0.2, 0.5, 0.9):
        with pytest.raises(ImageError, match=r"decoded|incomplete"):
            load_image(data[: int(len(data) * share)])


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="20000 x 20000 = 400 megapixels"):
        load_image(bomb)


def test_float_pixels_in_a_file_are_refused() -> None:
    data = encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF")
    with pytest.raises(ImageError, match="float32 values"):
        load_image(data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(LOSSLESS)), st.data())
def test_damaged_files_give_an_image_or_an_error(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(LOSSLESS[kind])
    for _ in range(data.draw(st.integers(1, 10))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        loaded = load_image(bytes(damaged))
    except ImageError:
        return
    assert loaded.ndim == 3
    assert loaded.shape[2] == 3


# ------------------------------------------------------------------------------------------------ objects


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_pillow_images_of_every_mode(mode: str) -> None:
    image = Image.new("LAB", (5, 4), (90, 20, 200)) if mode == "LAB" else SOURCE.convert(mode)
    assert (load_image(image) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_transparent_pillow_images_are_composited_on_white(mode: str) -> None:
    image = Image.new("PA", (4, 4)) if mode == "PA" else Image.new("RGBA", (4, 4), (10, 10, 10, 0)).convert(mode)
    assert (load_image(image) == 255).all()


def test_pillow_images_of_sixteen_bits() -> None:
    grey = picture()[:, :, 0]
    for image in (Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey.astype(np.int32) * 257)):
        assert (load_image(image) == grey[:, :, None]).all()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.new("F", (4, 4), 1e6), "convert it to 8 bits"),
        (Image.fromarray(np.full((4, 4), 70_000, np.int32)), "65,535"),
        (Image.fromarray(np.full((4, 4), -1, np.int32)), "65,535"),
        (Image.new("RGB", (0, 4)), "no pixels"),
    ],
)
def test_unusable_pillow_images_are_refused(image: Image.Image, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load_image(image)


def test_pillow_images_that_fail_to_decode(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(LOSSLESS["PNG"][:-60])
    with Image.open(path) as image, pytest.raises(ImageError, match="PIL image cannot be decoded"):
        load_image(image)


def test_a_huge_pillow_image_is_refused_before_it_is_decoded() -> None:
    class Huge(Image.Image):
        size = (20_000, 20_000)
        width = height = 20_000

        def load(self) -> None:
            raise AssertionError("decoded")

    with pytest.raises(ImageError, match="400 megapixels"):
        load_image(Huge())


@pytest.mark.parametrize("source", [None, 7, 1.5, [1, 2], {"a": 1}, object(), [[0, 0]], open])
def test_other_objects_are_refused(source: object) -> None:
    with pytest.raises(ImageError, match="cannot be read from"):
        load_image(source)


def test_pillow_is_not_imported_for_other_sources(root: Path) -> None:
    code = (
        "import sys\nimport numpy as np\nimport cris_edge.image as image\nassert 'cv2' not in sys.modules\n"
        "image.preprocess(image.load_image(np.zeros((9, 9, 4), np.uint8)), 64)\nassert 'PIL' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, check=True, timeout=60)


def test_objects_that_numpy_converts_are_images() -> None:
    torch = pytest.importorskip("torch")
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    assert np.array_equal(load_image(torch.from_numpy(pixels)), pixels)
    assert np.array_equal(load_image(torch.from_numpy(pixels), color="bgr"), pixels[:, :, ::-1])
    with pytest.raises(ImageError, match=r"float32.*expected uint8"):
        load_image(torch.zeros(4, 5, 3))
    with pytest.raises(ImageError, match="cannot be converted to an array"):
        load_image(torch.zeros(4, 5, 3, device="meta"))
