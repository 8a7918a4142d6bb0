from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cris_edge.bundle import Bundle, default_model
from cris_edge.bundle.onnx_header import OnnxTensor, parse_onnx_header, read_onnx_header
from cris_edge.errors import BundleError

onnx = pytest.importorskip("onnx", reason="the reader is compared with onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def model(**changes: object) -> onnx.ModelProto:
    """A graph with a subgraph, a function, another domain and a symbolic side."""
    branch = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["branch_out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("branch_out", TensorProto.FLOAT, ["n", 3])],
    )
    nodes = [
        helper.make_node("Custom", ["x"], ["custom"], domain="example.domain"),
        helper.make_node("If", ["condition"], ["chosen"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.zeros((2, 3), np.float32))),
        helper.make_node("Add", ["chosen", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 3, 416, 416])],
        [numpy_helper.from_array(np.arange(12, dtype=np.int64).reshape(4, 3), "w")],
    )
    function = helper.make_function(
        "example.domain", "Custom", ["a"], ["b"], [helper.make_node("Erf", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("example.domain", 2)],
        functions=[function],
        ir_version=8,
    )
    helper.set_model_props(made, {"activations": "int8", "größe": "klein"})
    return made


DATA = model().SerializeToString()


def test_everything_is_read() -> None:
    header = parse_onnx_header(DATA)
    assert header.ir_version == 8
    assert header.opsets == {"": 17, "example.domain": 2}
    assert header.operators == {
        ("", "If"), ("", "Neg"), ("", "Constant"), ("", "Add"), ("", "Erf"), ("example.domain", "Custom"),
    }  # fmt: skip
    assert header.inputs == [OnnxTensor("x", "float32", (None, 3)), OnnxTensor("condition", "bool", ())]
    assert header.outputs == [OnnxTensor("y", "float16", (1, 3, 416, 416))]
    assert header.metadata == {"activations": "int8", "größe": "klein"}
    assert header.external_data == set()


@pytest.mark.parametrize("code", sorted(set(TensorProto.DataType.values()) - {0}))
def test_every_type_has_numpys_name(code: int) -> None:
    info = helper.make_tensor_value_info("x", code, [-1, 2])
    graph = helper.make_graph([], "g", [info], [])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    (tensor,) = parse_onnx_header(data).inputs
    if code in (*range(1, 14), 16) and code != TensorProto.STRING:
        expected = "bfloat16" if code == TensorProto.BFLOAT16 else str(helper.tensor_dtype_to_np_dtype(code))
        assert tensor == OnnxTensor("x", expected, (-1, 2))
    else:
        assert tensor.dtype in ("string", f"type {code}")


def test_external_data_is_listed(tmp_path: Path) -> None:
    made = model()
    # Of the initializer and of a constant inside a node.
    onnx.external_data_helper.convert_model_to_external_data(
        made, all_tensors_to_one_file=False, size_threshold=0, convert_attribute=True
    )
    onnx.save(made, tmp_path / "model.onnx")
    files = {path.name for path in tmp_path.iterdir()} - {"model.onnx"}
    assert len(files) == 2
    assert read_onnx_header(tmp_path / "model.onnx").external_data == files


def test_a_tensor_in_any_attribute_may_be_external() -> None:
    def external(location: str) -> onnx.TensorProto:
        tensor = numpy_helper.from_array(np.zeros(3, np.float32))
        onnx.external_data_helper.set_external_data(tensor, location)
        return tensor

    made = model()
    node = made.graph.node[0]
    node.attribute.append(onnx.AttributeProto(name="t", t=external("../a")))
    node.attribute.append(onnx.AttributeProto(name="ts", tensors=[external("/b"), external("c")]))
    sparse = onnx.SparseTensorProto(values=external("d"), indices=external("e"))
    node.attribute.append(onnx.AttributeProto(name="s", sparse_tensor=sparse))
    made.graph.sparse_initializer.append(onnx.SparseTensorProto(values=external("f")))
    made.graph.node[1].attribute[0].g.initializer.append(external("g"))
    made.functions[0].node[0].attribute.append(onnx.AttributeProto(name="h", t=external("h")))
    assert parse_onnx_header(made.SerializeToString()).external_data == {"../a", "/b", "c", "d", "e", "f", "g", "h"}


def test_the_default_model_is_read_as_onnx_reads_it() -> None:
    bundle = Bundle.open(default_model())
    for name, path in bundle.graph_files("onnxruntime").items():
        header, expected = read_onnx_header(path), onnx.load(path)
        assert header.operators == {(node.domain, node.op_type) for node in expected.graph.node}
        assert header.opsets == {opset.domain: opset.version for opset in expected.opset_import}
        spec = bundle.manifest.graphs[name]
        for tensors, read in ((spec.inputs, header.inputs), (spec.outputs, header.outputs)):
            assert {(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors} == {
                (tensor.name, tensor.dtype, tensor.shape) for tensor in read
            }
        assert header.external_data == set()


def test_fields_that_are_repeated_are_all_read() -> None:
    """Protocol buffers merge a message that occurs twice, so that a second graph could hide operators."""
    second = onnx.ModelProto()
    second.graph.node.append(helper.make_node("Hidden", [], ["z"]))
    assert ("", "Hidden") in parse_onnx_header(DATA + second.SerializeToString()).operators


def test_deep_nesting_is_refused() -> None:
    graph = helper.make_graph([], "leaf", [], [])
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("Loop", [], [], body=graph)], "g", [], [])
    with pytest.raises(ValueError, match="nested more than 16 deep"):
        parse_onnx_header(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("content", [b"", b"\x00", b"hello world", b"\xff" * 30, DATA[:-1], DATA[:100], b"\x0a\x05ab"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx cannot be read as an ONNX model"):
        read_onnx_header(path)
    with pytest.raises(BundleError, match="cannot be read as an ONNX model"):
        read_onnx_header(tmp_path / "absent.onnx")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_header_or_a_value_error(data: bytes) -> None:
    try:
        parse_onnx_header(data)
    except ValueError as error:
        assert str(error)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_damaged_models_give_a_header_or_a_value_error(seed: int) -> None:
    draw, data = random.Random(seed), bytearray(DATA)
    for _ in range(draw.randint(1, 8)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    try:
        parse_onnx_header(bytes(data[: draw.randint(len(data) // 2, len(data))]))
    except ValueError as error:
        assert str(error)
