"""Result files of the command line: each is complete or absent."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from cris_edge.errors import InputError, OptionError
from cris_edge.files import write_whole
from cris_edge.media.clips import Clip, open_clip

if TYPE_CHECKING:
    from cris_edge.result import Segmentation

KINDS = ("masks", "overlays", "cutouts", "coco", "yolo", "jsonl")
DEFAULT = ("masks", "overlays")
ROWS, COCO, CLASSES = "results.jsonl", "coco.json", "classes.txt"

_LONGEST = 48  # characters of a prompt in a file name
_LONGEST_STEM = 180  # bytes of a file name; file systems take 255, suffixes and temporary names need some
_PROBE = 1 << 16  # bytes written to see whether the folder takes any


def check_kinds(text: str) -> tuple[str, ...]:
    """Return the kinds of a comma-separated list.

    Raises:
        OptionError: One of them is not in `KINDS`.
    """
    kinds = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in kinds:
        if name not in KINDS:
            raise OptionError(f"Unknown kind of output {name!r}; expected some of {', '.join(KINDS)}.")
    return kinds


class Outputs:
    """A folder of results, with unique file names within a run.

    For ``dog.jpg`` and "the left one", the overlay is ``dog-the-left-one.png``, the mask ``dog-the-left-one-mask.png``
    (255 inside and 0 outside), the cut-out ``dog-the-left-one-cutout.png``. A video yields a video of overlays and
    folders of masks and cut-outs. Files of an earlier run are replaced.

    Args:
        folder: Where; created if necessary.
        prompts: Of the run; their order gives the classes of YOLO files.
        kinds: What to write, some of `KINDS`; "coco" and "jsonl" are written by the caller.

    Raises:
        InputError: The folder cannot be created or written to.
    """

    def __init__(self, folder: Path, prompts: Sequence[str] = (), kinds: Collection[str] = DEFAULT) -> None:
        self.folder = folder.expanduser()
        self._prompts, self._kinds = list(prompts), set(kinds)
        self._taken: set[str] = set()
        self._names: dict[tuple[str, str], str] = {}
        probe = self.folder / f".probe-{os.urandom(4).hex()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Cannot create the output folder {folder}: {error.strerror or error}.") from error
        try:
            probe.write_bytes(bytes(_PROBE))
        except OSError as error:
            raise InputError(f"Cannot write to the output folder {folder}: {error.strerror or error}.") from error
        finally:
            with suppress(OSError):
                probe.unlink()
        if "yolo" in self._kinds:
            write_whole(self.folder / CLASSES, "".join(f"{' '.join(prompt.split())}\n" for prompt in self._prompts))

    def image(self, source: str, results: Sequence[Segmentation]) -> list[dict[str, str]]:
        """Write the files of one image, one result for each prompt, and return their paths by kind."""
        written = []
        for result in results:
            name, files = self.name(source, result.prompt), {}
            if "overlays" in self._kinds:
                files["overlay"] = str(result.save(self.folder / f"{name}.png"))
            if "masks" in self._kinds:
                files["mask"] = str(result.save(self.folder / f"{name}-mask.png", what="mask"))
            if "cutouts" in self._kinds:
                files["cutout"] = str(result.save(self.folder / f"{name}-cutout.png", what="cutout"))
            written.append(files)
        if "yolo" in self._kinds:
            lines = [line for result in results for line in self._yolo(result)]
            target = self.folder / f"{self.name(source, 'yolo')}.txt"
            write_whole(target, "".join(f"{line}\n" for line in lines))
            for files in written:
                files["yolo"] = str(target)
        return written

    def video(
        self,
        source: str,
        prompts: Sequence[str],
        rate: float,
        frames: Iterable[list[Segmentation]],
        note: Callable[[int, Segmentation], None],
    ) -> list[dict[str, str]]:
        """Write the files of a video frame by frame, passing each frame's number and result to `note`.

        Returns:
            The paths by kind, for each prompt; nothing for a video without frames.
        """
        names = [self.name(source, prompt) for prompt in prompts]
        with _Clips(self.folder, names, rate, self._kinds) as clips:
            for number, results in enumerate(frames):
                for clip, result in enumerate(results):
                    clips.add(clip, number, result)
                    note(number, result)
        return clips.paths

    def name(self, source: str, prompt: str) -> str:
        """The stem of the files for a source and a prompt; the same for the same pair, and for no other."""
        if (source, prompt) in self._names:
            return self._names[source, prompt]
        slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")[:_LONGEST].rstrip("-_") or "prompt"
        stem = re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "-", PurePath(source.rpartition("?")[0] or source).stem) or "image"
        name = _shorten(f"{stem}-{slug}")
        number, unique = 1, name
        while unique.lower() in self._taken:  # some file systems ignore case
            number += 1
            unique = f"{name}-{number}"
        self._taken.add(unique.lower())
        self._names[source, prompt] = unique
        return unique

    def _yolo(self, result: Segmentation) -> list[str]:
        return result.to_yolo(self._prompts.index(result.prompt))


def _shorten(name: str) -> str:
    """A name of at most `_LONGEST_STEM` bytes; a long one keeps its beginning and gets a digest."""
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) <= _LONGEST_STEM:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: _LONGEST_STEM - 9].decode(errors='ignore')}-{digest}"


class _Clips:
    """Videos and folders of frames under temporary names, renamed when all are complete."""

    def __init__(self, folder: Path, names: list[str], rate: float, kinds: Collection[str]) -> None:
        self.paths: list[dict[str, str]] = []
        self._folder, self._names, self._rate = folder, names, rate
        self._kinds = [kind for kind in ("masks", "cutouts") if kind in kinds]
        self._with_overlays = "overlays" in kinds
        self._token = os.urandom(4).hex()
        self._clips: dict[int, Clip] = {}
        self._seen: set[int] = set()

    def __enter__(self) -> _Clips:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for clip in self._clips.values():
                clip.close()
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
        if clip not in self._seen:
            self._seen.add(clip)
            for kind in self._kinds:
                self._temporary(clip, kind).mkdir()
            if self._with_overlays:
                stem = f".{self._token}-{clip}"
                self._clips[clip] = open_clip(self._folder, stem, self._rate, *result.mask.shape)
        if clip in self._clips:
            seconds = number / self._rate if result.seconds is None else result.seconds
            self._clips[clip].add(result.overlay(), seconds)
        for kind in self._kinds:
            result.save(self._temporary(clip, kind) / f"{number:06d}.png", what=kind.removesuffix("s"))

    def _temporary(self, clip: int, kind: str) -> Path:
        return self._folder / f".{self._token}-{clip}-{kind}"

    def _finish(self) -> None:
        for clip, name in enumerate(self._names):
            if clip not in self._seen:
                continue
            paths: dict[str, Any] = {}
            if clip in self._clips:
                video = self._clips[clip].path
                target = self._folder / f"{name}{video.suffix}"
                os.replace(video, target)
                paths["overlay"] = str(target)
            for kind in self._kinds:
                folder = self._folder / f"{name}-{kind}"
                if folder.exists():
                    folder.rename(self._folder / f".{self._token}-{clip}-{kind}-replaced")
                self._temporary(clip, kind).rename(folder)
                paths[kind] = str(folder)
            self.paths.append(paths)
