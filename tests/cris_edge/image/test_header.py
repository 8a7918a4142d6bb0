from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from cris_edge.image.header import ImageHeader, read_header

WIDTH, HEIGHT = 33, 21


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture = Image.effect_noise((WIDTH, HEIGHT), 60)
    if kind not in ("GIF", "PPM"):
        picture = picture.convert(options.pop("mode", "RGB"))  # type: ignore[arg-type]
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int, endian: str = "<") -> bytes:
    """An EXIF block built by hand in either byte order."""
    block = (b"II" if endian == "<" else b"MM") + struct.pack(endian + "HIH", 42, 8, 2)
    block += struct.pack(endian + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return block + struct.pack(endian + "HHII", 0x8769, 4, 1, 0) + struct.pack(endian + "I", 0)


FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]
FORMATS += ["JPEG2000"] if features.check("jpg_2000") else []
FORMATS += ["AVIF"] if features.check("avif") else []


@pytest.mark.parametrize("kind", FORMATS)
def test_size_is_read_from_every_format(kind: str) -> None:
    header = read_header(encoded(kind))
    assert header is not None
    assert (header.width, header.height, header.orientation, header.truncated) == (WIDTH, HEIGHT, 1, False)
    assert header.upright == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"progressive": True}),
        ("JPEG", {"mode": "L"}),
        ("JPEG", {"mode": "CMYK"}),
        ("JPEG", {"comment": b"\xff\xd9" * 50}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"mode": "RGBA"}),
        ("WEBP", {"mode": "RGBA", "lossless": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_kinds_within_a_format(kind: str, options: dict) -> None:
    header = read_header(encoded(kind, **options))
    assert header is not None
    assert not header.truncated
    assert (header.width, header.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("endian", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind: str, endian: str, orientation: int) -> None:
    header = read_header(encoded(kind, exif=b"Exif\0\0" + exif(orientation, endian)))
    assert header is not None
    assert header.orientation == orientation
    assert header.upright == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))


def test_orientation_of_tiff() -> None:
    header = read_header(encoded("TIFF", tiffinfo={0x0112: 6}))
    assert header is not None
    assert header.upright == (WIDTH, HEIGHT)


@pytest.mark.parametrize("block", [exif(0), exif(9), exif(6)[:11], exif(6)[:20], b"", b"II", b"\0" * 40])
def test_damaged_orientation_is_upright(block: bytes) -> None:
    header = read_header(encoded("JPEG", exif=b"Exif\0\0" + block))
    assert header is not None
    assert header.orientation == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncation_is_detected_anywhere(kind: str) -> None:
    whole = encoded(kind, exif=b"Exif\0\0" + exif(3))
    for length in range(12, len(whole), 7):
        header = read_header(whole[:length])
        assert header is not None
        assert header.truncated or not header.ended, length
    longer = read_header(whole + b"what other programs append")
    assert longer is not None
    assert not longer.truncated and longer.ended


def test_a_huge_size_is_read_without_decoding() -> None:
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 200_000, 100_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    assert read_header(png) == ImageHeader("PNG", 200_000, 100_000, truncated=True)


def test_bmp_of_every_version() -> None:
    os2 = b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 7, 5, 1, 24) + bytes(20)
    top_down = b"BM" + bytes(12) + struct.pack("<Iii", 40, 7, -5) + bytes(28)
    assert read_header(os2) == read_header(top_down) == ImageHeader("BMP", 7, 5)


def test_heic_is_recognized() -> None:
    assert read_header(struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic") == ImageHeader("HEIC")


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"P6", b"hello world, this is text", b"PK\x03\x04" + bytes(50), bytes(99)]
)
def test_other_bytes_are_not_an_image(data: bytes) -> None:
    assert read_header(data) is None


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_damaged_headers_never_raise(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, min(len(damaged), 300) - 1))] = data.draw(st.integers(0, 255))
    header = read_header(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    assert header is None or (1 <= header.orientation <= 8 and header.width >= 0 and header.height >= 0)


WHOLE = {kind: encoded(kind) for kind in FORMATS}
