"""Result files of the command line, written atomically."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cris_edge.errors import InputError

if TYPE_CHECKING:
    from cris_edge.result import Segmentation

_LONGEST = 48  # characters of a prompt in a file name
_CODECS = ((".mp4", "mp4v"), (".avi", "MJPG"))  # the second is built into OpenCV, so always available


class Outputs:
    """A folder of results, with unique file names within a run.

    For ``dog.jpg`` and "the left one", the overlay is ``dog-the-left-one.png`` and the mask
    ``dog-the-left-one-mask.png``, 255 inside and 0 outside. A video yields a video of overlays and a folder of masks.
    Files of an earlier run are replaced.

    Raises:
        InputError: The folder cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._taken: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Cannot create the output folder {folder}: {error.strerror or error}.") from error

    def image(self, source: Path, result: Segmentation) -> dict[str, str]:
        """Write overlay and mask of one image, and return their paths."""
        name = self._name(source, result.prompt)
        overlay = result.save(self.folder / f"{name}.png")
        mask = result.save(self.folder / f"{name}-mask.png", what="mask")
        return {"overlay": str(overlay), "mask": str(mask)}

    def video(
        self,
        source: Path,
        prompts: list[str],
        rate: float,
        frames: Iterable[list[Segmentation]],
        note: Callable[[int, Segmentation], None],
    ) -> list[dict[str, str]]:
        """Write overlays and masks of a video frame by frame, passing each frame's number and result to `note`.

        Returns:
            The paths of the overlay video and of the folder of masks, for each prompt.
        """
        names = [self._name(source, prompt) for prompt in prompts]
        with _Clips(self.folder, names, rate) as clips:
            for number, results in enumerate(frames):
                for clip, result in enumerate(results):
                    clips.add(clip, number, result)
                    note(number, result)
        return clips.paths

    def _name(self, source: Path, prompt: str) -> str:
        slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")[:_LONGEST].rstrip("-_") or "prompt"
        stem, number = f"{source.stem}-{slug}", 1
        name = stem
        while name.lower() in self._taken:  # some file systems ignore case
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name.lower())
        return name


class _Clips:
    """Videos and folders of masks under temporary names, renamed when all are complete."""

    def __init__(self, folder: Path, names: list[str], rate: float) -> None:
        self.paths: list[dict[str, str]] = []
        self._folder = folder
        self._names = names
        self._rate = rate
        self._token = os.urandom(4).hex()
        self._writers: dict[int, tuple[Any, Path, tuple[int, int]]] = {}

    def __enter__(self) -> _Clips:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for writer, _path, _size in self._writers.values():
            writer.release()
        try:
            if kind is None:
                self._finish()
        except OSError as error:
            raise InputError(f"The results in {self._folder} cannot be written: {error}.") from error
        finally:
            for leftover in self._folder.glob(f".*{self._token}*"):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    with suppress(OSError):
                        leftover.unlink()

    def add(self, clip: int, number: int, result: Segmentation) -> None:
        import cv2

        height, width = result.mask.shape
        if clip not in self._writers:
            self._masks(clip).mkdir()
            self._writers[clip] = (*self._open(clip, (width, height)), (width, height))
        writer, _, size = self._writers[clip]
        overlay = result.overlay()[:, :, ::-1]
        if (width, height) != size:  # a stream may change resolution; a file cannot
            overlay = cv2.resize(overlay, size)  # type: ignore[assignment]
        writer.write(overlay if overlay.flags.c_contiguous else overlay.copy())
        result.save(self._masks(clip) / f"{number:06d}.png", what="mask")

    def _open(self, clip: int, size: tuple[int, int]) -> tuple[Any, Path]:
        import cv2

        for suffix, codec in _CODECS:
            path = self._folder / f".{self._token}-{clip}{suffix}"
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), self._rate, size)
            if writer.isOpened():
                return writer, path
        raise InputError(f"OpenCV cannot write a video into {self._folder}; check that the folder is writable.")

    def _masks(self, clip: int) -> Path:
        return self._folder / f".{self._token}-{clip}-masks"

    def _finish(self) -> None:
        for clip, name in enumerate(self._names):
            if clip not in self._writers:
                continue
            _, video, _ = self._writers[clip]
            target, masks = self._folder / f"{name}{video.suffix}", self._folder / f"{name}-masks"
            if masks.exists():
                masks.rename(self._folder / f".{self._token}-{clip}-replaced")
            self._masks(clip).rename(masks)
            os.replace(video, target)
            self.paths.append({"overlay": str(target), "masks": str(masks)})
