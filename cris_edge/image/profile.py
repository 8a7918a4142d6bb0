"""Colour profiles (ICC) in encoded images."""

from __future__ import annotations

import struct
import zlib

_MAX_BYTES = 4 << 20
_SRGB = (b"sRGB", b"s\0R\0G\0B")  # descriptions are ASCII or UTF-16


def read_profile(data: bytes) -> bytes | None:
    """Return the RGB profile of a JPEG, PNG or WebP file; None if it has none, another kind, or that of sRGB.

    A damaged profile counts as none.
    """
    try:
        if data[:2] == b"\xff\xd8":
            profile = _of_jpeg(data)
        elif data[:8] == b"\x89PNG\r\n\x1a\n":
            profile = _of_png(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            profile = _of_webp(data)
        else:
            return None
    except (struct.error, IndexError, zlib.error):
        return None
    return profile if is_foreign(profile) else None


def is_foreign(profile: bytes | None) -> bool:
    """Return whether a profile is of an RGB space other than sRGB, which is known by its description."""
    return profile is not None and profile[16:20] == b"RGB " and not any(name in profile for name in _SRGB)


def _of_jpeg(data: bytes) -> bytes:
    parts: dict[int, bytes] = {}
    at = 2
    while data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):
        (length,) = struct.unpack_from(">H", data, at + 2)
        if data[at + 1] == 0xE2 and data[at + 4 : at + 16] == b"ICC_PROFILE\0":
            parts[data[at + 16]] = data[at + 18 : at + 2 + length]
        at += 2 + length
    return b"".join(parts[number] for number in sorted(parts))


def _of_png(data: bytes) -> bytes:
    at = 8
    while data[at + 4 : at + 8] not in (b"IDAT", b"IEND", b""):
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"iCCP":
            _, _, packed = data[at + 8 : at + 8 + length].partition(b"\0")
            return zlib.decompressobj().decompress(packed[1:], _MAX_BYTES)
        at += 12 + length
    return b""


def _of_webp(data: bytes) -> bytes:
    if data[12:16] != b"VP8X" or data[30:34] != b"ICCP":
        return b""
    (length,) = struct.unpack_from("<I", data, 34)
    return data[38 : 38 + length]
