from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cris_edge.errors import DataError
from cris_edge.image.coco import encode_rle
from cris_edge.image.labelled import Sample, read_samples

HEIGHT, WIDTH = 20, 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "a.jpg"), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "a_mask.png"), box().astype(np.uint8) * 255)
    return tmp_path


def box() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:9, 5:21] = True
    return mask


def write(folder: Path, *entries: object) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries) + "\n")
    return path


def entry(**changes: object) -> dict[str, object]:
    return {"image": "a.jpg", "sentences": ["the red mug", "mug on the left"], "mask": "a_mask.png"} | changes


def test_a_line_becomes_a_sample(folder: Path) -> None:
    (sample,) = read_samples(write(folder, entry(category="mug")))
    assert sample.image == folder / "a.jpg"
    assert sample.sentences == ("the red mug", "mug on the left")
    assert sample.mask == folder / "a_mask.png"
    assert sample.extra == {"category": "mug"}
    assert sample.source == "data.jsonl, line 1"
    assert sample.image_size() == (HEIGHT, WIDTH)
    truth = sample.truth()
    assert truth.dtype == np.bool_
    assert (truth == box()).all()


@pytest.mark.parametrize(
    "mask",
    [
        encode_rle(box()),
        {"size": [HEIGHT, WIDTH], "counts": [103, *[6, 14] * 15, 6, 191]},
        [[5, 3, 21, 3, 21, 9, 5, 9]],
        [[5, 3, 12, 3, 12, 9, 5, 9], [12, 3, 21, 3, 21, 9, 12, 9]],
    ],
    ids=["compressed RLE", "RLE", "polygon", "polygons"],
)
def test_masks_of_every_kind_are_equal(folder: Path, mask: object) -> None:
    (sample,) = read_samples(write(folder, entry(mask=mask)))
    assert (sample.truth() == box()).all()
    assert (sample.truth((HEIGHT, WIDTH)) == box()).all()


@pytest.mark.parametrize("kind", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "indexed"])
def test_png_masks_of_every_mode(folder: Path, kind: str) -> None:
    if kind == "indexed":  # a palette whose first colour is black, as segmentation tools write it
        image = Image.new("P", (WIDTH, HEIGHT))
        image.putdata((box().astype(np.uint8) * 3).ravel().tolist())
        image.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 128, 0, 0])
    elif kind == "I;16":
        image = Image.fromarray(box().astype(np.uint16) * 700)
    else:
        image = Image.fromarray(box().astype(np.uint8) * 255).convert(kind)
    image.save(folder / "a_mask.png")
    (sample,) = read_samples(write(folder, entry()))
    assert (sample.truth() == box()).all()


def test_the_mask_belongs_to_the_upright_image(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / "a.jpg", exif=exif)
    (sample,) = read_samples(write(folder, entry(mask=encode_rle(box().T))))
    assert sample.image_size() == (WIDTH, HEIGHT)
    assert sample.truth().shape == (WIDTH, HEIGHT)


def test_blank_lines_and_byte_order_mark_are_skipped(folder: Path) -> None:
    path = folder / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(entry()).encode() + b"\r\n\r\n  \n" + json.dumps(entry()).encode())
    assert [sample.source for sample in read_samples(path)] == ["data.jsonl, line 1", "data.jsonl, line 4"]


def test_masks_are_optional_where_they_are_not_needed(folder: Path) -> None:
    path = write(folder, {"image": "a.jpg", "sentences": ["the mug"]})
    with pytest.raises(DataError, match='line 1: It has no "mask"'):
        read_samples(path)
    (sample,) = read_samples(path, require_masks=False)
    assert sample.mask is None
    with pytest.raises(DataError, match='line 1: It has no "mask"'):
        sample.truth()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "JSON list"),
        ("null", "JSON NoneType"),
        (entry(image=None), '"image"'),
        (entry(image=" "), '"image"'),
        (entry(image=7), '"image"'),
        (entry(image="b.jpg"), "image file .*b.jpg' does not exist"),
        (entry(image="."), "does not exist"),
        (entry(image="a\0.jpg"), "does not exist"),
        (entry(image="a" * 5000), "does not exist"),
        (entry(mask="b.png"), "mask file .*b.png' does not exist"),
        (entry(sentences=None), '"sentences"'),
        (entry(sentences="the mug"), '"sentences"'),
        (entry(sentences=[]), '"sentences"'),
        (entry(sentences=["the mug", " "]), '"sentences"'),
        (entry(sentences=["the mug", 3]), '"sentences"'),
        (entry(mask=3), '"mask"'),
        (entry(mask=True), '"mask"'),
    ],
)
def test_a_bad_line_is_named(folder: Path, line: object, words: str) -> None:
    with pytest.raises(DataError, match=f"(?s)data.jsonl, line 2: .*{words}"):
        read_samples(write(folder, entry(), line))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (encode_rle(np.ones((HEIGHT, WIDTH + 1), bool)), "31 x 20 pixels, but the image a.jpg has 30 x 20"),
        ({"size": [HEIGHT, WIDTH], "counts": [1, 2, 3]}, "add up to 6"),
        ({"size": [HEIGHT, WIDTH], "counts": "xyz"}, '"counts"'),
        ({}, '"size"'),
        ([], "missing"),
        ([[1, 2, 3, 4]], "three points"),
        ([[1, 2, 3, 4, "x", 6]], "not a number"),
    ],
)
def test_a_bad_mask_is_named(folder: Path, mask: object, words: str) -> None:
    (sample,) = read_samples(write(folder, entry(mask=mask)))
    with pytest.raises(DataError, match=f"data.jsonl, line 1: .*{words}"):
        sample.truth()


def test_a_mask_file_of_another_size(folder: Path) -> None:
    cv2.imwrite(str(folder / "a_mask.png"), np.zeros((HEIGHT, WIDTH - 1), np.uint8))
    with pytest.raises(DataError, match=r"29 x 20 pixels, but the image a.jpg has 30 x 20"):
        read_samples(write(folder, entry()))[0].truth()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a PNG"),
        (b"hello", "not a PNG"),
        (cv2.imencode(".jpg", np.zeros((HEIGHT, WIDTH), np.uint8))[1].tobytes(), "not a PNG"),
        (cv2.imencode(".png", np.zeros((HEIGHT, WIDTH), np.uint8))[1].tobytes()[:-20], "incomplete"),
    ],
)
def test_a_mask_file_that_is_not_a_png(folder: Path, content: bytes, words: str) -> None:
    (folder / "a_mask.png").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_samples(write(folder, entry()))[0].truth()


def test_files_that_vanish_or_break_later_are_reported(folder: Path) -> None:
    (sample,) = read_samples(write(folder, entry()))
    (folder / "a_mask.png").unlink()
    with pytest.raises(DataError, match=r"line 1: The mask .* cannot be read"):
        sample.truth()
    (folder / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"line 1: The image .* cannot be read"):
        sample.truth()
    (folder / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"line 1: The image .* cannot be read"):
        sample.truth()


def test_checking_files_is_optional(folder: Path) -> None:
    (sample,) = read_samples(write(folder, entry(image="b.jpg")), check_files=False)
    assert sample.image == folder / "b.jpg"


def test_unusable_files(folder: Path) -> None:
    with pytest.raises(DataError, match="There is no data file"):
        read_samples(folder / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(folder)
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(folder / "a\0.jsonl")
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_samples(folder / "a.jpg")
    with pytest.raises(DataError, match="holds no samples"):
        read_samples(write(folder, "", " "))


def test_samples_compare_by_content() -> None:
    first = Sample(Path("a.jpg"), ("the mug",), source="here")
    assert first == Sample(Path("a.jpg"), ("the mug",), extra={"a": 1}, source="there")


def test_real_photos(shared_data: Path) -> None:
    samples = read_samples(shared_data / "real" / "test.jsonl")
    assert all(0 < sample.truth().mean() < 1 for sample in samples[::10])


def test_real_polygons(shared_data: Path) -> None:
    read, refused = 0, set()
    for sample in read_samples(shared_data / "real_train" / "train.jsonl"):
        try:
            read += bool(sample.truth().any())
        except DataError:  # some of these photos are smaller than what their polygons were drawn on
            refused.add(sample.image_size())
    assert read > 390
    assert refused == {(224, 224)}


def test_a_mask_of_null_means_that_nothing_matches(folder: Path) -> None:
    lines = [entry(mask=None), entry(), {"image": "a.jpg", "sentences": ["red"]}]
    path = folder / "negatives.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]), encoding="utf-8")
    absent, present = read_samples(path)
    assert absent.no_target and absent.mask is None and not absent.truth().any()
    assert absent.truth().shape == present.truth().shape and not present.no_target
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(DataError, match='line 3: It has no "mask"'):
        read_samples(path)
    unlabelled = read_samples(path, require_masks=False)[2]
    assert not unlabelled.no_target
    with pytest.raises(DataError, match='line 3: It has no "mask"'):
        unlabelled.truth()
