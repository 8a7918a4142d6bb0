"""The int8 forms of small handwritten graphs: their nodes, and how runtimes execute them."""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cris_edge.backends import ov
from runtimes.integer_graph import integer_share, lower
from runtimes.onnx_graph import IR_VERSION, OPSET

RNG = np.random.default_rng(0)


class Sketch:
    """A graph with quantizers around float weights, as PyTorch's exporter writes it."""

    def __init__(self, shape: tuple[int, ...], dtype: int = TensorProto.FLOAT) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.input = helper.make_tensor_value_info("x", dtype, shape)

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = array
        return name

    def quantized(self, name: str, scale: float = 0.02, zero: int = 128, dtype: type = np.uint8) -> str:
        parameters = self.constant(np.float32(scale)), self.constant(np.asarray(zero, dtype))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", name, *parameters), *parameters)

    def weight(self, *shape: int, axis: int = 0) -> str:
        array = RNG.normal(size=shape).astype(np.float32)
        others = tuple(index for index in range(len(shape)) if index != axis)
        scale = self.constant(np.abs(array).max(axis=others) / 127)
        zero = self.constant(np.zeros(shape[axis], np.int8))
        quantized = self.add("QuantizeLinear", self.constant(array), scale, zero, axis=axis)
        return self.add("DequantizeLinear", quantized, scale, zero, axis=axis)

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "sketch",
            [self.input],
            [helper.make_empty_tensor_value_info(output)],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model = onnx.shape_inference.infer_shapes(model)
        given = {value.name: value for value in model.graph.value_info}
        if output in given:
            model.graph.output[0].CopyFrom(given[output])
        return model


def run(model: onnx.ModelProto, x: np.ndarray, *, optimize: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def fused(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def convolutions() -> onnx.ModelProto:
    sketch = Sketch((1, 8, 6, 6))
    x = sketch.quantized("x")
    left = sketch.add(
        "Relu", sketch.add("Conv", x, sketch.weight(8, 8, 3, 3), sketch.constant(np.ones(8, np.float32)), pads=[1] * 4)
    )
    right = sketch.add("Relu", sketch.add("Conv", x, sketch.weight(8, 8, 1, 1)))
    joined = sketch.add("Concat", sketch.quantized(left, 0.1, 0), sketch.quantized(right, 0.1, 0), axis=1)
    last = sketch.add("Conv", joined, sketch.weight(4, 16, 1, 1), sketch.constant(np.zeros(4, np.float32)))
    return sketch.model(sketch.quantized(last, 0.5))


def products() -> onnx.ModelProto:
    sketch = Sketch((1, 10, 16))
    x = sketch.quantized("x")
    turned = sketch.add("Transpose", sketch.weight(12, 16), perm=[1, 0])
    bias = sketch.constant(RNG.normal(size=12).astype(np.float32))
    query = sketch.add("Add", sketch.add("MatMul", x, turned), bias)
    key = sketch.add("MatMul", x, sketch.add("Transpose", sketch.weight(12, 16), perm=[1, 0]))
    query, key = sketch.quantized(query, 0.1, 0, np.int8), sketch.quantized(key, 0.1, 0, np.int8)
    return sketch.model(sketch.add("MatMul", query, sketch.add("Transpose", key, perm=[0, 2, 1])))


def gemms() -> onnx.ModelProto:
    sketch = Sketch((1, 16))
    x = sketch.add("Gemm", sketch.quantized("x"), sketch.weight(12, 16), transB=1)
    bias = sketch.constant(np.linspace(-1, 1, 8, dtype=np.float32))
    return sketch.model(
        sketch.add("Relu", sketch.add("Gemm", sketch.quantized(x, 0.2), sketch.weight(8, 12), bias, transB=1))
    )


def doubled(step: float = 0.25) -> onnx.ModelProto:
    """Integers of a convolution, moved about, to the right of a constant matrix of whole multiples of `step`."""
    sketch = Sketch((1, 8, 4, 6))
    taps = sketch.add("Conv", sketch.quantized("x"), sketch.weight(12, 8, 1, 1))
    taps = sketch.add("Transpose", sketch.quantized(taps, 0.2, 0, np.int8), perm=[0, 2, 3, 1])
    matrix = step * RNG.choice([0.0, 1.0, 3.0, 4.0], size=(10, 6)).astype(np.float32)
    matrix.flat[:2] = step, 0.0
    return sketch.model(sketch.add("Relu", sketch.add("MatMul", sketch.constant(matrix), taps)))


GRAPHS = {
    "convolutions": (convolutions, (1, 8, 6, 6)),
    "products": (products, (1, 10, 16)),
    "gemms": (gemms, (1, 16)),
    "doubled": (doubled, (1, 8, 4, 6)),
}


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("form", ["onnxruntime", "openvino"])
def test_form_computes_the_same_function(kind: str, form: str) -> None:
    make, shape = GRAPHS[kind]
    model = make()
    x = RNG.normal(size=shape).astype(np.float32)
    expected = run(model, x, optimize=False)
    lowered = lower(copied(model), form)
    scale = np.abs(expected).max()
    assert np.abs(run(lowered, x) - expected).max() <= 0.01 * scale
    core = ov.shared_core(ov.load())
    read = core.read_model(BytesIO(lowered.SerializeToString()))
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.abs(compiled({"x": x})[0] - expected).max() <= 0.02 * scale


def test_onnx_runtime_fuses_every_layer(tmp_path: Path) -> None:
    found = fused(lower(convolutions(), "onnxruntime"), tmp_path)
    assert found["QLinearConv"] == 3 and not found["Conv"] and not found["Relu"]
    found = fused(lower(products(), "onnxruntime"), tmp_path)
    assert found["QGemm"] == 2 and found["MatMulIntegerToFloat"] == 1
    assert not found["Gemm"] and not found["MatMul"] and not found["MatMulNBits"]
    found = fused(lower(gemms(), "onnxruntime"), tmp_path)
    assert found["QGemm"] == 2 and not found["Gemm"] and not found["FusedGemm"]


def test_weights_are_folded_to_int8() -> None:
    for make, _ in GRAPHS.values():
        before, after = make(), lower(make(), "onnxruntime")
        assert integer_share(before) == 0 and integer_share(after) == 1
        assert after.ByteSize() < before.ByteSize() or make is gemms


def test_only_standard_operators() -> None:
    for form in ("onnxruntime", "openvino"):
        for make, _ in GRAPHS.values():
            model = lower(make(), form)
            assert {node.domain for node in model.graph.node} == {""}
            assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET}


def test_only_gathered_rows_of_a_table_are_dequantized() -> None:
    sketch = Sketch((1, 5), TensorProto.INT64)
    model = sketch.model(sketch.add("Gather", sketch.weight(100, 8), "x", axis=0))
    tokens = np.array([[0, 99, 3, 3, 7]])
    expected = run(model, tokens, optimize=False)
    lowered = lower(model, "onnxruntime")
    assert np.abs(run(lowered, tokens) - expected).max() < 1e-6
    assert not [node for node in lowered.graph.node if node.op_type == "DequantizeLinear"]


def test_casts_of_zero_points_are_folded() -> None:
    """PyTorch's exporter leaves the cast of a large constant to the runtime."""
    sketch = Sketch((1, 5), TensorProto.INT64)
    name = sketch.add("Gather", sketch.weight(100, 8), "x", axis=0)
    quantize = next(node for node in sketch.nodes if node.op_type == "QuantizeLinear")
    whole = sketch.constant(np.zeros(100, np.int32))
    cast = helper.make_node("Cast", [whole], ["zero"], name="cast", to=TensorProto.INT8)
    for node in sketch.nodes[:2]:
        node.input[2] = "zero"
    assert quantize.input[2] == "zero"
    sketch.nodes.insert(0, cast)
    lowered = lower(sketch.model(name), "openvino")
    assert "Cast" in {node.op_type for node in lowered.graph.node}  # of the rows
    assert not [node for node in lowered.graph.node if node.name == "cast"]
    assert integer_share(lowered) > 0.8  # the rows, and a scale for each


def test_biases_are_int32_in_units_of_their_layer() -> None:
    model = lower(convolutions(), "onnxruntime")
    assert sum(tensor.data_type == TensorProto.INT32 and tensor.dims[0] > 1 for tensor in model.graph.initializer) >= 2
    openvino_model = lower(convolutions(), "openvino")
    assert not [tensor for tensor in openvino_model.graph.initializer if tensor.data_type == TensorProto.INT32]


@pytest.mark.parametrize("form", ["onnxruntime", "openvino"])
def test_exact_operand_becomes_integers_without_loss(form: str) -> None:
    model = doubled()
    matrix = next(array for array in map(numpy_helper.to_array, model.graph.initializer) if array.shape == (10, 6))
    stored = [numpy_helper.to_array(tensor) for tensor in lower(copied(model), form).graph.initializer]
    levels = next(array for array in stored if array.shape == (10, 6))
    assert levels.dtype == np.uint8 and (levels * np.float32(0.25) == matrix).all()


@pytest.mark.parametrize("spoil", [0.1, -0.25, 64.0])
def test_operand_that_integers_cannot_hold_stays_float(spoil: float) -> None:
    """Between two steps, below zero, or more than 255 steps of the smallest."""
    model = doubled()
    tensor = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [10, 6])
    matrix = numpy_helper.to_array(tensor).copy()
    matrix[9, 5] = spoil
    tensor.CopyFrom(numpy_helper.from_array(matrix, tensor.name))
    stored = [numpy_helper.to_array(tensor) for tensor in lower(model, "openvino").graph.initializer]
    assert next(array for array in stored if array.shape == (10, 6)).dtype == np.float32
