"""Image and video sources of the command line."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cris_edge.errors import ImageError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".jp2", ".avif"}
VIDEOS = {".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"}


def find(source: str) -> list[Path]:
    """Return the images and videos of a file, a folder or a glob pattern, sorted by name.

    Raises:
        InputError: There are none.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path]  # of any name: the content decides
    if path.is_dir():
        found = sorted(entry for entry in path.iterdir() if _is_ours(entry))
        what = f"The folder {source}"
    elif glob.has_magic(source):
        found = sorted(entry for entry in map(Path, glob.glob(str(path), recursive=True)) if _is_ours(entry))
        what = f"The pattern {source}"
    else:
        raise InputError(f"There is no file or folder {source}; expected an image, a video, a folder or a pattern.")
    if not found:
        raise InputError(f"{what} has no images or videos; expected files that end in {', '.join(sorted(IMAGES))} …")
    return found


def is_video(path: Path) -> bool:
    """Return whether a file's name is that of a video."""
    return path.suffix.lower() in VIDEOS


def _is_ours(path: Path) -> bool:
    return path.suffix.lower() in IMAGES | VIDEOS and not path.name.startswith(".") and path.is_file()


@dataclass(frozen=True)
class Video:
    """A video file; iterating yields its frames, (H, W, 3) uint8 BGR with rotation applied.

    Attributes:
        path: The file.
        rate: Frames per second according to the file; 25 if unknown.
        length: Number of frames according to the file, which may be wrong; 0 if unknown.
    """

    path: Path
    rate: float
    length: int

    @classmethod
    def open(cls, path: Path) -> Video:
        """Open a video and read its frame rate and length.

        Raises:
            ImageError: OpenCV cannot read it.
        """
        import cv2

        capture = cv2.VideoCapture(str(path))
        try:
            if not capture.isOpened():
                raise ImageError(f"The video {path} cannot be read; expected a file that OpenCV can decode.")
            rate = float(capture.get(cv2.CAP_PROP_FPS))
            length = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        finally:
            capture.release()
        return cls(path, rate if 0 < rate < 1000 else 25.0, max(length, 0))

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        import cv2

        capture = cv2.VideoCapture(str(self.path))
        try:
            while True:
                there, frame = capture.read()
                if not there:
                    return
                yield frame  # type: ignore[misc]  # a new array each time
        finally:
            capture.release()
