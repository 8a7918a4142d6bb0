from __future__ import annotations

import copy
import json
import os
import pickle
import stat
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from cris_edge.errors import CrisEdgeError, InputError, OptionError
from cris_edge.image.coco import decode_rle
from cris_edge.result import Segmentation

HEIGHT, WIDTH = 60, 90


def result(mask: np.ndarray | None = None, **options: object) -> Segmentation:
    if mask is None:
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[10:30, 20:60] = True
    image = np.full((*mask.shape, 3), 150, np.uint8)
    return Segmentation(np.where(mask, 0.8, 0.1).astype(np.float32), image, "the red mug", **options)  # type: ignore[arg-type]


def nothing() -> Segmentation:
    return result(np.zeros((HEIGHT, WIDTH), bool))


def test_mask_and_its_numbers() -> None:
    found = result(timings={"image": 0.5})
    assert found.mask.dtype == np.bool_
    assert found.mask.shape == (HEIGHT, WIDTH)
    assert found.area == 800
    assert found.box == (20.0, 10.0, 60.0, 30.0)
    assert found.score == pytest.approx(0.8)
    assert not found.empty
    assert found.prompt == "the red mug"
    assert found.threshold == 0.35
    assert dict(found.timings) == {"image": 0.5}
    assert "the red mug" in repr(found)
    assert "90 x 60" in repr(found)


def test_nothing_found_is_an_answer() -> None:
    empty = nothing()
    assert empty.empty
    assert empty.score == 0.0
    assert empty.box is None
    assert empty.area == 0
    assert empty.polygons() == []
    assert not decode_rle(empty.rle()).any()
    assert empty.overlay().shape == (HEIGHT, WIDTH, 3)
    assert json.loads(json.dumps(empty.to_dict()))["box"] is None
    assert "empty" in repr(empty)


def test_the_threshold_is_strict_and_comes_before_clipping() -> None:
    probability = np.array([[-0.2, 0.35, 0.3500001, 1.2]], np.float32)
    found = Segmentation(probability, np.zeros((1, 4, 3), np.uint8), "x")
    assert found.mask.tolist() == [[False, False, True, True]]
    np.testing.assert_allclose(found.probability, [[0, 0.35, 0.35, 1]], atol=1e-6)
    assert found.probability.dtype == np.float32
    assert probability[0, 0] == np.float32(-0.2)  # the caller's array is untouched
    overshoot = Segmentation(probability, np.zeros((1, 4, 3), np.uint8), "x", threshold=1.0)
    assert overshoot.mask.tolist() == [[False, False, False, True]]
    assert overshoot.score == 1.0


def test_nan_is_never_inside() -> None:
    found = Segmentation(np.full((3, 4), np.nan, np.float32), np.zeros((3, 4, 3), np.uint8), "x")
    assert found.empty
    assert found.score == 0.0


def test_one_pixel() -> None:
    found = Segmentation(np.ones((1, 1), np.float32), np.zeros((1, 1, 3), np.uint8), "x")
    assert found.box == (0.0, 0.0, 1.0, 1.0)
    assert found.overlay().shape == (1, 1, 3)
    assert [ring.tolist() for ring in found.polygons()] == [[[0, 0]]]
    assert decode_rle(found.rle()).all()


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_the_threshold_is_a_number(threshold: float) -> None:
    with pytest.raises(OptionError, match="threshold"):
        result(threshold=threshold)


def test_the_probability_fits_the_image() -> None:
    with pytest.raises(InputError, match="does not fit"):
        Segmentation(np.zeros((3, 4), np.float32), np.zeros((4, 3, 3), np.uint8), "x")


def test_polygons_are_the_outlines_of_parts_and_holes() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:15, 5:15] = True
    mask[20:50, 30:80] = True
    mask[30:40, 40:60] = False  # a hole
    mask[55, 3] = True  # a speck
    rings = result(mask).polygons()
    assert [len(ring) for ring in rings][:3] == [4, 8, 4]
    assert sorted(map(tuple, rings[0].tolist())) == [(30, 20), (30, 49), (79, 20), (79, 49)]
    assert rings[-1].tolist() == [[3, 55]]
    assert rings[0].dtype.kind == "i"
    assert (filled(rings, mask.shape) == mask).all()


def filled(rings: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    canvas = np.zeros(shape, np.uint8)
    return cv2.fillPoly(canvas, rings, 1).astype(bool) if rings else canvas.astype(bool)


def test_a_cutout_is_transparent_outside(tmp_path: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:15, 5:15] = True
    found = result(mask)
    assert (found.cutout()[:, :, :3] == found.image).all()
    assert ((found.cutout()[:, :, 3] == 255) == mask).all()
    written = cv2.imread(str(found.save(tmp_path / "a.png", what="cutout")), cv2.IMREAD_UNCHANGED)
    assert (written[:, :, [2, 1, 0, 3]] == found.cutout()).all()
    with pytest.raises(OptionError, match=r"must end in \.png"):
        found.save(tmp_path / "a.jpg", what="cutout")


def test_a_result_goes_into_supervision() -> None:
    supervision = pytest.importorskip("supervision", reason="the interface is checked with the library itself")
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:15, 5:25] = True
    detections = result(mask).to_supervision()
    assert detections.xyxy.tolist() == [[5, 5, 25, 15]] and (detections.mask[0] == mask).all()
    assert detections.data["class_name"].tolist() == [result(mask).prompt]
    drawn = supervision.MaskAnnotator().annotate(result(mask).image.copy(), detections)
    assert drawn.shape == result(mask).image.shape
    assert len(result(np.zeros_like(mask)).to_supervision()) == 0


def test_a_result_goes_into_yolo_labels() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:15, 5:25] = True
    (line,) = result(mask).to_yolo(3)
    category, *values = line.split()
    corners = np.array(values, float).reshape(-1, 2) * (WIDTH, HEIGHT) - 0.5
    assert category == "3" and sorted(map(tuple, corners.round(2).tolist())) == [(5, 5), (5, 14), (24, 5), (24, 14)]
    assert result(np.zeros_like(mask)).to_yolo(3) == []


def test_a_result_goes_into_coco() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:15, 5:25] = True
    annotation = result(mask).to_coco(7, image=2, category=3)
    assert annotation is not None
    assert (annotation["id"], annotation["image_id"], annotation["category_id"]) == (7, 2, 3)
    assert annotation["bbox"] == [5, 5, 20, 10] and annotation["area"] == 200
    assert (decode_rle(annotation["segmentation"]) == mask).all()
    assert result(np.zeros_like(mask)).to_coco() is None


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_views_agree_on_any_mask(mask: np.ndarray) -> None:
    found = result(mask)
    assert (decode_rle(found.rle()) == mask).all()
    assert found.area == mask.sum()
    if mask.any():
        x_min, y_min, x_max, y_max = map(int, found.box or ())
        assert mask[y_min:y_max, x_min:x_max].sum() == found.area
        for line in (mask[y_min], mask[y_max - 1], mask[:, x_min], mask[:, x_max - 1]):
            assert line.any()
    assert (filled(found.polygons(), mask.shape) == mask).all()
    assert found.overlay().shape == found.image.shape


def test_to_dict_is_json() -> None:
    entry = json.loads(json.dumps(result(timings={"image": 0.01}).to_dict()))
    keys = ["prompt", "matched", "empty", "presence", "score", "box", "area", "size", "threshold", "min_presence"]
    assert list(entry) == [*keys, "mask", "timings"]
    assert entry["box"] == [20.0, 10.0, 60.0, 30.0]
    assert entry["size"] == entry["mask"]["size"] == [HEIGHT, WIDTH]
    assert entry["timings"] == {"image": 0.01}
    assert (decode_rle(entry["mask"]) == result().mask).all()


def test_timings_are_read_only() -> None:
    with pytest.raises(TypeError):
        result(timings={"image": 0.01}).timings["image"] = 1  # type: ignore[index]


@pytest.mark.parametrize("name", ["out.png", "out.PNG", "out.jpg", "out.jpeg", "out.webp", "über uns.png"])
def test_save_writes_the_overlay(tmp_path: Path, name: str) -> None:
    found = result()
    assert found.save(tmp_path / name) == tmp_path / name
    written = cv2.imdecode(np.frombuffer((tmp_path / name).read_bytes(), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(written.astype(int) - found.overlay()).mean() < 12
    assert [file.name for file in tmp_path.iterdir()] == [name]  # nothing else is left


def test_save_writes_the_mask(tmp_path: Path) -> None:
    found = result()
    found.save(str(tmp_path / "mask.png"), what="mask")
    written = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert (written == found.mask * 255).all()


def test_save_replaces_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    result().save(path)
    assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_save_gives_ordinary_permissions(tmp_path: Path) -> None:
    result().save(tmp_path / "out.png")
    (tmp_path / "other").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "out.png").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


@pytest.mark.parametrize(
    ("name", "what", "words"),
    [
        ("out.gif", "overlay", "must end in .png or .jpg"),
        ("out", "overlay", "must end in .png"),
        (".png", "overlay", "must end in .png"),
        ("out.jpg", "mask", "must end in .png$"),
        ("out.png", "contour", "'contour', expected"),
        ("none/out.png", "overlay", "create the folder first"),
        ("a\0.png", "mask", "cannot be written"),
        ("x" * 300 + ".png", "mask", "cannot be written"),
    ],
)
def test_save_has_its_sentences(tmp_path: Path, name: str, what: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        result().save(tmp_path / name, what=what)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        result().save(tmp_path / "out.png")
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CrisEdgeError, match="No space left on device"):
        result().save(path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


def test_an_image_that_does_not_fit_a_format_has_its_sentence(tmp_path: Path) -> None:
    wide = result(np.ones((1, 20_000), bool))
    with pytest.raises(InputError, match="does not fit"):
        wide.save(tmp_path / "out.webp")
    wide.save(tmp_path / "out.png")


def parts(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for x, y, right, bottom in boxes:
        mask[y:bottom, x:right] = True
    return mask


def test_a_presence_below_the_level_empties_the_mask_alone() -> None:
    absent = result(presence=0.2, min_presence=0.5)
    assert absent.empty and not absent.matched
    assert absent.score == 0.0 and absent.box is None and absent.instances() == []
    np.testing.assert_array_equal(absent.probability, result().probability)
    entry = absent.to_dict()
    assert (entry["matched"], entry["empty"], entry["presence"], entry["min_presence"]) == (False, True, 0.2, 0.5)
    at_the_level = result(presence=0.5, min_presence=0.5)
    assert at_the_level.matched and at_the_level.area == 800
    assert result(presence=0.01).matched  # 0 disables it
    assert result(presence=None, min_presence=0.9).matched  # a model that does not know
    assert result().presence is None


def test_instances_are_the_connected_parts_largest_first() -> None:
    found = result(parts((5, 5, 15, 15), (40, 10, 70, 40), (72, 50, 80, 58))).instances()
    assert [instance.area for instance in found] == [900, 100, 64]
    assert [instance.box for instance in found] == [(40, 10, 70, 40), (5, 5, 15, 15), (72, 50, 80, 58)]
    np.testing.assert_array_equal(found[1].mask, parts((5, 5, 15, 15)))
    assert found[0].mask.dtype == np.bool_


def test_pixels_that_touch_at_a_corner_are_one_part() -> None:
    assert len(result(parts((10, 10, 20, 20), (20, 20, 30, 30))).instances()) == 1


def test_small_parts_are_dust_by_the_stated_rule() -> None:
    mask = parts((0, 0, 50, 40), (60, 0, 66, 6), (60, 20, 63, 25), (80, 40, 87, 46))  # 2000, 36, 15 and 42 pixels
    assert [instance.area for instance in result(mask).instances()] == [
        2000,
        42,
    ]  # 36 is below 2 % of 2000, 15 below 16
    assert [i.area for i in result(mask).instances(min_share=0)] == [2000, 42, 36]
    assert [i.area for i in result(mask).instances(min_share=0, min_area=0)] == [2000, 42, 36, 15]
    alone = result(parts((3, 3, 5, 5))).instances()
    assert [instance.area for instance in alone] == [4]  # the largest is always kept
    assert nothing().instances() == []
    with pytest.raises(OptionError, match="min_area is -1"):
        result().instances(min_area=-1)


def test_a_result_survives_pickling_and_copying() -> None:
    found = result(timings={"image": 0.5}, presence=0.9, min_presence=0.2, index=3, seconds=0.1)
    expected = found.to_dict()
    for other in (pickle.loads(pickle.dumps(found)), copy.copy(found), copy.deepcopy(found)):
        assert other.to_dict() == expected
        assert (other.probability == found.probability).all()
        assert (other.image == found.image).all()
        with pytest.raises(TypeError):
            other.timings["image"] = 1
