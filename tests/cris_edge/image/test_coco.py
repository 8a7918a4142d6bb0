from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cris_edge.errors import DataError
from cris_edge.image.coco import decode_rle, encode_rle, fill_polygons


def disc(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - height / 2) ** 2 / height**2 + (columns - width / 2) ** 2 / width**2 < 0.15


# The counts in these tests were written by pycocotools 2.0.11.
@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        (np.zeros((4, 6), bool), "h0"),
        (np.ones((4, 6), bool), "0h0"),
        (np.pad(np.ones((1, 1), bool), ((0, 3), (0, 5))), "01g0"),
        (disc(30, 20), "U39b06L2N2N2N2O00000001N2N2N2N4Jd1"),
    ],
)
def test_compressed_counts_are_those_of_pycocotools(mask: np.ndarray, counts: str) -> None:
    assert encode_rle(mask) == {"size": list(mask.shape), "counts": counts}


def test_large_and_negative_counts_are_those_of_pycocotools() -> None:
    mask = np.zeros((480, 640), bool)
    mask[100:311, 200:555] = True
    mask[7, 7] = True
    counts = encode_rle(mask)["counts"]
    assert counts.startswith("WY31laj2b6afUM00000")
    assert len(counts) == 725


@settings(max_examples=200)
@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_round_trip(mask: np.ndarray) -> None:
    rle = json.loads(json.dumps(encode_rle(mask)))
    assert decode_rle(rle).shape == mask.shape
    assert (decode_rle(rle) == mask).all()


def test_round_trip_of_long_runs() -> None:
    mask = np.zeros((3000, 4000), bool)
    mask[1234:2345, 17:3999] = True
    assert (decode_rle(encode_rle(mask)) == mask).all()


def test_uncompressed_counts() -> None:
    decoded = decode_rle({"size": [2, 3], "counts": [1, 2, 3]})
    assert decoded.tolist() == [[False, True, False], [True, False, False]]


def test_bytes_as_pycocotools_returns_them() -> None:
    mask = disc(30, 20)
    rle = encode_rle(mask)
    assert (decode_rle({**rle, "counts": rle["counts"].encode()}) == mask).all()


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ({}, '"size"'),
        ({"size": [2], "counts": "0"}, '"size"'),
        ({"size": [2, -3], "counts": [0]}, '"size"'),
        ({"size": [2, 0], "counts": []}, '"size"'),
        ({"size": "23", "counts": [6]}, '"size"'),
        ({"size": [2.0, 3.0], "counts": [6]}, '"size"'),
        ({"size": [True, 3], "counts": [3]}, '"size"'),
        ({"size": [10**9, 10**9], "counts": [10**18]}, '"size"'),
        ({"size": [2, 3]}, '"counts"'),
        ({"size": [2, 3], "counts": 6}, '"counts"'),
        ({"size": [2, 3], "counts": [3, "3"]}, '"counts"'),
        ({"size": [2, 3], "counts": [-1, 7]}, '"counts"'),
        ({"size": [2, 3], "counts": [float("nan")]}, '"counts"'),
        ({"size": [2, 3], "counts": [3, 2]}, "add up to 5"),
        ({"size": [2, 3], "counts": [4, 4]}, "add up to 8"),
        ({"size": [2, 3], "counts": []}, "add up to 0"),
        ({"size": [2, 3], "counts": ""}, "add up to 0"),
        ({"size": [2, 3], "counts": "h0"}, "longer than the mask"),
        ({"size": [2, 3], "counts": "o"}, "cut off"),
        ({"size": [2, 3], "counts": "6é"}, "characters"),
        ({"size": [2, 3], "counts": "6 "}, "characters"),
        ({"size": [2, 3], "counts": "6~"}, "characters"),
        ({"size": [2, 3], "counts": "ooooooooooooooooo0"}, "too large"),
        ({"size": [2, 3], "counts": "O"}, "negative"),
    ],
)
def test_damaged_rle_is_refused(rle: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        decode_rle(rle)


@given(st.text(alphabet=[chr(code) for code in range(40, 120)], max_size=30))
def test_any_counts_give_a_mask_or_a_data_error(counts: str) -> None:
    with contextlib.suppress(DataError):
        assert decode_rle({"size": [5, 7], "counts": counts}).shape == (5, 7)


def test_polygon_of_whole_pixels_fills_them() -> None:
    mask = fill_polygons([[2, 1, 5, 1, 5, 4, 2, 4]], 6, 8)
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:5] = True
    assert (mask == expected).all()


def test_polygons_equal_those_of_pycocotools() -> None:
    polygons = [[1.3, 0.2, 17.9, 3.1, 11.5, 12.7, 4.4, 9.9], [15.0, 10.0, 21.4, -0.8, 20.3, 12.9]]
    assert encode_rle(fill_polygons(polygons, 13, 21))["counts"] == "j04:2M3M001O0010O0001ON2O2M2OJM41L23MM443M2O1O"


def test_even_odd_inside_one_polygon_and_union_of_several() -> None:
    bow_tie = [0, 0, 10, 10, 10, 0, 0, 10]
    assert not fill_polygons([bow_tie], 10, 10)[1, 5]
    square = [0, 0, 10, 0, 10, 10, 0, 10]
    assert fill_polygons([square, square], 10, 10).all()


def test_polygons_slightly_outside_the_image_are_clipped() -> None:
    assert fill_polygons([[-1, -1, 9, -1, 9, 7, -1, 7]], 6, 8).all()


def test_polygons_for_another_size_are_refused() -> None:
    for polygon in ([10, 10, 640, 10, 640, 480], [-20, 10, 100, 10, 100, 100]):
        with pytest.raises(DataError, match="image of 224 x 200 pixels: does it belong to the image at another size"):
            fill_polygons([[1, 1, 9, 1, 9, 9], polygon], 200, 224)


@pytest.mark.parametrize(
    ("polygons", "words"),
    [
        ([], "missing"),
        ("123456", "missing"),
        ([[1, 1, 5, 5]], "three points"),
        ([[1, 1, 5, 5, 3]], "three points"),
        ([[]], "three points"),
        ([[1, 1, 5, 5, 3, 2, 9]], "three points"),
        ([[[1, 1], [5, 5], [3, 2]]], "three points"),
        ([[1, 1, 5, 5, 3, "x"]], "not a number"),
        ([[1, 1, 5, 5, 3, None]], "nan"),
        ([[1, 1, 5, 5, 3, float("nan")]], "nan"),
        ([[1, 1, 5, 5, 3, float("inf")]], "inf"),
        ([[1, 1, 5, 5, 3, 1e12]], r"1e\+12"),
        ([[1, [1], 5, 5, 3, 2]], "not a number"),
        ([7], "three points"),
        ([{"a": 1}], "not a number"),
    ],
)
def test_damaged_polygons_are_refused(polygons: list, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fill_polygons(polygons, 20, 30)


@pytest.mark.parametrize("value", [3, "x", None, [1]])
def test_what_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="expected an object"):
        decode_rle(value)  # type: ignore[arg-type]
