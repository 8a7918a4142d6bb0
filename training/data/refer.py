"""The public data sets' own files: REFER's pickles with COCO's instances, and the reference's ``anns/*.json``.

REFER: Kazemzadeh et al., "ReferItGame" (EMNLP 2014); Yu et al., "Modeling Context in Referring Expressions" (ECCV
2016); Mao et al., "Generation and Comprehension of Unambiguous Object Descriptions" (CVPR 2016).
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

from cris_edge.errors import DataError
from training.data.lines import write_lines

OFFICIAL = {
    ("refcoco", "unc"): {"train": 42404, "val": 3811, "testA": 1975, "testB": 1810},
    ("refcoco+", "unc"): {"train": 42278, "val": 3805, "testA": 1975, "testB": 1798},
    ("refcocog", "umd"): {"train": 42226, "val": 2573, "test": 5023},
    ("refcocog", "google"): {"train": 44822, "val": 5000},
}
"""Published numbers of referred objects, by data set and by who split it."""


@dataclass(frozen=True)
class Reference:
    """One referred object.

    Attributes:
        split: ``train``, ``val``, ``testA``, ...
        image: file name.
        sentences: as the annotators typed them, stripped.
        mask: COCO polygons, COCO RLE, or the path of a PNG.
        extra: what else is worth keeping in a line.
    """

    split: str
    image: str
    sentences: tuple[str, ...]
    mask: Any
    extra: dict[str, Any]


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dictionaries, text and numbers, which have opcodes of their own; anything else needs a name."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse: whatever is looked up by name could run code."""
        raise DataError(f"it asks for {module}.{name}, but REFER's pickles hold plain lists, dictionaries and text")

    def persistent_load(self, pid: object) -> NoReturn:
        """Refuse: REFER's pickles have none."""
        raise DataError("it refers to objects outside the file, which REFER's pickles do not")


def read_pickle(path: Path) -> Any:
    """Return the plain containers in a pickle; no code in it is ever run.

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
    """Return what a JSON file holds.

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
    entries, coco = read_pickle(refs), read_json(instances)
    try:
        files = {image["id"]: image["file_name"] for image in coco["images"]}
        masks = {annotation["id"]: annotation["segmentation"] for annotation in coco["annotations"]}
        kinds = {kind["id"]: kind["name"] for kind in coco.get("categories", [])}
    except (KeyError, TypeError) as error:
        raise DataError(f"{instances} lacks {error}; expected COCO's instances with images and annotations") from error
    found = []
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        try:
            sentences = tuple(_stripped(sentence["sent"] for sentence in entry["sentences"]))
            extra = {"category": kinds.get(entry.get("category_id"), ""), "ref_id": entry["ref_id"]}
            image, mask = files[entry["image_id"]], masks[entry["ann_id"]]
            found.append(Reference(entry["split"], image, sentences, mask, extra))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"entry {number} of {refs} does not fit {instances} ({type(error).__name__}: {error}); "
                "both must come from the same REFER distribution"
            ) from error
    return found


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
        By split, the number of ``references`` written, of their ``sentences``, and of ``without sentences``.

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
        count.update({"references": 1, "sentences": len(reference.sentences)})
        mask = reference.mask
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
    """Yield a sentence for every split whose number of references is not the published one."""
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
