from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cris_edge.errors import DataError
from cris_edge.image.labelled import read_samples
from training.data.refer import OFFICIAL, compare_with_published, read_pickle
from training.prepare import main, with_command

SQUARE = [[4.0, 4.0, 14.0, 4.0, 14.0, 14.0, 4.0, 14.0]]
RUNS = {"size": [20, 30], "counts": [100, 50, 450]}


def refer_folder(folder: Path) -> Path:
    """REFER's files in small: two images, three referred objects, written as Python 2 did (protocol 2)."""
    (folder / "images").mkdir(parents=True)
    for number in (1, 2):
        cv2.imwrite(str(folder / "images" / f"COCO_{number}.jpg"), np.full((20, 30, 3), 90, np.uint8))
    sentences = [["the red cup", " cup on the left "], ["a plate"], [" "]]
    refs = [
        {
            "ref_id": number,
            "ann_id": 10 + number,
            "image_id": 1 + number % 2,
            "split": "val" if number else "train",
            "category_id": 47,
            "file_name": "something else.jpg",
            "sent_ids": [0],
            "sentences": [{"sent": text, "raw": text.upper(), "tokens": text.split(), "sent_id": 0} for text in group],
        }
        for number, group in enumerate(sentences)
    ]
    coco = {
        "images": [{"id": n, "file_name": f"COCO_{n}.jpg", "height": 20, "width": 30} for n in (1, 2)],
        "annotations": [
            {"id": 10 + n, "image_id": 1 + n % 2, "segmentation": RUNS if n == 1 else SQUARE} for n in range(3)
        ],
        "categories": [{"id": 47, "name": "cup"}],
    }
    (folder / "refcoco").mkdir()
    (folder / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "refcoco" / "instances.json").write_text(json.dumps(coco))
    return folder


def prepare_refer(folder: Path) -> list[str]:
    refs = folder / "refcoco" / "refs(unc).p"
    return ["--refs", str(refs), "--images", str(folder / "images"), "--output", str(folder / "data")]


def test_refers_pickles_become_labelled_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = refer_folder(tmp_path)
    assert main(prepare_refer(folder)) == 0
    out, err = capsys.readouterr()
    assert "train: 1 objects, 2 sentences" in out
    assert "val: 1 objects, 1 sentences, 1 without a sentence left out" in out
    assert "refcoco (unc) train: 1 referred objects, but 42404 are published" in err
    assert "refcoco (unc) testA: 0 referred objects, but 1975 are published" in err
    (train,), (val,) = (read_samples(folder / "data" / f"{split}.jsonl") for split in ("train", "val"))
    assert train.sentences == ("the red cup", "cup on the left")
    assert train.image.resolve() == (folder / "images" / "COCO_1.jpg").resolve()
    assert train.truth().sum() == 100 and train.truth()[4:14, 4:14].all()
    assert val.truth().sum() == 50 and val.extra["category"] == "cup"
    assert main(["--check", str(folder / "data")]) == 0


def test_the_references_files_become_the_same_lines(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[2:9, 3:7] = 255
    for name in ("masks", "images", "anns"):
        (tmp_path / name / "refcoco+").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "masks" / "refcoco+" / "7.png"), mask)
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), np.zeros((20, 30, 3), np.uint8))
    sentences = [{"idx": 0, "sent_id": 3, "sent": "man"}]
    entry = {"bbox": [3, 2, 7, 9], "cat": 0, "segment_id": 7, "img_name": "a.jpg", "sentences": sentences}
    (tmp_path / "anns" / "refcoco+" / "testA.json").write_text(json.dumps([{**entry, "sentences_num": 1}]))
    arguments = ["--anns", str(tmp_path / "anns" / "refcoco+"), "--masks", str(tmp_path / "masks" / "refcoco+")]
    assert main([*arguments, "--images", str(tmp_path / "images"), "--output", str(tmp_path / "data")]) == 0
    (sample,) = read_samples(tmp_path / "data" / "testA.jsonl")
    assert sample.sentences == ("man",)
    np.testing.assert_array_equal(sample.truth(), mask > 0)


class Trap:
    """A pickle that would make a file if its code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_with_anything_but_plain_containers_is_refused_and_not_run(tmp_path: Path) -> None:
    for protocol in range(5):
        (tmp_path / "refs.p").write_bytes(pickle.dumps([Trap(tmp_path / "ran")], protocol=protocol))
        with pytest.raises(DataError, match="nothing of it was run"):
            read_pickle(tmp_path / "refs.p")
    (tmp_path / "refs.p").write_bytes(pickle.dumps(np.zeros(3)))
    with pytest.raises(DataError, match="plain lists"):
        read_pickle(tmp_path / "refs.p")
    assert not (tmp_path / "ran").exists()


def test_damaged_files_get_a_sentence_and_leave_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = refer_folder(tmp_path)
    refs, instances = folder / "refcoco" / "refs(unc).p", folder / "refcoco" / "instances.json"
    whole = refs.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x80\x02]q", b"hello", whole[:50] + b"\xff" + whole[51:]):
        refs.write_bytes(damaged)
        assert main(prepare_refer(folder)) == 1
        assert "refs(unc).p" in capsys.readouterr().err
        assert not (folder / "data").exists()
    refs.write_bytes(pickle.dumps([{"ref_id": 3}]))
    assert main(prepare_refer(folder)) == 1
    assert "entry 0" in capsys.readouterr().err
    refs.write_bytes(whole)
    instances.write_text(instances.read_text()[:100])
    assert main(prepare_refer(folder)) == 1
    assert "instances.json" in capsys.readouterr().err


def test_published_numbers_are_compared_only_for_sets_that_have_them() -> None:
    complete = {split: Counter(references=count) for split, count in OFFICIAL["refcocog", "umd"].items()}
    assert list(compare_with_published("refcocog", "umd", complete)) == []
    complete["test"]["references"] -= 1
    assert list(compare_with_published("refcocog", "umd", complete)) == [
        "refcocog (umd) test: 5022 referred objects, but 5023 are published"
    ]
    assert list(compare_with_published("mine", "", complete)) == []


def test_check_counts_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no image")
    cv2.imwrite(str(tmp_path / "good.png"), np.full((20, 30), 255, np.uint8))
    cv2.imwrite(str(tmp_path / "empty.png"), np.zeros((20, 30), np.uint8))
    cv2.imwrite(str(tmp_path / "small.png"), np.full((5, 5), 255, np.uint8))
    fine = {"image": "a.jpg", "sentences": ["cup"], "mask": "good.png"}
    cases = [
        (fine, None),
        ({**fine, "mask": SQUARE}, None),
        ({**fine, "mask": RUNS}, None),
        ({**fine, "image": "gone.jpg"}, "image absent"),
        ({**fine, "image": "cut.jpg"}, "image cut short"),
        ({**fine, "image": "text.jpg"}, "image of an unknown format"),
        ({**fine, "mask": "gone.png"}, "mask absent"),
        ({**fine, "mask": "empty.png"}, "mask empty"),
        ({**fine, "mask": "small.png"}, "mask of another size than its image"),
        ({**fine, "mask": {"size": [30, 20], "counts": [100, 500]}}, "mask of another size than its image"),
        ({**fine, "mask": {"size": [20, 30], "counts": [100]}}, "mask cannot be decoded"),
        ({**fine, "mask": "text.jpg"}, "mask cannot be decoded"),
        ({**fine, "mask": [[50.0, 50.0, 90.0, 50.0, 90.0, 90.0]]}, "polygons damaged or outside their image"),
        ({**fine, "sentences": ["cup", "  "]}, "sentence empty"),
        ({**fine, "sentences": []}, "no sentence"),
        ({"image": "a.jpg"}, "line is not an object with image, sentences and mask"),
    ]
    lines = [json.dumps(case) for case, _ in cases]
    (tmp_path / "all.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n")
    assert main(["--check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    expected = Counter(kind for _, kind in cases if kind) + Counter([cases[-1][1]])
    assert f"{len(cases) + 1} samples, {sum(expected.values())} problems" in out
    for kind, count in expected.items():
        assert f"{count}  {kind}, first all.jsonl, line" in out
    assert main(["--check", str(tmp_path), "--output", str(tmp_path / "sound")]) == 1
    assert len(read_samples(tmp_path / "sound" / "all.jsonl")) == 3
    assert main(["--check", str(tmp_path / "sound")]) == 0
    assert main(["--check", str(tmp_path), "--output", str(tmp_path)]) == 1
    assert main(["--check", str(tmp_path / "gone.jsonl")]) == 1
    assert main(["--check", str(tmp_path / "none")]) == 1


def test_the_photos_at_hand_are_whole(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(shared_data / "real" / "test.jsonl")]) == 0
    assert "0 problems" in capsys.readouterr().out


def grefcoco_folder(folder: Path) -> Path:
    """gRefCOCO's files in small: one object, two objects (polygons; polygons and RLE), and nothing."""
    (folder / "images").mkdir(parents=True)
    cv2.imwrite(str(folder / "images" / "COCO_1.jpg"), np.full((20, 30, 3), 90, np.uint8))
    other = [[18.0, 4.0, 28.0, 4.0, 28.0, 14.0, 18.0, 14.0]]
    coco = {
        "images": [{"id": 1, "file_name": "COCO_1.jpg", "height": 20, "width": 30}],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 47, "segmentation": SQUARE, "iscrowd": 0},
            {"id": 12, "image_id": 1, "category_id": 47, "segmentation": other, "iscrowd": 0},
            {"id": 13, "image_id": 1, "category_id": 3, "segmentation": RUNS, "iscrowd": 0},
        ],
        "categories": [{"id": 47, "name": "cup"}, {"id": 3, "name": "car"}],
    }
    cases = [([11], "left cup", False), ([11, 12], "both cups", False), ([12, 13], "a cup and a car", False)]
    grefs = [
        {
            "ref_id": number,
            "image_id": 1,
            "split": "val",
            "file_name": "COCO_1.jpg",
            "ann_id": ids,
            "category_id": [-1] if absent else [47] * len(ids),
            "no_target": absent,
            "sent_ids": [number],
            "sentences": [{"sent": text, "raw": text, "tokens": text.split(), "sent_id": number, "exist": not absent}],
        }
        for number, (ids, text, absent) in enumerate([*cases, ([-1], "the dog", True)])
    ]
    (folder / "grefs(unc).json").write_text(json.dumps(grefs))
    (folder / "instances.json").write_text(json.dumps(coco))
    return folder


def prepare_grefcoco(folder: Path) -> list[str]:
    refs, images = str(folder / "grefs(unc).json"), str(folder / "images")
    return ["grefcoco", "--refs", refs, "--images", images, "--output", str(folder / "data")]


def test_grefcocos_sentences_mean_several_objects_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = grefcoco_folder(tmp_path)
    assert main(prepare_grefcoco(folder)) == 0
    assert "val: 4 objects, 4 sentences, 1 that match nothing" in capsys.readouterr().out
    one, two, mixed, nothing = read_samples(folder / "data" / "val.jsonl")
    assert one.truth().sum() == 100
    assert two.truth().sum() == 200 and two.truth()[4:14, 4:14].all() and two.truth()[4:14, 18:28].all()
    runs = np.zeros(600, bool)
    runs[100:150] = True  # column by column
    np.testing.assert_array_equal(mixed.truth(), (two.truth() & ~one.truth()) | runs.reshape(30, 20).T)
    assert nothing.no_target and not nothing.truth().any()
    assert one.extra["categories"] == {"cup": 2, "car": 1} and nothing.extra["objects"] == 0
    assert (two.extra["category"], mixed.extra["category"], two.extra["objects"]) == ("cup", "", 2)
    assert main(["check", str(folder / "data")]) == 0
    assert main(["check", str(folder / "data"), "--output", str(folder / "sound")]) == 0
    assert len(read_samples(folder / "sound" / "val.jsonl")) == 4


def test_a_prediction_on_grefcoco_is_scored_as_its_authors_do(tmp_path: Path) -> None:
    from training.data.samples import LabelledSource
    from training.evaluate import score

    folder = grefcoco_folder(tmp_path)
    assert main(prepare_grefcoco(folder)) == 0

    class LeftHalf:
        """Answers every sentence with the left half, and says that there is no dog."""

        runtime, precision, input_size, word_len = "test", "float32", 96, 17

        def logits_and_presence(self, pixels: Any, tokens: Any) -> Any:
            logits = np.full((len(tokens), 1, 24, 24), -20.0, np.float32)
            logits[:, :, :, :12] = 20.0
            dog = (tokens == 1929).any(axis=1)
            return logits, np.where(dog, 0.1, 0.9).astype(np.float32)

        def logits(self, pixels: Any, tokens: Any) -> Any:
            return self.logits_and_presence(pixels, tokens)[0]

    source = LabelledSource(folder / "data" / "val.jsonl", by_image=True)
    report = score(LeftHalf(), source)
    one, two, mixed, nothing = report.cases
    assert [case.matches for case in report.cases] == [True, True, True, False]
    assert nothing.empty and nothing.union == 0
    area = one.union  # the left half holds the first square
    assert one.intersection == 100 and 280 <= area <= 340  # about 15 of 30 columns
    generalized = report.to_dict()["generalized"]
    assert (generalized["samples"], generalized["without_target"]) == (4, 1)
    assert (generalized["N-acc"], generalized["T-acc"], generalized["AUROC"]) == (100, 100, 100)
    ious = [case.intersection / case.union for case in (one, two, mixed)]
    assert generalized["gIoU"] == pytest.approx(25 * (sum(ious) + 1))
    total = sum(case.union for case in report.cases)
    assert generalized["cIoU"] == pytest.approx(
        100 * (one.intersection + two.intersection + mixed.intersection) / total
    )
    off = score(LeftHalf(), source, min_presence=0)
    assert not off.cases[3].empty and off.cases[3].union == area
    assert off.to_dict()["generalized"]["N-acc"] == 0
    assert off.to_dict()["mIoU"] == report.to_dict()["mIoU"]  # over sentences that have a target


def test_damaged_grefcoco_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = grefcoco_folder(tmp_path)
    grefs = json.loads((folder / "grefs(unc).json").read_text())
    for change in ({"ann_id": [99]}, {"no_target": True}, {"image_id": 7}, {"sentences": None}):
        (folder / "grefs(unc).json").write_text(json.dumps([grefs[0] | change]))
        assert main(prepare_grefcoco(folder)) == 1
        assert "entry 0 of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--check", "data"], ["check", "data"]),
        (["--check=data", "--output", "sound"], ["check", "data", "--output", "sound"]),
        (["--output", "sound", "--check", "data"], ["check", "--output", "sound", "data"]),
        (["--refs", "refs(unc).p"], ["refcoco", "--refs", "refs(unc).p"]),
        (["grefcoco", "--refs", "x"], ["grefcoco", "--refs", "x"]),
        (["--help"], ["--help"]),
    ],
)
def test_options_of_earlier_versions(old: list[str], new: list[str]) -> None:
    assert with_command(old) == new
