"""Headers of encoded images: format, size and orientation, read without decoding.

The size protects against small files that decode to gigapixels; the check for truncation, against segmenting half an
image as if it were whole.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_STANDALONE = {0x01, *range(0xD0, 0xDA)}  # markers without a length: TEM, RST0-7, SOI, EOI
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0-15; the other three are tables
_GAP = rb"(?:\s|#[^\n]*\n)+"
_PNM = re.compile(rb"P[1-6]" + _GAP + rb"(\d{1,10})" + _GAP + rb"(\d{1,10})\s")
_PNM_MAXIMUM = re.compile(_GAP + rb"(\d{1,5})\s")
_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 0x0100, 0x0101
_TIFF_COLOURS = {8: "CIELAB", 9: "ICC LAB", 10: "ITU LAB", 32803: "RAW", 34892: "RAW"}  # by PhotometricInterpretation
_PHOTOMETRIC, _SUB_IMAGES, _DNG_VERSION, _REDUCED = 0x0106, 0x014A, 0xC612, 0x00FE
_CAMERA = 0x010F  # its maker
_RAW_MAGIC = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0")
# EXIF orientation of AVIF's quarter turns anticlockwise, followed by: no mirror, top to bottom, left to right.
_AVIF_ORIENTATIONS = ((1, 4, 2), (8, 5, 7), (3, 2, 4), (6, 7, 5))


@dataclass(frozen=True)
class ImageHeader:
    """Header of an encoded image.

    Attributes:
        format: "JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "PNM", "JPEG 2000", "AVIF", "HEIC" or "RAW".
        width: Columns as stored, before the orientation is applied; 0 if unknown.
        height: Rows as stored, before the orientation is applied; 0 if unknown.
        orientation: EXIF orientation, 1 (upright) to 8.
        truncated: Whether the data ends early (checked for JPEG, PNG and WebP; a JPEG may still lack rows).
        maximum: Value that means white; 0 if it is the largest of the pixels' type.
        transparent_grey: Value that means transparent in a grey PNG; None if there is none.
        colour_space: Name of a colour space that is not read; empty otherwise.
        progressive: Whether a JPEG stores the image in several scans.
        ended: Whether a JPEG has its end marker.
    """

    format: str
    width: int = 0
    height: int = 0
    orientation: int = 1
    truncated: bool = False
    maximum: int = 0
    transparent_grey: int | None = None
    colour_space: str = ""
    progressive: bool = False
    ended: bool = True

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
    except (struct.error, IndexError, OverflowError):
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
        return _tiff(data)
    if data.startswith(_RAW_MAGIC):
        return ImageHeader("RAW")
    if match := _PNM.match(data[:1000]):
        return _pnm(data, match)
    if data[4:12] == b"jP  \r\n\x87\n" and (at := data.find(b"\xff\x4f\xff\x51", 12)) >= 0:
        return _jpeg_2000_codestream(data[at : at + 64])
    if data[:4] == b"\xff\x4f\xff\x51":
        return _jpeg_2000_codestream(data)
    if data[4:8] == b"ftyp":
        return _iso_media(data)
    return None


def _jpeg(data: bytes) -> ImageHeader:
    width = height = 0
    orientation = 1
    progressive = False
    at = 2
    while at < len(data):
        if data[at] != 0xFF:  # stray bytes between segments: decoders skip them, so they decide
            return _jpeg_scan(data, at, ImageHeader("JPEG", width, height, orientation, progressive=progressive))
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
            progressive = marker in (0xC2, 0xCA)
        elif marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0" and orientation == 1:
            orientation = _exif_orientation(data[at + 8 : at + length])  # of several, the first that says something
        elif marker == 0xDA:
            header = ImageHeader("JPEG", width, height, orientation, progressive=progressive)
            return _jpeg_scan(data, at + length, header)
        at += length
    return ImageHeader("JPEG", width, height, orientation, truncated=True)


def _jpeg_scan(data: bytes, at: int, header: ImageHeader) -> ImageHeader:
    """The header, with what is known of the pixels from `at` on; 0xFF is escaped in them, so an end marker is real."""
    return replace(header, ended=data.find(b"\xff\xd9", at) >= 0, truncated=at >= len(data))


def _png(data: bytes) -> ImageHeader:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    orientation, transparent = 1, None
    for name, start, length in _chunks(data, 8, ">I", name_first=False, trailer=4, even=False):
        if name == b"eXIf":
            orientation = _exif_orientation(data[start : start + length])
        elif name == b"tRNS" and colour == 0 and length >= 2 and bits in (1, 2, 4, 8, 16):
            value = struct.unpack_from(">H", data, start)[0] & ((1 << bits) - 1)
            transparent = value * 255 // ((1 << bits) - 1) if bits < 8 else value  # as decoders expand it
        elif name == b"IEND":
            return ImageHeader("PNG", width, height, orientation, transparent_grey=transparent)
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


def _pnm(data: bytes, match: re.Match[bytes]) -> ImageHeader:
    maximum = _PNM_MAXIMUM.match(data, match.end() - 1) if data[1:2] not in b"14" else None
    # Decoders scale 8-bit text files to 255 themselves.
    scaled = maximum is None or (data[1:2] in b"23" and int(maximum[1]) < 256)
    return ImageHeader("PNM", int(match[1]), int(match[2]), maximum=0 if scaled or maximum is None else int(maximum[1]))


def _tiff(data: bytes) -> ImageHeader:
    tags = _tiff_tags(data)
    width, height = tags.get(_TIFF_WIDTH, 0), tags.get(_TIFF_HEIGHT, 0)
    colours = _TIFF_COLOURS.get(tags.get(_PHOTOMETRIC, 0), "")
    # Cameras' files begin with a thumbnail and keep the picture elsewhere.
    thumbnail_first = _SUB_IMAGES in tags and _CAMERA in tags and tags.get(_REDUCED, 0) & 1
    if data[8:10] == b"CR" or _DNG_VERSION in tags or colours == "RAW" or thumbnail_first:
        return ImageHeader("RAW", width, height)
    return ImageHeader("TIFF", width, height, _orientation(tags), colour_space=colours)


def _jpeg_2000_codestream(data: bytes) -> ImageHeader:
    right, bottom, left, top = struct.unpack_from(">IIII", data, 8)
    bits = (data[42] & 0x7F) + 1 if len(data) > 42 else 8  # of the first channel
    width, height = max(right - left, 0), max(bottom - top, 0)
    return ImageHeader("JPEG 2000", width, height, maximum=(1 << bits) - 1 if 8 < bits < 16 else 0)


def _iso_media(data: bytes) -> ImageHeader | None:
    brands = data[8 : struct.unpack_from(">I", data)[0]][:64]
    if b"crx " in brands:
        return ImageHeader("RAW")
    if b"avif" not in brands and b"avis" not in brands:
        return ImageHeader("HEIC") if any(brand in brands for brand in (b"heic", b"heix", b"mif1")) else None
    head = data[:65536]  # the boxes that describe the image come before the pixels
    width = height = 0
    turns = mirror = maximum = 0
    if (at := head.find(b"ispe")) >= 0:
        width, height = struct.unpack_from(">II", data, at + 8)
    if (at := head.find(b"irot")) >= 0:
        turns = data[at + 4] & 3
    if (at := head.find(b"imir")) >= 0:
        mirror = 1 + (data[at + 4] & 1)
    if (at := head.find(b"av1C")) >= 0 and data[at + 6] & 0x40:
        maximum = 4095 if data[at + 6] & 0x20 else 1023
    return ImageHeader("AVIF", width, height, _AVIF_ORIENTATIONS[turns][mirror], maximum=maximum)


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
    except (struct.error, OverflowError):
        return 1


def _orientation(tags: Mapping[int, int]) -> int:
    value = tags.get(_ORIENTATION, 1)
    return value if 1 <= value <= 8 else 1


def _tiff_tags(data: bytes) -> dict[int, int]:
    """Return the tags of the first directory: the value of one integer, 0 for any other value."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43  # BigTIFF
    entry_format, count_format, size = ("HHQ", "Q", 20) if big else ("HHI", "H", 12)
    at = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    first = at + struct.calcsize(order + count_format)
    tags = {}
    for entry in range(min(struct.unpack_from(order + count_format, data, at)[0], 4096)):
        start = first + size * entry
        tag, kind, count = struct.unpack_from(order + entry_format, data, start)
        value = {3: "H", 4: "I", 16: "Q"}.get(kind)
        at_value = start + struct.calcsize(order + entry_format)
        tags[tag] = struct.unpack_from(order + value, data, at_value)[0] if value and count == 1 else 0
    return tags
