from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cris_edge.bundle.manifest import FORMAT, Manifest, TensorSpec
from cris_edge.errors import BundleError

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def plain(tiny: Path) -> dict[str, Any]:
    return json.loads((tiny / "manifest.json").read_bytes())


def test_it_survives_the_round_trip(plain: dict[str, Any]) -> None:
    manifest = Manifest.from_dict(plain)
    assert manifest.to_dict() == plain
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    assert manifest.graphs["image_encoder"].inputs == (TensorSpec("image", (1, 3, 128, 128), "float32"),)


def test_a_later_writer_may_add_entries(plain: dict[str, Any]) -> None:
    changed = {**copy.deepcopy(plain), "colour": "blue"}
    changed["graphs"]["image_encoder"]["inputs"][0]["layout"] = "NCHW"
    assert Manifest.from_dict(changed) == Manifest.from_dict(plain)


@pytest.mark.parametrize("version", [0, FORMAT + 1, -1])
def test_an_unknown_format_is_refused(plain: dict[str, Any], version: int) -> None:
    with pytest.raises(BundleError, match=f"is of format {version}.* install a newer cris-edge"):
        Manifest.from_dict({**plain, "format": version})


def _set(*path: str | int, value: Any) -> Change:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def _drop(*path: str | int) -> Change:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_drop("format"), "lacks 'format'"),
        (_set("format", value="1"), "'format' is a text; expected a whole number"),
        (_set("format", value=True), "'format' is true or false; expected a whole number"),
        (_drop("input_size"), "lacks 'input_size'"),
        (_set("input_size", value=100), "input_size is 100; expected a positive multiple of 32"),
        (_set("word_len", value=2), "word_len is 2; expected at least 3"),
        (_set("threshold", value=1.5), "threshold is 1.5; expected a probability"),
        (_set("threshold", value=float("nan")), "threshold is nan; expected a probability"),
        (_set("mean", value=[0.5, 0.5]), "'mean' has 2 numbers; expected three"),
        (_set("std", value=[0.5, 0.0, 0.5]), "std is .* expected three positive numbers"),
        (_set("std", value="wide"), "'std' is a text; expected a list"),
        (_set("precision", value="fp8"), "precision is 'fp8'; expected one of"),
        (_set("graphs", value=[]), "'graphs' is a list; expected an object"),
        (_drop("graphs", "mask_decoder"), "lacks 'graphs.mask_decoder'"),
        (_set("graphs", "text_encoder", "inputs", 0, "shape", value=[1, -1]), "not static"),
        (_set("graphs", "text_encoder", "inputs", 0, "dtype", value="string"), "unknown type"),
        (
            _set("graphs", "text_encoder", "inputs", 0, "shape", value=[1, 22]),
            "inputs of text_encoder are tokens int64",
        ),
        (_set("graphs", "image_encoder", "inputs", 0, "name", value="x"), "inputs of image_encoder are x float32"),
        (_set("graphs", "mask_decoder", "outputs", 0, "name", value="x"), "outputs of mask_decoder are x float32"),
        (_drop("graphs", "image_encoder", "outputs", 0), "takes visual5 .* give no tensor of that name"),
        (_set("graphs", "image_encoder", "outputs", 0, "shape", value=[1, 8, 9, 9]), r"takes visual5 .* give visual5"),
        (_set("graphs", "image_encoder", "outputs", 0, "name", value="word_keys"), "two outputs .* the same name"),
        (_set("runtimes", value={}), "names no runtime"),
        (_drop("runtimes", "openvino", "mask_decoder"), "names no mask_decoder for the runtime 'openvino'"),
        (_set("runtimes", "openvino", "mask_decoder", value="else.onnx"), "no hash of it"),
        (_set("runtimes", "openvino", "mask_decoder", value=3), "is a whole number; expected a text"),
        (_drop("files", "tokenizer.json"), "uses 'tokenizer.json' and has no hash"),
        (_drop("files", "golden.npz"), "uses 'golden.npz' and has no hash"),
        (_set("files", "golden.npz", "sha256", value="AB"), "expected 64 hexadecimal digits"),
        (_set("golden_prompts", value=[1]), "is a whole number; expected a text"),
    ],
)
def test_what_contradicts_itself_is_refused(plain: dict[str, Any], change: Change, sentence: str) -> None:
    changed = copy.deepcopy(plain)
    change(changed)
    with pytest.raises(BundleError, match=sentence):
        Manifest.from_dict(changed)


@pytest.mark.parametrize("data", [None, 3, [], "manifest"])
def test_other_json_is_refused(data: object) -> None:
    with pytest.raises(BundleError, match=r"top level is .* expected a JSON object"):
        Manifest.from_dict(data)


def test_the_weights_of_an_ir_are_listed_too(plain: dict[str, Any]) -> None:
    changed = copy.deepcopy(plain)
    record = changed["files"]["onnx/mask_decoder.onnx"]
    changed["runtimes"]["openvino"]["mask_decoder"] = "openvino/mask_decoder.xml"
    changed["files"]["openvino/mask_decoder.xml"] = record
    with pytest.raises(BundleError, match=r"uses 'openvino/mask_decoder.bin' and has no hash"):
        Manifest.from_dict(changed)
    changed["files"]["openvino/mask_decoder.bin"] = record
    Manifest.from_dict(changed)
