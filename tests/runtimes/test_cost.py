"""Multiply-accumulates counted from ONNX graphs, against counts by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cris_edge.errors import ExportError
from runtimes.cost import by_operator, multiply_accumulates


def graph(nodes, inputs, outputs, weights=()) -> onnx.ModelProto:
    """An ONNX model of `nodes`; inputs and outputs map names to shapes, weights to arrays."""
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in group.items()]
        for group in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    return helper.make_model(
        helper.make_graph(nodes, "test", *values, tensors), opset_imports=[helper.make_opsetid("", 18)]
    )


def test_convolution_counts_each_weight_once_per_pixel():
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], group=2)
    weight = np.zeros((6, 2, 3, 3), np.float32)
    model = graph([node], {"x": (1, 4, 8, 10)}, {"y": (1, 6, 4, 5)}, {"w": weight})
    assert multiply_accumulates(model) == (6 * 4 * 5) * (2 * 3 * 3)


def test_transposed_convolution_counts_each_weight_once_per_input_pixel():
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    model = graph([node], {"x": (1, 4, 3, 3)}, {"y": (1, 5, 6, 6)}, {"w": np.zeros((4, 5, 2, 2), np.float32)})
    assert multiply_accumulates(model) == (4 * 3 * 3) * (5 * 2 * 2)


def test_batched_product_and_gemm():
    product = helper.make_node("MatMul", ["a", "b"], ["ab"])
    flat = helper.make_node("Reshape", ["ab", "shape"], ["flat"])
    gemm = helper.make_node("Gemm", ["flat", "w"], ["y"], transA=1)
    weights = {"shape": np.array([6, 5]), "w": np.zeros((6, 7), np.float32)}
    model = graph([product, flat, gemm], {"a": (2, 3, 4), "b": (2, 4, 5)}, {"y": (5, 7)}, weights)
    assert by_operator(model) == {"Gemm": 5 * 7 * 6, "MatMul": 2 * 3 * 5 * 4}


def test_quantized_weights_count_like_float_ones():
    dequantize = helper.make_node("DequantizeLinear", ["w", "scale"], ["w_float"])
    node = helper.make_node("Conv", ["x", "w_float"], ["y"])
    weights = {"w": np.zeros((3, 2, 1, 1), np.int8), "scale": np.float32(0.1)}
    model = graph([dequantize, node], {"x": (1, 2, 4, 4)}, {"y": (1, 3, 4, 4)}, weights)
    assert by_operator(model) == {"Conv": 3 * 16 * 2}


def test_cheap_operators_cost_nothing():
    model = graph([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 2)}, {"y": (1, 2)})
    assert multiply_accumulates(model) == 0


def test_dynamic_shape_is_named():
    node = helper.make_node("MatMul", ["a", "b"], ["y"], name="scores")
    model = graph([node], {"a": ("batch", 4), "b": (4, 5)}, {"y": ("batch", 5)})
    with pytest.raises(ExportError, match="scores"):
        multiply_accumulates(model)


def test_operator_that_cannot_be_counted_is_named():
    node = helper.make_node("Einsum", ["a", "b"], ["y"], name="product", equation="ij,jk->ik")
    model = graph([node], {"a": (3, 4), "b": (4, 5)}, {"y": (3, 5)})
    with pytest.raises(ExportError, match="product"):
        multiply_accumulates(model)
