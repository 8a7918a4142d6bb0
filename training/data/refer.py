"""Readers of public data sets: REFER's pickles, gRefCOCO's JSON, and the reference's ``anns/*.json``.

REFER: Kazemzadeh et al., "ReferItGame" (EMNLP 2014); Yu et al., "Modeling Context in Referring Expressions" (ECCV
2016); Mao et al., "Generation and Comprehension of Unambiguous Object Descriptions" (CVPR 2016). gRefCOCO: Liu et al.,
"GRES: Generalized Referring Expression Segmentation" (CVPR 2023).
"""

from __future__ import annotations

import io
import json
import os
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from cris_edge.errors import DataError
from cris_edge.image.coco import decode_rle, encode_rle, fill_polygons
from training.data.lines import write_lines

OFFICIAL = {
    ("refcoco", "unc"): {"train": 42404, "val": 3811, "testA": 1975, "testB": 1810},
    ("refcoco+", "unc"): {"train": 42278, "val": 3805, "testA": 1975, "testB": 1798},
    ("refcocog", "umd"): {"train": 42226, "val": 2573, "test": 5023},
    ("refcocog", "google"): {"train": 44822, "val": 5000},
}
"""Published numbers of referred objects, by data set and author of the split."""


@dataclass(frozen=True)
class Reference:
    """Sentences and the object or objects they refer to.

    Attributes:
        split: ``train``, ``val``, ``testA``, ...
        image: file name.
        sentences: as the annotators typed them, stripped.
        mask: COCO polygons, COCO RLE, or the path of a PNG; None where nothing matches.
        extra: further keys of the line.
    """

    split: str
    image: str
    sentences: tuple[str, ...]
    mask: Any
    extra: dict[str, Any]


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dictionaries, text and numbers, which have opcodes of their own; everything else has a name."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse: an object looked up by name could run code."""
        raise DataError(f"it asks for {module}.{name}, but REFER's pickles hold plain lists, dictionaries and text")

    def persistent_load(self, pid: object) -> NoReturn:
        """Refuse: REFER's pickles have none."""
        raise DataError("it refers to objects outside the file, which REFER's pickles do not")


def read_pickle(path: Path) -> Any:
    """Return the plain containers in a pickle; code in it is never run.

    Raises:
        DataError: the file is absent, cut short, or holds anything else.
    """
    try:
        # Python 2 wrote these files: its byte strings are Latin-1 here, which no byte can break.
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise DataError(f"the pickle {path} cannot be read ({error}); give a file of the REFER distribution") from error
    except DataError as error:
        raise DataError(f"the pickle {path} is not REFER's: {error}; nothing of it was run") from error
    except Exception as error:  # a damaged pickle fails in a dozen ways
        detail = f"{type(error).__name__}: {error}"
        raise DataError(f"the pickle {path} is damaged or cut short ({detail}); download it again") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        DataError: it is absent or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"the file {path} cannot be read as JSON ({error}); download it again") from error


def read_refer(refs: Path, instances: Path) -> list[Reference]:
    """Join ``refs(unc).p``, ``refs(umd).p`` or ``refs(google).p`` with COCO's ``instances.json``.

    Raises:
        DataError: a file cannot be read, is of another kind, or refers to annotations that are not there.
    """
    entries, coco = read_pickle(refs), read_instances(instances)
    found = []
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        try:
            sentences = tuple(_stripped(sentence["sent"] for sentence in entry["sentences"]))
            image, mask = coco.images[entry["image_id"]], coco.masks[entry["ann_id"]]
            extra = {
                "category": coco.kinds.get(entry.get("category_id"), ""),
                "categories": coco.counts.get(entry["image_id"], {}),
                "ref_id": entry["ref_id"],
            }
            found.append(Reference(entry["split"], image["file_name"], sentences, mask, extra))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"entry {number} of {refs} does not fit {instances} ({type(error).__name__}: {error}); "
                "both must come from the same REFER distribution"
            ) from error
    return found


@dataclass(frozen=True)
class Instances:
    """COCO's instances, by identifier.

    Attributes:
        images: their entries.
        masks: polygons or RLE of annotations.
        kinds: names of categories.
        counts: of an image: how many objects of each category are annotated.
        categories: category of annotations, by name.
    """

    images: dict[int, dict[str, Any]]
    masks: dict[int, Any]
    kinds: dict[int, str]
    counts: dict[int, dict[str, int]]
    categories: dict[int, str]


def read_instances(path: Path) -> Instances:
    """Read COCO's ``instances.json``.

    Raises:
        DataError: it is absent, damaged, or lacks images or annotations.
    """
    coco = read_json(path)
    try:
        images = {image["id"]: image for image in coco["images"]}
        masks = {annotation["id"]: annotation["segmentation"] for annotation in coco["annotations"]}
        kinds = {kind["id"]: kind["name"] for kind in coco.get("categories", [])}
        categories = {entry["id"]: kinds.get(entry.get("category_id"), "") for entry in coco["annotations"]}
        counts: dict[int, dict[str, int]] = {}
        for annotation in coco["annotations"]:
            if name := categories[annotation["id"]]:
                count = counts.setdefault(annotation.get("image_id"), {})
                count[name] = count.get(name, 0) + 1
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} lacks {error}; expected COCO's instances with images and annotations") from error
    return Instances(images, masks, kinds, counts, categories)


def read_grefs(refs: Path, instances: Path) -> list[Reference]:
    """Join gRefCOCO's ``grefs(unc).json`` with COCO's ``instances.json``.

    A sentence may refer to several objects, whose masks are joined, or to none.

    Raises:
        DataError: a file cannot be read, is of another kind, or refers to annotations that are not there.
    """
    entries, coco = read_json(refs), read_instances(instances)
    found = []
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        try:
            sentences = tuple(_stripped(sentence["sent"] for sentence in entry["sentences"]))
            ids = entry["ann_id"] if isinstance(entry["ann_id"], list) else [entry["ann_id"]]
            image = coco.images[entry["image_id"]]
            absent = bool(entry.get("no_target", ids == [-1]))
            if absent != (ids == [-1]):
                raise DataError(f"no_target is {entry['no_target']!r} beside the annotations {ids}")
            named = {coco.categories[index] for index in ids} if not absent else set()
            extra = {
                "category": named.pop() if len(named) == 1 else "",
                "categories": coco.counts.get(entry["image_id"], {}),
                "ref_id": entry["ref_id"],
                "objects": 0 if absent else len(ids),
            }
            mask = None if absent else _joined([coco.masks[index] for index in ids], image)
            found.append(Reference(entry["split"], image["file_name"], sentences, mask, extra))
        except (DataError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"entry {number} of {refs} does not fit {instances} ({type(error).__name__}: {error}); expected "
                "gRefCOCO's file and the COCO instances that belong to it"
            ) from error
    return found


def _joined(masks: list[Any], image: dict[str, Any]) -> Any:
    """Join COCO masks: polygons are listed together, anything with RLE becomes one RLE."""
    if all(isinstance(mask, list) for mask in masks):
        return [polygon for mask in masks for polygon in mask]
    size = image["height"], image["width"]
    decoded = [decode_rle(mask) if isinstance(mask, dict) else fill_polygons(mask, *size) for mask in masks]
    return encode_rle(np.logical_or.reduce(decoded))


def read_anns(folder: Path, masks: Path) -> list[Reference]:
    """Read the reference implementation's ``anns/DATASET/SPLIT.json`` and its ``masks/DATASET/ID.png``.

    Raises:
        DataError: there are no such files, or one is of another kind.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise DataError(f"there is no train.json, val.json, ... in {folder}; give the folder anns/DATASET")
    found = []
    for path in files:
        entries = read_json(path)
        try:
            for entry in entries:
                sentences = tuple(_stripped(sentence["sent"] for sentence in entry["sentences"]))
                mask, extra = masks / f"{entry['segment_id']}.png", {"ref_id": entry["segment_id"]}
                found.append(Reference(path.stem, entry["img_name"], sentences, mask, extra))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is not as the reference writes it ({type(error).__name__}: {error}); expected a list of "
                "objects with img_name, segment_id and sentences"
            ) from error
    return found


def write_samples(references: Iterable[Reference], images: Path, output: Path) -> dict[str, Counter[str]]:
    """Write ``SPLIT.jsonl`` files whose paths are relative to ``output``; objects without a sentence are left out.

    Returns:
        By split, the number of ``references`` written, of their ``sentences``, of those that match nothing (``no
        target``), and of objects ``without sentences``.

    Raises:
        OSError: the folder cannot be made.
        DataError: a file cannot be written; those written before are whole.
    """
    output.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {}
    counts: dict[str, Counter[str]] = {}
    for reference in references:
        count = counts.setdefault(reference.split, Counter())
        if not reference.sentences:
            count["without sentences"] += 1
            continue
        mask = reference.mask
        count.update({"references": 1, "sentences": len(reference.sentences)})
        if mask is None:
            count["no target"] += len(reference.sentences)
        line = {
            "image": _relative(images / reference.image, output),
            "sentences": list(reference.sentences),
            "mask": _relative(mask, output) if isinstance(mask, Path) else mask,
            **reference.extra,
        }
        lines.setdefault(reference.split, []).append(json.dumps(line) + "\n")
    for split, part in lines.items():
        write_lines(output / f"{split}.jsonl", part)
    return counts


def compare_with_published(dataset: str, by: str, counts: dict[str, Counter[str]]) -> Iterator[str]:
    """Yield a message for every split whose number of references is not the published one."""
    official = OFFICIAL.get((dataset, by), {})
    for split in sorted(official.keys() | counts.keys() if official else ()):
        found = sum(counts.get(split, Counter())[name] for name in ("references", "without sentences"))
        if found != official.get(split, 0):
            yield f"{dataset} ({by}) {split}: {found} referred objects, but {official.get(split, 0)} are published"


def _stripped(sentences: Iterable[str]) -> Iterator[str]:
    for sentence in sentences:
        if sentence.strip():
            yield sentence.strip()


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
