"""Checks of labelled data, line by line."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from cris_edge.errors import DataError
from cris_edge.image.header import read_header
from cris_edge.image.labelled import Sample
from training.data.lines import write_lines

Size = tuple[int, int]


@dataclass
class Findings:
    """Results of a check.

    Attributes:
        samples: number of lines checked.
        problems: kind of problem -> count.
        first: kind of problem -> file and line of the first one.
    """

    samples: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def report(self) -> str:
        """Return lines of text."""
        lines = [f"{self.samples} samples, {sum(self.problems.values())} problems"]
        lines += [f"{count:>8}  {kind}, first {self.first[kind]}" for kind, count in self.problems.most_common()]
        return "\n".join(lines)


def check_file(path: Path, findings: Findings) -> list[str]:
    """Check every line of a JSON Lines file and add its problems to ``findings``.

    Returns:
        The lines without a problem.

    Raises:
        DataError: the file itself cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"the data file {path} is not text in UTF-8, expected JSON Lines") from error
    except OSError as error:
        raise DataError(f"the data file {path} cannot be read: {error.strerror or error}") from error
    sizes: dict[Path, Size | str] = {}
    sound = []
    for number, line in enumerate(tqdm(lines, desc=path.name, disable=None, unit="sample"), start=1):
        if not line.strip():
            continue
        findings.samples += 1
        problems = list(_problems(line, path.parent, sizes))
        if not problems:
            sound.append(line)
        for kind in problems:
            findings.problems[kind] += 1
            findings.first.setdefault(kind, f"{path.name}, line {number}")
    if not findings.samples:
        findings.problems["file without samples"] += 1
        findings.first.setdefault("file without samples", path.name)
    return sound


def write_sound(lines: list[str], source: Path, target: Path) -> None:
    """Write lines of ``source`` to ``target``, their paths made relative to it.

    Raises:
        DataError: the file cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    moved = []
    for line in lines:
        entry = json.loads(line)
        for name in ("image", "mask"):
            if isinstance(entry[name], str):
                entry[name] = Path(os.path.relpath(source.parent / entry[name], target.parent)).as_posix()
        moved.append(json.dumps(entry) + "\n")
    write_lines(target, moved)


def _problems(line: str, folder: Path, sizes: dict[Path, Size | str]) -> Iterator[str]:
    try:
        entry = json.loads(line)
        image, sentences, mask = entry["image"], entry["sentences"], entry["mask"]
        known = mask is None or isinstance(mask, (str, dict, list))
        if not isinstance(image, str) or not isinstance(sentences, list) or not known:
            raise TypeError
    except (ValueError, KeyError, TypeError):
        yield "line is not an object with image, sentences and mask"
        return
    if not sentences:
        yield "no sentence"
    for sentence in sentences:
        if not isinstance(sentence, str) or not sentence.strip():
            yield "sentence empty"
    path = folder / image
    if path not in sizes:
        sizes[path] = _image(path)
    size = sizes[path]
    if isinstance(size, str):
        yield size
    elif mask is not None:  # null: the sentences match nothing
        yield from _mask(
            Sample(path, tuple(map(str, sentences)), folder / mask if isinstance(mask, str) else mask), size
        )


def _image(path: Path) -> Size | str:
    """Return the image's height and width, or its problem."""
    try:
        data = path.read_bytes()
    except OSError:
        return "image absent"
    header = read_header(data)
    if header is None:
        return "image of an unknown format"
    return "image cut short" if header.truncated else header.upright


def _mask(sample: Sample, size: Size) -> Iterator[str]:
    mask = sample.mask
    if isinstance(mask, Path) and not mask.is_file():
        yield "mask absent"
        return
    found = _mask_size(mask)
    if found is not None and found != size:
        yield "mask of another size than its image"
        return
    try:
        if not sample.truth(size).any():
            yield "mask empty"
    except DataError:
        yield "polygons damaged or outside their image" if isinstance(mask, list) else "mask cannot be decoded"


def _mask_size(mask: Any) -> Size | None:
    """Return height and width of a mask, None for polygons, which have none."""
    if isinstance(mask, Mapping):
        size = mask.get("size")
        return (size[0], size[1]) if isinstance(size, list) and len(size) == 2 else None
    if isinstance(mask, Path):
        pixels = cv2.imdecode(np.frombuffer(mask.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        return None if pixels is None else (pixels.shape[0], pixels.shape[1])
    return None
