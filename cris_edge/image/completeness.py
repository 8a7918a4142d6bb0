"""Whether a JPEG has all of its pixels.

libjpeg fills what is missing without an error, and an end marker proves nothing. What decides is whether the decoder
would read on: data of another image is appended to the scan, and where the pixels change, they were missing.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import ImageError
from cris_edge.image.header import ImageHeader

_END = b"\xff\xd9"
_MORE = bytes(range(1, 255)) * 64  # no 0xFF, so no marker
_ROWS = 8  # of a block


class _Quiet:
    """Keeps libjpeg from writing to stderr that it found what was appended; other output is lost meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._saved: int | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        with suppress(OSError):  # a process without stderr
            self._saved = os.dup(2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            os.dup2(self._saved, 2)
            os.close(self._saved)
            self._saved = None
        self._lock.release()

    def after_fork(self) -> None:
        """Free the lock and stderr in a child, where the thread that held them does not exist."""
        self._lock = threading.Lock()
        if self._saved is not None:
            os.dup2(self._saved, 2)
            os.close(self._saved)
            self._saved = None


_quiet = _Quiet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_quiet.after_fork)


def check_complete(data: bytes, pixels: NDArray[np.uint8], header: ImageHeader, name: str) -> None:
    """Raise `ImageError` if pixels of a decoded JPEG were missing.

    Complete images are recognized without decoding them again, except progressive ones, those without an end marker and
    those that end in a block of one colour.

    Args:
        data: The file, with an end marker.
        pixels: (H, W, 3) uint8, what was decoded from it, not turned.
        header: Its header.
        name: Of the file, for the error.
    """
    import cv2

    if header.ended and not header.progressive and not _ends_flat(pixels):
        return
    end = data.rfind(_END)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    with _quiet:
        extended = cv2.imdecode(np.frombuffer(data[:end] + _MORE + data[end:], np.uint8), flags)
    if extended is None or extended.shape != pixels.shape:
        return
    changed = np.flatnonzero((extended != pixels).any(axis=(1, 2)))
    if not len(changed):
        return
    missing = 1 - changed[0] / len(pixels)
    what = "the last of its scans is" if header.progressive else f"{missing:.0%} of its rows are"
    raise ImageError(f"{name} is incomplete: {what} missing from the JPEG data; copy or download it again.")


def _ends_flat(pixels: NDArray[np.uint8]) -> bool:
    """Whether a block of the last rows has one colour, as those have that libjpeg fills in."""
    rows = pixels[-min(_ROWS, len(pixels)) :, -_ROWS:].reshape(-1, 3)
    return bool((rows == rows[0]).all())
