"""Headers of encoded images: format, size and orientation, read without decoding.

The size protects against small files that decode to gigapixels; the check for truncation, against segmenting half an
image as if it were whole.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_STANDALONE = {0x01, *range(0xD0, 0xDA)}  # markers without a length: TEM, RST0-7, SOI, EOI
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0-15; the other three are tables
_PNM = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,10})(?:\s|#[^\n]*\n)+(\d{1,10})\s")
_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 0x0100, 0x0101


@dataclass(frozen=True)
class ImageHeader:
    """Header of an encoded image.

    Attributes:
        format: "JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "PNM", "JPEG 2000", "AVIF" or "HEIC".
        width: Columns as stored, before the orientation is applied; 0 if unknown.
        height: Rows as stored, before the orientation is applied; 0 if unknown.
        orientation: EXIF orientation, 1 (upright) to 8.
        truncated: Whether the data ends early (checked for JPEG, PNG and WebP).
    """

    format: str
    width: int = 0
    height: int = 0
    orientation: int = 1
    truncated: bool = False

    @property
    def upright(self) -> tuple[int, int]:
        """The (height, width) after the orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes) -> ImageHeader | None:
    """Read the header of an encoded image; None for bytes of any other kind.

    A damaged header never raises; it is returned without a size, and the decoder decides.
    """
    try:
        return _dispatch(data)
    except (struct.error, IndexError):
        return ImageHeader("image", truncated=True)


def _dispatch(data: bytes) -> ImageHeader | None:
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg(data)
    if data[:8] == _PNG_SIGNATURE:
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return ImageHeader("GIF", *struct.unpack_from("<HH", data, 6))
    if data[:2] == b"BM" and len(data) > 26:
        return _bmp(data)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        tags = _tiff_tags(data)
        return ImageHeader("TIFF", tags.get(_TIFF_WIDTH, 0), tags.get(_TIFF_HEIGHT, 0), _orientation(tags))
    if match := _PNM.match(data[:1000]):
        return ImageHeader("PNM", int(match[1]), int(match[2]))
    if data[4:12] == b"jP  \r\n\x87\n" and (at := data.find(b"ihdr", 12, 4096)) >= 0:
        height, width = struct.unpack_from(">II", data, at + 4)
        return ImageHeader("JPEG 2000", width, height)
    if data[:4] == b"\xff\x4f\xff\x51":
        return _jpeg_2000_codestream(data)
    if data[4:8] == b"ftyp":
        return _iso_media(data)
    return None


def _jpeg(data: bytes) -> ImageHeader:
    width = height = 0
    orientation = 1
    at = 2
    while at < len(data):
        if data[at] != 0xFF:  # stray bytes between segments: decoders skip them, so they decide
            return ImageHeader("JPEG", width, height, orientation, data.find(b"\xff\xd9", at) < 0)
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        at += 2
        if marker in _JPEG_STANDALONE:
            continue
        length = struct.unpack_from(">H", data, at)[0]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
        elif marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _exif_orientation(data[at + 8 : at + length])
        elif marker == 0xDA:  # pixels follow; 0xFF is escaped in them, so an end marker is the real one
            truncated = data.find(b"\xff\xd9", at + length) < 0
            return ImageHeader("JPEG", width, height, orientation, truncated)
        at += length
    return ImageHeader("JPEG", width, height, orientation, truncated=True)


def _png(data: bytes) -> ImageHeader:
    width, height = struct.unpack_from(">II", data, 16)
    orientation = 1
    for name, start, length in _chunks(data, 8, ">I", name_first=False, trailer=4, even=False):
        if name == b"eXIf":
            orientation = _exif_orientation(data[start : start + length])
        elif name == b"IEND":
            return ImageHeader("PNG", width, height, orientation)
    return ImageHeader("PNG", width, height, orientation, truncated=True)


def _webp(data: bytes) -> ImageHeader:
    truncated = struct.unpack_from("<I", data, 4)[0] + 8 > len(data)
    width = height = 0
    orientation = 1
    for name, start, length in _chunks(data, 12, "<I", name_first=True, trailer=0, even=True):
        if name == b"VP8X":
            width = 1 + int.from_bytes(data[start + 4 : start + 7], "little")
            height = 1 + int.from_bytes(data[start + 7 : start + 10], "little")
        elif name == b"VP8 " and not width:
            width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, start + 6))
        elif name == b"VP8L" and not width:
            bits = struct.unpack_from("<I", data, start + 1)[0]
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif name == b"EXIF":
            orientation = _exif_orientation(data[start : start + length].removeprefix(b"Exif\0\0"))
    return ImageHeader("WebP", width, height, orientation, truncated)


def _bmp(data: bytes) -> ImageHeader:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # the header of OS/2
        return ImageHeader("BMP", *struct.unpack_from("<HH", data, 18))
    width, height = struct.unpack_from("<ii", data, 18)
    return ImageHeader("BMP", abs(width), abs(height))  # a negative height means rows from the top


def _jpeg_2000_codestream(data: bytes) -> ImageHeader:
    right, bottom, left, top = struct.unpack_from(">IIII", data, 8)
    return ImageHeader("JPEG 2000", right - left, bottom - top)


def _iso_media(data: bytes) -> ImageHeader | None:
    brands = data[8 : struct.unpack_from(">I", data)[0]][:64]
    if b"avif" not in brands and b"avis" not in brands:
        return ImageHeader("HEIC") if any(brand in brands for brand in (b"heic", b"heix", b"mif1")) else None
    head = data[:65536]  # the boxes that describe the image come before the pixels
    width = height = 0
    orientation = 1
    if (at := head.find(b"ispe")) >= 0:
        width, height = struct.unpack_from(">II", data, at + 8)
    if (at := head.find(b"irot")) >= 0:  # quarter turns anticlockwise
        orientation = (1, 8, 3, 6)[data[at + 4] & 3]
    return ImageHeader("AVIF", width, height, orientation)


def _chunks(
    data: bytes, at: int, length_format: str, *, name_first: bool, trailer: int, even: bool
) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and length of each whole chunk of a PNG or RIFF file."""
    while at + 8 <= len(data):
        name_at, length_at = (at, at + 4) if name_first else (at + 4, at)
        length = struct.unpack_from(length_format, data, length_at)[0]
        end = at + 8 + length + trailer
        if end > len(data):
            return
        yield data[name_at : name_at + 4], at + 8, length
        at = end + (length & 1 if even else 0)


def _exif_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block, which is a small TIFF file; 1 if absent or damaged."""
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return 1
    try:
        return _orientation(_tiff_tags(exif))
    except struct.error:
        return 1


def _orientation(tags: Mapping[int, int]) -> int:
    value = tags.get(_ORIENTATION, 1)
    return value if 1 <= value <= 8 else 1


def _tiff_tags(data: bytes) -> dict[int, int]:
    """Return the tags of the first directory that hold one short or long integer; none for BigTIFF."""
    order = "<" if data[:2] == b"II" else ">"
    magic, at = struct.unpack_from(order + "HI", data, 2)
    if magic != 42:
        return {}
    tags = {}
    for entry in range(struct.unpack_from(order + "H", data, at)[0]):
        start = at + 2 + 12 * entry
        tag, kind, count = struct.unpack_from(order + "HHI", data, start)
        if count == 1 and kind in (3, 4):
            tags[tag] = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, start + 8)[0]
    return tags
