"""Image and video sources: files, folders, patterns, zip files, cameras, network streams, URLs, standard input."""

from __future__ import annotations

import glob
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cris_edge.errors import ImageError, InputError
from cris_edge.image import load_image
from cris_edge.image.decoding import MAX_FILE_BYTES
from cris_edge.media.frames import Frame
from cris_edge.media.live import Live
from cris_edge.media.remote import fetch

if TYPE_CHECKING:
    pass

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".jp2", ".avif"}
# Read only with an optional library, or not at all: an error for each file, rather than a file left out in silence.
IMAGES |= {".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
VIDEOS = {".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"}

_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "udp://", "srt://")
_TOLERANCE = 0.02  # share of a video's frames that may be missing: containers often only estimate their number


@dataclass(frozen=True)
class Image:
    """One image; iterating yields it as the only frame.

    Attributes:
        name: Its path, URL, or place in a zip file.
        read: Returns its path or its encoded bytes.
    """

    name: str
    read: Callable[[], str | bytes] = field(repr=False)
    live = False

    def __iter__(self) -> Iterator[Frame]:
        yield Frame(load_image(self.read()), self.name)


@dataclass
class Video:
    """A video file or URL; iterating yields its frames with rotation applied.

    It is opened when its rate, its length or its frames are first needed, which raises `ImageError` if OpenCV cannot
    read it.

    Attributes:
        name: Its path or URL.
        decoded: Number of frames read by the last iteration.
    """

    name: str
    decoded: int = 0
    live = False

    @property
    def rate(self) -> float:
        """Frames per second according to the container; 25 if unknown."""
        return self._container[0]

    @property
    def length(self) -> int:
        """Number of frames according to the container, which may be wrong; 0 if unknown."""
        return self._container[1]

    @cached_property
    def _container(self) -> tuple[float, int]:
        import cv2

        capture = _capture(self.name)
        try:
            if not capture.isOpened():
                raise ImageError(f"The video {self.name} cannot be read; expected a file that OpenCV can decode.")
            rate = float(capture.get(cv2.CAP_PROP_FPS))
            length = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        finally:
            capture.release()
        return rate if 0 < rate < 1000 else 25.0, max(length, 0)

    @property
    def truncated(self) -> bool:
        """Whether the last iteration read fewer frames than the container promises."""
        return self.length - self.decoded > max(2, _TOLERANCE * self.length)

    def __iter__(self) -> Iterator[Frame]:
        import cv2

        rate, self.decoded = self.rate, 0
        capture = _capture(self.name)
        try:
            last = -1.0
            while True:
                there, pixels = capture.read()
                if not there:
                    return
                seconds = float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
                if seconds <= last:  # the container has no times
                    seconds = max(self.decoded / rate, last + 0.5 / rate) if self.decoded else 0.0
                last = seconds
                yield Frame.from_bgr(pixels, self.name, self.decoded, seconds)
                self.decoded += 1
        finally:
            capture.release()


Source: TypeAlias = "Image | Video | Live"


def open_source(source: str | Path) -> Iterator[Frame]:
    """Yield the frames of anything that `find` finds, to be passed to `Segmenter.stream`.

    Args:
        source: As `find` takes it.

    Raises:
        InputError: Nothing is found; at once, before the first frame.
        ImageError: A frame cannot be read, when it is reached.
    """
    return chain.from_iterable(find(source))


def find(source: str | Path) -> list[Source]:
    """Return the images, videos and streams that a string stands for.

    Args:
        source: One of

            - a file, a folder (its images and videos, sorted by name), or a glob pattern;
            - a zip file (its images, sorted by name);
            - "camera:0", a camera by number;
            - a URL: ``rtsp://`` and the like are live streams; ``http://`` and ``https://`` lead to an image (fetched
              within limits, see `cris_edge.media.remote`), a video or a live stream;
            - "-", an encoded image on standard input.

    Raises:
        InputError: There is nothing.
    """
    text = str(source)
    if text == "-":
        return [Image("standard input", _read_standard_input)]
    if text.startswith("camera:"):
        return [_camera(text)]
    if text.startswith(_STREAMS):
        return [Live(text, lambda: _capture(text))]
    if text.startswith(("http://", "https://")):
        return [_remote(text)]
    path = Path(text).expanduser()
    if path.is_file():
        return _from_zip(path) if path.suffix.lower() == ".zip" else [_from_file(path)]
    if path.is_dir():
        found = sorted(entry for entry in path.iterdir() if _is_ours(entry))
        what = f"The folder {text}"
    elif glob.has_magic(text):
        found = sorted(entry for entry in map(Path, glob.glob(str(path), recursive=True)) if _is_ours(entry))
        what = f"The pattern {text}"
    else:
        raise InputError(
            f"There is no file or folder {text}; expected an image, a video, a folder, a pattern, camera:0, a URL or -."
        )
    if not found:
        raise InputError(f"{what} has no images or videos; expected files that end in {', '.join(sorted(IMAGES))} …")
    return [_from_file(entry) for entry in found]


def _is_ours(path: Path) -> bool:
    return path.suffix.lower() in IMAGES | VIDEOS and not path.name.startswith(".") and path.is_file()


def _from_file(path: Path) -> Image | Video:
    # Of any name: the content of an image decides what it is, so only videos go by theirs.
    return Video(str(path)) if path.suffix.lower() in VIDEOS else Image(str(path), lambda: str(path))


def _from_zip(path: Path) -> list[Source]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as a zip file: {error}.") from error
    names = sorted(entry.filename for entry in entries if Path(entry.filename).suffix.lower() in IMAGES)
    names = [name for name in names if not Path(name).name.startswith(".")]
    if not names:
        raise InputError(f"{path} has no images.")
    return [Image(f"{path}/{name}", lambda name=name: _read_from_zip(path, name)) for name in names]  # type: ignore[misc]


def _read_from_zip(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            data = file.read(MAX_FILE_BYTES + 1)  # never more, whatever size the archive declares
    except (OSError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, EOFError) as error:
        raise ImageError(f"{path}/{name} cannot be read: {error}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{path}/{name} has more than {MAX_FILE_BYTES:,} bytes.")
    return data


def _read_standard_input() -> bytes:
    return sys.stdin.buffer.read(MAX_FILE_BYTES)


def _camera(text: str) -> Live:
    number = text.removeprefix("camera:")
    if not number.isdecimal() or not number.isascii():
        raise InputError(f"{text} is not a camera; expected camera:0, camera:1 …")
    return Live(text, lambda: _capture(int(number)))


def _remote(url: str) -> Source:
    data = fetch(url)
    if data is not None:
        return Image(url, lambda: data)
    video = Video(url)
    # A stream without an end has no number of frames.
    return video if video.length > 0 else Live(url, lambda: _capture(url))


def _capture(target: str | int) -> Any:
    import cv2

    return cv2.VideoCapture(target)
