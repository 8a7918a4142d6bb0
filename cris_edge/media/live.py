"""Live sources: a camera or a network stream, of which only the newest frame counts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Protocol

from cris_edge.errors import ImageError
from cris_edge.media.frames import Frame

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0  # seconds before a lost connection is opened again; doubled each time

logger = logging.getLogger(__name__)


class Capture(Protocol):
    """What is used of ``cv2.VideoCapture``; tests and apps may give their own."""

    def isOpened(self) -> bool:  # noqa: N802 - the name in OpenCV
        """Whether frames can be read."""

    def read(self) -> tuple[bool, Any]:
        """Whether there is a frame, and the frame: (H, W, 3) uint8 in BGR."""

    def release(self) -> None:
        """Free the device or the connection."""


class Live:
    """Frames of a live source, the newest first: frames that come while one is processed are skipped.

    A thread reads as fast as the source delivers, so that no queue grows. A lost connection is opened again
    after half a second, then after twice as long each time, up to eight seconds. Iterating starts the thread; `close`
    or the end of the iteration ends it.

    Args:
        name: Of the source, for frames and errors.
        open_capture: Opens it.
        attempts: How often in a row opening may fail before the iteration ends with an error.
    """

    live = True

    def __init__(self, name: str, open_capture: Callable[[], Capture], *, attempts: int = 5) -> None:
        self.name = name
        self._open, self._attempts = open_capture, attempts
        self._stop = threading.Event()

    def close(self) -> None:
        """End the iteration, from any thread."""
        self._stop.set()

    def __iter__(self) -> Iterator[Frame]:
        """Frames, until `close`.

        Raises:
            ImageError: The source cannot be opened, or not again.
        """
        self._stop.clear()
        slot = _Slot()
        thread = threading.Thread(target=self._read, args=(slot,), name="cris-edge-live", daemon=True)
        thread.start()
        try:
            while (frame := slot.take()) is not None:
                yield frame
        finally:
            self._stop.set()
            thread.join(5)

    def _read(self, slot: _Slot) -> None:
        """The thread: reads frames into the slot until it is stopped or the source is gone for good."""
        began, index, failures, wait = monotonic(), 0, 0, _FIRST_WAIT
        try:
            while not self._stop.is_set():
                capture = self._open()
                try:
                    while capture.isOpened() and not self._stop.is_set():
                        there, pixels = capture.read()
                        if not there:
                            break
                        failures, wait = 0, _FIRST_WAIT
                        slot.put(Frame.from_bgr(pixels, self.name, index, monotonic() - began))
                        index += 1
                finally:
                    capture.release()
                failures += 1
                if failures >= self._attempts:
                    raise ImageError(f"{self.name} gives no frames after {failures} attempts to open it.")
                logger.info("%s was lost; trying again in %.1f s", self.name, wait)
                self._stop.wait(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
        except Exception as error:
            slot.close(error if isinstance(error, ImageError) else ImageError(f"{self.name} failed: {error}"))
        else:
            slot.close(None)


class _Slot:
    """Room for one frame: a new one replaces one that was not taken."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._frame: Frame | None = None
        self._error: ImageError | None = None
        self._closed = False

    def put(self, frame: Frame) -> None:
        with self._condition:
            self._frame = frame
            self._condition.notify()

    def close(self, error: ImageError | None) -> None:
        with self._condition:
            self._closed, self._error = True, error
            self._condition.notify()

    def take(self) -> Frame | None:
        """The newest frame, or None at the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._frame is not None or self._closed)
            frame, self._frame = self._frame, None
            if frame is None and self._error is not None:
                raise self._error
            return frame
