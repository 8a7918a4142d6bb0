"""Reader of the photo collection: objects with masks, boxes or human sentences, captions, and layouts without photos.

The collection is a folder with ``masks.jsonl``, ``boxes.jsonl``, ``captions.jsonl``, ``layouts.jsonl`` and ``images/``.
Labels are sparse: a missing mask, sentence or category means "not labelled", never "nothing there".
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cris_edge.errors import DataError
from cris_edge.image.coco import decode_rle

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the stored photo, right and bottom exclusive."""

FLAGS = (
    "labels_incomplete",
    "part",
    "component",
    "approximate_split",
    "all_people_in_one_mask",
    "whole_image",
    "size_estimated",
    "video",
)
"""Boolean keys of an object's line that are kept in ``PhotoObject.flags``."""

REFCOCO_SOURCES = frozenset({"coco256", "cocoextra"})
"""Sources whose sentences were written to refer to one object (RefCOCO); Flickr30k Entities phrases only describe."""
COMPLETE_SOURCES = frozenset({"lightly", "tinycoco", "cocotinyz", "cocomini", "tinye"})
"""Sources that label every object of COCO's 80 classes in their photos."""
VALIDATION_SHARE = 10
"""One photo in this many is held out."""


@dataclass(frozen=True, kw_only=True)
class PhotoObject:
    """One labelled object of a photo.

    Attributes:
        image: path of the photo relative to the collection, with forward slashes.
        source: the data set that the label comes from.
        category: its class in the words of that data set; None where not labelled.
        box: left, top, right, bottom in pixels.
        mask: compressed COCO RLE; None where not labelled.
        sentences: human sentences or phrases; empty where not labelled.
        boxes: every box of a phrase that means several objects, else empty.
        coco_id: number of the COCO photo; None for photos of other data sets.
        flags: those of ``FLAGS`` that are set.
        same_class_components: touching groups of this class in the photo, where ``component`` is set.
    """

    image: str
    source: str
    category: str | None
    box: Box
    mask: Mapping[str, Any] | None = None
    sentences: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    coco_id: int | None = None
    flags: frozenset[str] = frozenset()
    same_class_components: int = 0

    @property
    def refers_to_one(self) -> bool:
        """Whether its human sentences mean this object alone, not several and not the whole scene."""
        return bool(self.sentences) and not self.boxes and "whole_image" not in self.flags

    def decode_mask(self) -> npt.NDArray[np.bool_]:
        """Return the mask, (H, W) bool in pixels of the stored photo.

        Raises:
            DataError: the object has no mask.
        """
        if self.mask is None:
            raise DataError(f"An object of {self.image} has no mask; check `mask is not None` first.")
        return decode_rle(self.mask)


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo with all that is labelled in it.

    Attributes:
        image: path relative to the collection, with forward slashes.
        objects: in file order, those with masks first.
        captions: human captions of the whole photo, where there are any.
    """

    image: str
    objects: tuple[PhotoObject, ...]
    captions: tuple[str, ...] = ()

    @property
    def coco_id(self) -> int | None:
        """Number of the COCO photo, or None."""
        return next((o.coco_id for o in self.objects if o.coco_id is not None), None)

    @property
    def sources(self) -> frozenset[str]:
        """The data sets that label this photo."""
        return frozenset(o.source for o in self.objects)

    @property
    def validation(self) -> bool:
        """Whether the photo is held out."""
        return is_validation(self.image)

    @property
    def refcoco(self) -> bool:
        """Whether the photo has RefCOCO sentences or comes from a source of such."""
        return bool(self.sources & REFCOCO_SOURCES)

    @property
    def labels_complete(self) -> bool:
        """Whether every object of COCO's 80 classes is labelled, so that an unlabelled class is absent."""
        return bool(self.sources & COMPLETE_SOURCES) and not any("labels_incomplete" in o.flags for o in self.objects)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A human sentence about one box of a photo that is not in the collection.

    Attributes:
        coco_id: number of the COCO photo.
        width, height: of the photo, in pixels.
        box: the object meant, in pixels.
        person: whether the object is a person; None where not labelled.
        sentence: as the annotator typed it.
        person_boxes: boxes of all annotated persons, the object included; None where not labelled.
        dataset: ``refcoco`` or ``refcocog``.
    """

    coco_id: int
    width: float
    height: float
    box: Box
    person: bool | None
    sentence: str
    person_boxes: tuple[Box, ...] | None
    dataset: str

    @property
    def validation(self) -> bool:
        """Whether the layout is held out; decided by the photo's number."""
        return is_validation(coco_name(self.coco_id))


def coco_name(coco_id: int) -> str:
    """Return the name that a COCO photo has in the collection."""
    return f"images/coco_{coco_id:012d}.jpg"


def is_validation(image: str) -> bool:
    """Decide by name whether a photo is held out; frames of one video fall on the same side.

    Args:
        image: path or file name of the photo; folders make no difference.
    """
    name = image.rsplit("/", 1)[-1]
    clip = re.fullmatch(r"(davis_.+)_\d+\.\w+", name)
    return zlib.crc32((clip[1] if clip else name).encode()) % VALIDATION_SHARE == 0


def read_photos(folder: Path) -> list[Photo]:
    """Read all photos of the collection, sorted by name.

    Raises:
        DataError: a file is missing or a line cannot be understood.
    """
    objects: dict[str, list[PhotoObject]] = {}
    for name in ("masks.jsonl", "boxes.jsonl"):
        for number, row in _rows(folder / name):
            try:
                one = _object(row)
            except (KeyError, TypeError, ValueError) as exc:
                raise DataError(f"{folder / name}, line {number}: not a labelled object ({exc!r}).") from exc
            objects.setdefault(one.image, []).append(one)
    captions: dict[str, tuple[str, ...]] = {}
    for number, row in _rows(folder / "captions.jsonl"):
        try:
            captions[str(row["image"])] = tuple(map(str, row["captions"]))
        except (KeyError, TypeError) as exc:
            raise DataError(f"{folder / 'captions.jsonl'}, line {number}: expected image and captions.") from exc
    return [
        Photo(image=image, objects=tuple(objects[image]), captions=captions.get(image, ())) for image in sorted(objects)
    ]


def read_layouts(folder: Path) -> list[Layout]:
    """Read all layouts of the collection, in file order.

    Raises:
        DataError: the file is missing or a line cannot be understood.
    """
    path, found = folder / "layouts.jsonl", []
    for number, row in _rows(path):
        try:
            persons = row.get("person_boxes")
            found += [
                Layout(
                    coco_id=int(row["coco_id"]),
                    width=float(row["width"]),
                    height=float(row["height"]),
                    box=_box(row["box"]),
                    person=True if row.get("category") == "person" else None,
                    sentence=str(sentence),
                    person_boxes=None if persons is None else tuple(map(_box, persons)),
                    dataset=str(row["dataset"]),
                )
                for sentence in row["sentences"]
            ]
        except (KeyError, TypeError, ValueError) as exc:
            raise DataError(f"{path}, line {number}: not a layout ({exc!r}).") from exc
    return found


def training_layouts(layouts: Iterable[Layout], photos: Iterable[Photo]) -> list[Layout]:
    """Leave out the layouts that are held out or whose photo is a held-out photo of the collection."""
    held_out = {photo.coco_id for photo in photos if photo.validation}
    return [one for one in layouts if not one.validation and one.coco_id not in held_out]


def _object(row: Mapping[str, Any]) -> PhotoObject:
    category, coco_id = row.get("category"), row.get("coco_id")
    return PhotoObject(
        image=str(row["image"]),
        source=str(row["source"]),
        category=None if category is None else str(category),
        box=_box(row["box"]),
        mask=row.get("mask"),
        sentences=tuple(map(str, row.get("sentences") or ())),
        boxes=tuple(_box(box) for box in row.get("boxes") or ()),
        coco_id=None if coco_id is None else int(coco_id),
        flags=frozenset(flag for flag in FLAGS if row.get(flag)),
        same_class_components=int(row.get("same_class_components") or 0),
    )


def _box(box: Iterable[float]) -> Box:
    x, y, width, height = map(float, box)
    return x, y, x + width, y + height


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the value of each line of a JSON Lines file."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield number, json.loads(line)
    except OSError as exc:
        raise DataError(f"Cannot read {path}: {exc.strerror}. Pass the folder of the photos.") from exc
    except ValueError as exc:
        raise DataError(f"{path} is not JSON Lines: {exc}.") from exc
