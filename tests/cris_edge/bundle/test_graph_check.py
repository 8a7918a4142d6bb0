"""ONNX files are checked before a runtime reads them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from cris_edge.bundle import Bundle
from cris_edge.bundle.graph_check import REQUIRED_INPUTS
from cris_edge.errors import BundleError

NAME = "onnx/mask_decoder.onnx"


def changed(tiny: Path, folder: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    """A copy of the bundle with one graph changed, and its hash in the manifest renewed."""
    target = Path(shutil.copytree(tiny, folder / "changed"))
    model = onnx.load(target / NAME)
    change(model)
    (target / NAME).write_bytes(model.SerializeToString())
    renew(target, NAME)
    return target


def renew(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def add_external(location: str) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        tensor = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=[4])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        model.graph.initializer.append(tensor)

    return change


@pytest.mark.parametrize(
    "location", ["../../outside.bin", "/etc/passwd", "weights.bin", "", "../../changed/../outside.bin", "..\\outside"]
)
def test_external_data_that_is_not_listed_is_refused(tiny: Path, tmp_path: Path, location: str) -> None:
    (tmp_path / "outside.bin").write_bytes(b"secret")
    with pytest.raises(BundleError, match="which the manifest does not list"):
        Bundle.open(changed(tiny, tmp_path, add_external(location)))


@pytest.mark.parametrize("location", ["weights.bin", "./weights.bin"])
def test_external_data_that_is_listed_is_accepted(tiny: Path, tmp_path: Path, location: str) -> None:
    folder = changed(tiny, tmp_path, add_external(location))
    (folder / "onnx" / "weights.bin").write_bytes(bytes(16))
    renew(folder, "onnx/weights.bin")
    Bundle.open(folder)


def test_other_shapes_than_stated_are_refused(tiny: Path, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 9

    with pytest.raises(BundleError, match=r"The inputs of .*mask_decoder\.onnx are visual5 float32\[1, 9, 4, 4\]"):
        Bundle.open(changed(tiny, tmp_path, change))


def test_the_graph_of_another_name_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="the manifest states"):
        Bundle.open(changed(tiny, tmp_path, lambda model: model.CopyFrom(onnx.load(tiny / "onnx/text_encoder.onnx"))))


def test_custom_operators_are_refused_unless_the_file_defines_them(tiny: Path, tmp_path: Path) -> None:
    def add(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Execute", ["visual5"], ["unused"], domain="com.stranger"))
        model.opset_import.append(helper.make_opsetid("com.stranger", 1))

    def define(model: onnx.ModelProto) -> None:
        add(model)
        node = helper.make_node("Identity", ["x"], ["y"])
        opsets = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("com.stranger", "Execute", ["x"], ["y"], [node], opsets))

    with pytest.raises(BundleError, match=r"has the custom operators com\.stranger\.Execute"):
        Bundle.open(changed(tiny, tmp_path / "one", add))
    Bundle.open(changed(tiny, tmp_path / "two", define))


def test_absurd_sizes_are_refused(tiny: Path, tmp_path: Path) -> None:
    def claim(*shape: int) -> Callable[[onnx.ModelProto], object]:
        return lambda model: model.graph.initializer.append(
            TensorProto(name="claim", data_type=TensorProto.FLOAT, dims=shape)
        )

    def between(model: onnx.ModelProto) -> None:
        model.graph.value_info.append(helper.make_tensor_value_info("huge", TensorProto.FLOAT, [1 << 20, 1 << 20]))

    for number, shape in enumerate([(1 << 20, 1 << 20), (1 << 62, 4), (-1,)]):
        with pytest.raises(BundleError, match="more values than the file can hold"):
            Bundle.open(changed(tiny, tmp_path / str(number), claim(*shape)))
    with pytest.raises(BundleError, match=r"has the shape \[1048576, 1048576\]; expected at most"):
        Bundle.open(changed(tiny, tmp_path / "between", between))


def test_a_file_that_is_no_graph_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    (folder / NAME).write_bytes(b"GIF89a")
    renew(folder, NAME)
    with pytest.raises(BundleError, match="cannot be read as an ONNX model"):
        Bundle.open(folder)


@pytest.mark.parametrize("omitted", [[], [""]])
def test_an_operator_without_its_inputs_is_refused(tiny: Path, tmp_path: Path, omitted: list[str]) -> None:
    """OpenVINO ended the process at a Conv without weights."""

    def add(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Conv", ["visual5", *omitted], ["unused"]))

    with pytest.raises(BundleError, match="the operator Conv with 1 inputs; expected 2 or more"):
        Bundle.open(changed(tiny, tmp_path, add))


def test_the_table_of_inputs_is_that_of_onnx() -> None:
    required: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            required[schema.name] = min(required.get(schema.name, schema.min_input), schema.min_input)
    # Another version of onnx may know more or fewer operators.
    assert REQUIRED_INPUTS["Conv"] == 2
    assert {name: count for name, count in REQUIRED_INPUTS.items() if required.get(name, count) != count} == {}
