"""The photo collection is read as it is labelled, and holds nothing of the test set."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cris_edge.errors import DataError
from training.data.photos import (
    Layout,
    coco_name,
    is_validation,
    read_layouts,
    read_photos,
    training_layouts,
)

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    write(
        tmp_path,
        "masks.jsonl",
        [
            {
                "image": "images/coco_000000000007.jpg",
                "sentences": [],
                "category": "cup",
                "mask": {"size": [2, 3], "counts": [1, 2, 3]},
                "box": [0.0, 0.0, 2.0, 2.0],
                "source": "lightly",
                "coco_id": 7,
            }
        ],
    )
    write(
        tmp_path,
        "boxes.jsonl",
        [
            {
                "image": "images/coco_000000000007.jpg",
                "sentences": ["left cup", "cup"],
                "category": None,
                "box": [1, 2, 3, 4],
                "source": "coco256",
                "coco_id": 7,
                "labels_incomplete": True,
            },
            {
                "image": "images/flickr8k_1_a.jpg",
                "sentences": ["two dogs"],
                "category": "dogs",
                "box": [0, 0, 4, 4],
                "boxes": [[0, 0, 2, 4], [2, 0, 2, 4]],
                "source": "flickr8k",
            },
        ],
    )
    write(tmp_path, "captions.jsonl", [{"image": "images/flickr8k_1_a.jpg", "captions": ["Two dogs run ."]}])
    write(
        tmp_path,
        "layouts.jsonl",
        [
            {
                "coco_id": 9,
                "width": 10,
                "height": 20,
                "box": [1, 2, 3, 4],
                "category": None,
                "sentences": ["a train"],
                "dataset": "refcoco",
                "split": "train",
            }
        ],
    )
    return tmp_path


def test_labels_of_a_photo_come_together_and_absent_ones_stay_absent(collection: Path) -> None:
    cup, dogs = read_photos(collection)
    assert [one.source for one in cup.objects] == ["lightly", "coco256"]
    masked, spoken = cup.objects
    assert masked.sentences == () and not masked.refers_to_one
    assert spoken.mask is None and spoken.category is None and spoken.refers_to_one
    assert spoken.box == (1.0, 2.0, 4.0, 6.0)
    assert spoken.flags == {"labels_incomplete"} and not cup.labels_complete
    assert not dogs.objects[0].refers_to_one, "the phrase means several"
    assert dogs.captions == ("Two dogs run .",) and dogs.coco_id is None and cup.coco_id == 7


def test_masks_are_decoded_and_missing_ones_are_an_error(collection: Path) -> None:
    cup, _ = read_photos(collection)
    assert cup.objects[0].decode_mask().tolist() == [[False, True, False], [True, False, False]], "runs go down columns"
    with pytest.raises(DataError, match="has no mask"):
        cup.objects[1].decode_mask()


def test_a_layout_keeps_what_is_not_labelled_apart_from_what_is_empty(collection: Path) -> None:
    (layout,) = read_layouts(collection)
    assert layout.person is None and layout.person_boxes is None


def test_a_broken_line_is_named(collection: Path) -> None:
    write(collection, "boxes.jsonl", [{"image": "a.jpg"}])
    with pytest.raises(DataError, match=r"boxes\.jsonl, line 1"):
        read_photos(collection)
    with pytest.raises(DataError, match="Cannot read"):
        read_photos(collection / "nowhere")


def test_the_split_depends_on_the_name_alone_and_keeps_clips_together() -> None:
    assert is_validation("images/a.jpg") == is_validation("elsewhere/a.jpg")
    frames = {is_validation(f"images/davis_swan_{number:05d}.jpg") for number in range(40)}
    assert len(frames) == 1
    share = sum(is_validation(f"{number}.jpg") for number in range(5000)) / 5000
    assert 0.08 < share < 0.12


def test_layouts_of_held_out_photos_are_not_trained_on(collection: Path) -> None:
    photos = read_photos(collection)
    held_out = next(number for number in range(1000) if is_validation(coco_name(number)))
    kept = next(number for number in range(1000) if not is_validation(coco_name(number)))

    def layout(coco_id: int) -> Layout:
        return Layout(
            coco_id=coco_id,
            width=1,
            height=1,
            box=(0, 0, 1, 1),
            person=None,
            sentence="it",
            person_boxes=None,
            dataset="refcoco",
        )

    assert [one.coco_id for one in training_layouts([layout(held_out), layout(kept)], photos)] == [kept]


@pytest.mark.skipif(not (SHARED / "photos").is_dir(), reason="the photo collection is not here")
def test_no_photo_of_the_test_set_is_in_the_collection() -> None:
    rows = [json.loads(line) for line in (SHARED / "real" / "test.jsonl").read_text().splitlines()]
    test_names = {Path(row["image"]).name for row in rows}
    test_ids = {int(Path(name).stem) for name in test_names}
    test_flickr = {str(row["flickr_photo"]) for row in rows}
    photos, layouts = read_photos(SHARED / "photos"), read_layouts(SHARED / "photos")
    names = {Path(photo.image).name for photo in photos} | {path.name for path in (SHARED / "photos/images").iterdir()}
    ids = {photo.coco_id for photo in photos} | {one.coco_id for one in layouts}
    ids |= {int(match[1]) for name in names if (match := re.fullmatch(r"coco_(\d+)\.\w+", name))}
    flickr = {match[1] for name in names if (match := re.match(r"flickr8k_(\d+)_", name))}
    assert len(test_ids) > 60 and len(ids) > 10_000 and len(flickr) > 4_000
    assert not test_ids & ids
    assert not test_flickr & flickr
    assert not test_names & names
