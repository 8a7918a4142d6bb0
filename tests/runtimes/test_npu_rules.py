"""Checks of graphs against the published rules of OpenVINO's NPU."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from cris_edge.bundle import default_model
from runtimes import npu_rules

pytest.importorskip("openvino")


def write(path: Path, operator: str, shape: list, out: list, kind: int = TensorProto.FLOAT, **attributes) -> Path:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], "odd_one", **attributes)],
        "odd",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, out)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.mark.parametrize("name", ["image_encoder", "text_encoder", "mask_decoder"])
def test_default_model_keeps_the_rules(name):
    assert npu_rules.check(name, default_model() / "onnx" / f"{name}.onnx").violations == ()


def test_dynamic_shape_is_named(tmp_path):
    found = npu_rules.check("odd", write(tmp_path / "a.onnx", "Relu", ["n", 4], ["n", 4]))
    assert any("static" in violation and "of odd" in violation for violation in found.violations)


def test_unsupported_operator_is_named(tmp_path):
    found = npu_rules.check("odd", write(tmp_path / "a.onnx", "Einsum", [2, 2], [2], equation="ii->i"))
    assert any(violation.startswith("Einsum") for violation in found.violations)


def test_too_many_dimensions_are_named(tmp_path):
    shape = [1] * 6
    found = npu_rules.check("odd", write(tmp_path / "a.onnx", "Relu", shape, shape))
    assert any("6 dimensions" in violation for violation in found.violations)


def test_record_states_that_there_is_no_npu(tmp_path, caplog):
    files = {
        "odd": write(tmp_path / "odd.onnx", "Relu", ["n", 4], ["n", 4]),
        "even": write(tmp_path / "even.onnx", "Relu", [2, 4], [2, 4]),
    }
    with caplog.at_level(logging.WARNING):
        record = npu_rules.examine(files, tmp_path)
    assert record["odd"]["violations"]
    assert "does not support the graph" in caplog.text
    assert record["even"]["violations"] == []
    if not record["even"]["compiled"]:
        assert record["even"]["reason"]
