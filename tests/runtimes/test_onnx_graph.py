"""Storing weights as float16 does not change the results of a graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtimes import onnx_graph

ort = pytest.importorskip("onnxruntime")

TABLE = np.arange(12, dtype=np.float32).reshape(6, 2) / 4
WEIGHT = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)


def looked_up(*, tied: bool) -> onnx.ModelProto:
    """Rows of a table times a weight, and a row of an input; `tied`: the table is read by a product too."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["y"]),
        helper.make_node("Gather", ["x", "ids"], ["picked"]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3, 2)),
        helper.make_tensor_value_info("picked", TensorProto.FLOAT, (1, 3)),
    ]
    if tied:
        nodes.append(helper.make_node("MatMul", ["table", "w"], ["z"]))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (6, 2)))
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, (1, 3)),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, (6,)),
        ],
        outputs,
        [numpy_helper.from_array(TABLE, "table"), numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_a_table_are_cast_instead_of_the_table(tied: bool) -> None:
    model = looked_up(tied=tied)
    feeds = {"ids": np.array([[5, 0, 3]], np.int64), "x": np.arange(6, dtype=np.float32)}
    before = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    assert onnx_graph.store_as_float16(model) == (TABLE.nbytes + WEIGHT.nbytes) // 2
    onnx.checker.check_model(model, full_check=True)
    casts = {node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    assert casts == {"w_float16", "table_float16" if tied else "rows_float16"}
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}
    after = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_table_that_float16_cannot_hold_stays_unchanged() -> None:
    model = looked_up(tied=False)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(TABLE + np.float32(1e-6), "table"))
    assert onnx_graph.store_as_float16(model) == WEIGHT.nbytes // 2
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.node[1].input[0] == "table"
