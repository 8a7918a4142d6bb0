"""Labelled data: JSON Lines with an image, its prompts and their mask on each line.

::

    {"image": "a.jpg", "sentences": ["the red mug", "mug on the left"], "mask": "a_mask.png"}
    {"image": "a.jpg", "sentences": ["the green mug"], "mask": null}

Paths are relative to the file. The mask is a PNG (non-black pixels are inside), a COCO RLE object, or a list of COCO
polygons; ``null`` means that the prompts match nothing in the image. A missing key is an error: the line is not
labelled. Benchmarks, training, quantization and evaluation all read this format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import DataError, ImageError, first_line
from cris_edge.image.coco import decode_rle, fill_polygons
from cris_edge.image.decoding import load_image
from cris_edge.image.header import read_header

_KEYS = ("image", "sentences", "mask")


@dataclass(frozen=True)
class Sample:
    """One image, prompts that all refer to the same object, and that object's mask.

    Attributes:
        image: Path of the image.
        sentences: The prompts; at least one, none blank.
        mask: Path of a PNG, a COCO RLE object, a list of COCO polygons, or None.
        extra: Other keys of the line, such as the dataset's name or the image's licence.
        source: File and line, for messages.
        no_target: If the mask is None: whether the prompts match nothing (``"mask": null``); else they are not
            labelled.
    """

    image: Path
    sentences: tuple[str, ...]
    mask: Path | Mapping[str, Any] | Sequence[Sequence[float]] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    source: str = field(default="sample", compare=False)
    no_target: bool = False

    def truth(self, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
        """Decode the mask; it is all False if the prompts match nothing.

        Args:
            size: (height, width) of the image as `load_image` returns it; read from the file if None.

        Returns:
            (H, W) bool, of the image's size.

        Raises:
            DataError: There is no mask, it cannot be read, or its size differs from the image's.
        """
        height, width = size or self.image_size()
        try:
            if self.mask is None:
                if self.no_target:
                    return np.zeros((height, width), np.bool_)
                raise DataError('It has no "mask".')
            if isinstance(self.mask, Path):
                mask = _read_mask(self.mask)
            elif isinstance(self.mask, Mapping):
                mask = decode_rle(self.mask)
            else:
                return fill_polygons(self.mask, height, width)
            if mask.shape != (height, width):
                raise DataError(
                    f"The mask has {mask.shape[1]} x {mask.shape[0]} pixels, but the image {self.image.name} "
                    f"has {width} x {height}."
                )
        except DataError as error:
            raise DataError(f"{self.source}: {error}") from error
        return mask

    def image_size(self) -> tuple[int, int]:
        """Return (height, width) of the image after orientation, without decoding where possible.

        Raises:
            DataError: The image cannot be read.
        """
        try:
            header = read_header(self.image.read_bytes())
            if header is not None and header.width and header.height:
                return header.upright
            height, width, _ = load_image(self.image).shape
        except (OSError, ImageError) as error:
            raise DataError(f"{self.source}: The image {str(self.image)!r} cannot be read: {error}") from error
        return height, width


def read_samples(path: str | Path, *, check_files: bool = True, require_masks: bool = True) -> list[Sample]:
    """Read a labelled data file.

    Args:
        path: The JSON Lines file. Blank lines are skipped.
        check_files: Whether to check that every image and mask file exists, so that a long run does not fail late.
        require_masks: Whether a line without the key "mask" is an error; otherwise its `mask` is None.

    Returns:
        The samples in file order, at least one.

    Raises:
        DataError: The file is missing or empty, or a line is invalid; the message names the line.
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
        raise DataError(f"The data file {str(path)!r} holds no samples; expected one JSON object per line.")
    return samples


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"There is no data file {str(path)!r}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The data file {str(path)!r} is not UTF-8 text; expected JSON Lines.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"The data file {str(path)!r} cannot be read: {first_line(error)}.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _parse(line: str, folder: Path, source: str, require_masks: bool) -> Sample:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"It is not JSON: {error}.") from error
    if not isinstance(entry, dict):
        raise DataError(f"It is a JSON {type(entry).__name__}; expected an object with the keys {', '.join(_KEYS)}.")
    image, sentences, mask = (entry.get(key) for key in _KEYS)
    if not isinstance(image, str) or not image.strip():
        raise DataError(f'Its "image" is {image!r}; expected the path of an image file.')
    if not isinstance(sentences, list) or not sentences:
        raise DataError(f'Its "sentences" are {sentences!r}; expected a list of at least one prompt.')
    for sentence in sentences:
        if not isinstance(sentence, str) or not sentence.strip():
            raise DataError(f'One of its "sentences" is {sentence!r}; expected a non-blank string.')
    if "mask" not in entry and require_masks:
        raise DataError(
            'It has no "mask"; expected a PNG file, a COCO RLE object, COCO polygons, or null if nothing matches.'
        )
    if not isinstance(mask, (str, dict, list, type(None))):
        raise DataError(f'Its "mask" is a JSON {type(mask).__name__}; expected a PNG file, COCO RLE or COCO polygons.')
    extra = {key: value for key, value in entry.items() if key not in _KEYS}
    where = folder / mask if isinstance(mask, str) else mask
    no_target = "mask" in entry and mask is None
    return Sample(folder / image, tuple(sentences), where, extra, source, no_target)


def _check_files(sample: Sample) -> None:
    for kind, file in (("image", sample.image), ("mask", sample.mask)):
        try:
            missing = isinstance(file, Path) and not file.is_file()
        except (OSError, ValueError):  # a name too long for the file system, or with a NUL character
            missing = True
        if missing:
            raise DataError(f"The {kind} file {str(file)!r} does not exist.")


def _read_mask(path: Path) -> NDArray[np.bool_]:
    import cv2

    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"The mask {str(path)!r} cannot be read: {first_line(error)}.") from error
    header = read_header(data)
    if header is None or header.format != "PNG":
        raise DataError(f"The mask {str(path)!r} is not a PNG; other formats blur its edges.")
    if header.truncated:
        raise DataError(f"The mask {str(path)!r} is incomplete: the PNG data ends early.")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(f"The mask {str(path)!r} cannot be decoded: {first_line(error)}.") from error
    if pixels is None:
        raise DataError(f"The mask {str(path)!r} cannot be decoded: the PNG data is damaged.")
    if pixels.ndim == 3:  # colour, or a palette; transparent pixels are outside
        visible = pixels[:, :, 3] > 0 if pixels.shape[2] == 4 else True
        return np.asarray((pixels[:, :, :3] > 0).any(axis=2) & visible, np.bool_)
    return np.asarray(pixels > 0, np.bool_)
