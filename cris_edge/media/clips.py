"""Writes frames into a video file: H.264 in MP4 with PyAV (extra ``video``), otherwise what OpenCV can write."""

from __future__ import annotations

import importlib.util
import logging
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import InputError

_CODECS = ((".mp4", "mp4v"), (".avi", "MJPG"))  # the second is built into OpenCV, so always available
_TICKS = 90_000  # a second, in the unit of MP4's clock

logger = logging.getLogger(__name__)


class Clip(Protocol):
    """A video file that is being written."""

    path: Path

    def add(self, frame: NDArray[np.uint8], seconds: float) -> None:
        """Append a frame (H, W, 3) uint8 RGB, shown from `seconds` on."""

    def close(self) -> None:
        """Finish the file."""


def open_clip(folder: Path, stem: str, rate: float, height: int, width: int) -> Clip:
    """Begin a video file in a folder; its suffix depends on what can be written here.

    Args:
        folder: Where.
        stem: File name without suffix.
        rate: Frames per second, as far as it is constant.
        height: Of the frames, in pixels.
        width: Of the frames, in pixels.

    Raises:
        InputError: Nothing can be written there.
    """
    if importlib.util.find_spec("av") is not None:
        return _H264(folder / f"{stem}.mp4", rate, height, width)
    logger.warning('Browsers may not play the written video; pip install "cris-edge[video]" writes H.264.')
    return _OpenCV(folder, stem, rate, height, width)


class _H264:
    """Keeps the time of each frame, also where the rate varies."""

    def __init__(self, path: Path, rate: float, height: int, width: int) -> None:
        import av

        self.path = path
        # Chroma is stored at half resolution, so sides are even; the last row or column is dropped.
        self._height, self._width = max(2, height // 2 * 2), max(2, width // 2 * 2)
        try:
            self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
            self._stream: Any = self._container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        except (av.FFmpegError, ValueError) as error:
            raise InputError(f"The video {path} cannot be written: {error}.") from error
        self._stream.width, self._stream.height, self._stream.pix_fmt = self._width, self._height, "yuv420p"
        self._stream.options = {"crf": "20", "preset": "veryfast"}
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._last = -1

    def add(self, frame: NDArray[np.uint8], seconds: float) -> None:
        import av

        picture = av.VideoFrame.from_ndarray(_fit(frame, self._height, self._width), format="rgb24")
        self._last = max(self._last + 1, round(seconds * _TICKS))
        picture.pts, picture.time_base = self._last, Fraction(1, _TICKS)
        for packet in self._stream.encode(picture):
            self._container.mux(packet)

    def close(self) -> None:
        if self._last >= 0:
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()


class _OpenCV:
    """Frames at a constant rate."""

    def __init__(self, folder: Path, stem: str, rate: float, height: int, width: int) -> None:
        import cv2

        self._height, self._width = height, width
        for suffix, codec in _CODECS:
            self.path = folder / f"{stem}{suffix}"
            self._writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*codec), rate, (width, height))
            if self._writer.isOpened():
                return
        raise InputError(f"OpenCV cannot write a video into {folder}; check that the folder is writable.")

    def add(self, frame: NDArray[np.uint8], seconds: float) -> None:
        self._writer.write(np.ascontiguousarray(_fit(frame, self._height, self._width)[:, :, ::-1]))

    def close(self) -> None:
        self._writer.release()


def _fit(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The frame at the size of the file; a stream may change resolution, a file cannot."""
    import cv2

    if frame.shape[0] - height in (0, 1) and frame.shape[1] - width in (0, 1):
        return np.ascontiguousarray(frame[:height, :width])
    return np.asarray(cv2.resize(frame, (width, height)), np.uint8)
