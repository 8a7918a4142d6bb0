"""Labelled data: JSON Lines, one image with its sentences and the mask they mean on each line.

::

    {"image": "a.jpg", "sentences": ["the red mug", "mug on the left"], "mask": "a_mask.png"}

Paths are relative to the file. The mask is a PNG (all but black is inside), a COCO RLE object, or a list of COCO
polygons. Benchmarks, training, quantization and evaluation read the same files with this module.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import DataError, ImageError
from cris_edge.image.coco import decode_rle, fill_polygons
from cris_edge.image.decoding import load_image
from cris_edge.image.header import read_header

_KEYS = ("image", "sentences", "mask")


@dataclass(frozen=True)
class Sample:
    """One image, the sentences that all mean the same thing in it, and that thing's mask.

    Attributes:
        image: path of the image.
        sentences: one or more, none blank.
        mask: path of a PNG, a COCO RLE object, a list of COCO polygons, or None where the file has none.
        extra: the other keys of the line, such as a data set's name or an image's licence.
        source: file and line, for messages.
    """

    image: Path
    sentences: tuple[str, ...]
    mask: Path | Mapping[str, Any] | Sequence[Sequence[float]] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    source: str = field(default="sample", compare=False)

    def truth(self, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
        """The mask, decoded.

        Args:
            size: (height, width) of the image as `load_image` gives it, where the caller has it; else it is read.

        Returns:
            (H, W) bool, of the image's size.

        Raises:
            DataError: there is no mask, it cannot be read, or it is of another size than the image.
        """
        height, width = size or self.image_size()
        try:
            if self.mask is None:
                raise DataError('it has no "mask"')
            if isinstance(self.mask, Path):
                mask = _read_mask(self.mask)
            elif isinstance(self.mask, Mapping):
                mask = decode_rle(self.mask)
            else:
                return fill_polygons(self.mask, height, width)
            if mask.shape != (height, width):
                raise DataError(
                    f"its mask has {mask.shape[1]} x {mask.shape[0]} pixels, but the image {self.image.name} "
                    f"has {width} x {height}"
                )
        except DataError as error:
            raise DataError(f"{self.source}: {error}") from error
        return mask

    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image, its orientation applied; nothing is decoded where the header tells.

        Raises:
            DataError: the image cannot be read.
        """
        try:
            header = read_header(self.image.read_bytes())
            if header is not None and header.width and header.height:
                return header.upright
            height, width, _ = load_image(self.image).shape
        except (OSError, ImageError) as error:
            raise DataError(f"{self.source}: its image {str(self.image)!r} cannot be read: {error}") from error
        return height, width


def read_samples(path: str | Path, *, check_files: bool = True, require_masks: bool = True) -> list[Sample]:
    """Reads a labelled data file.

    Args:
        path: the JSON Lines file. Blank lines are skipped.
        check_files: look whether every image and mask file exists, so that a long run does not stop at the last.
        require_masks: a line without a mask is an error; else its `mask` is None.

    Returns:
        The samples in the order of the file, at least one.

    Raises:
        DataError: the file is missing or empty, or a line is not as it should be; the message names the line.
    """
    path = Path(path)
    samples = []
    for number, line in _lines(path):
        source = f"{path.name}, line {number}"
        try:
            sample = _parse(line, path.parent, source, require_masks)
            if check_files:
                _check_files(sample)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
        samples.append(sample)
    if not samples:
        raise DataError(f"the data file {str(path)!r} holds no samples, expected one JSON object a line")
    return samples


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"there is no data file {str(path)!r}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the data file {str(path)!r} is not text in UTF-8, expected JSON Lines") from error
    except (OSError, ValueError) as error:
        raise DataError(f"the data file {str(path)!r} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _parse(line: str, folder: Path, source: str, require_masks: bool) -> Sample:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise DataError(f"it holds a JSON {type(entry).__name__}, expected an object with the keys {', '.join(_KEYS)}")
    image, sentences, mask = (entry.get(key) for key in _KEYS)
    if not isinstance(image, str) or not image.strip():
        raise DataError(f'its "image" is {image!r}, expected the path of an image file')
    if not isinstance(sentences, list) or not sentences:
        raise DataError(f'its "sentences" are {sentences!r}, expected a list of one sentence or more')
    for sentence in sentences:
        if not isinstance(sentence, str) or not sentence.strip():
            raise DataError(f'one of its "sentences" is {sentence!r}, expected text')
    if mask is None and require_masks:
        raise DataError('it has no "mask", expected a PNG file, a COCO RLE object or COCO polygons')
    if not isinstance(mask, (str, dict, list, type(None))):
        raise DataError(f'its "mask" is a JSON {type(mask).__name__}, expected a PNG file, COCO RLE or COCO polygons')
    extra = {key: value for key, value in entry.items() if key not in _KEYS}
    where = folder / mask if isinstance(mask, str) else mask
    return Sample(folder / image, tuple(sentences), where, extra, source)


def _check_files(sample: Sample) -> None:
    for kind, file in (("image", sample.image), ("mask", sample.mask)):
        try:
            missing = isinstance(file, Path) and not file.is_file()
        except (OSError, ValueError):  # a name too long for the file system, or with a NUL character
            missing = True
        if missing:
            raise DataError(f"its {kind} file {str(file)!r} does not exist")


def _read_mask(path: Path) -> NDArray[np.bool_]:
    import cv2

    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"its mask {str(path)!r} cannot be read: {error}") from error
    header = read_header(data)
    if header is None or header.format != "PNG":
        raise DataError(f"its mask {str(path)!r} is not a PNG: other formats blur the edge of a mask")
    if header.truncated:
        raise DataError(f"its mask {str(path)!r} is incomplete: the PNG data ends too early")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(f"its mask {str(path)!r} cannot be decoded: {error}") from error
    if pixels is None:
        raise DataError(f"its mask {str(path)!r} cannot be decoded: the PNG data is damaged")
    if pixels.ndim == 3:  # colour, or a palette; what is transparent is outside
        visible = pixels[:, :, 3] > 0 if pixels.shape[2] == 4 else True
        return np.asarray((pixels[:, :, :3] > 0).any(axis=2) & visible, np.bool_)
    return np.asarray(pixels > 0, np.bool_)
