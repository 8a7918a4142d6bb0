"""Multiply-accumulates of an ONNX graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

import onnx

from cris_edge.errors import ExportError

Shape = tuple[int, ...]

# Input index of a convolution's kernel, or of a matrix product's left operand.
CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
TRANSPOSED = {"ConvTranspose": 1}
PRODUCTS = {"MatMul": 0, "MatMulInteger": 0, "QLinearMatMul": 0, "Gemm": 0}


def multiply_accumulates(model: onnx.ModelProto) -> int:
    """Return the multiply-accumulates of one run: convolutions and matrix products."""
    return sum(by_operator(model).values())


def by_operator(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiply-accumulates by ONNX operator, largest first.

    Missing shapes are inferred, so the graph must be static. Quantize and dequantize nodes count as nothing.

    Raises:
        ExportError: A shape is unknown.
    """
    shapes = _shapes(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type in CONVOLUTIONS:
            kernel = _shape(shapes, node, node.input[CONVOLUTIONS[node.op_type]])
            counts[node.op_type] += prod(_shape(shapes, node, node.output[0])) * prod(kernel[1:])
        elif node.op_type in TRANSPOSED:
            kernel = _shape(shapes, node, node.input[TRANSPOSED[node.op_type]])
            counts[node.op_type] += prod(_shape(shapes, node, node.input[0])) * prod(kernel[1:])
        elif node.op_type in PRODUCTS:
            left = _shape(shapes, node, node.input[PRODUCTS[node.op_type]])
            transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            depth = left[-2] if transposed else left[-1]
            counts[node.op_type] += prod(_shape(shapes, node, node.output[0])) * depth
        elif node.op_type == "Einsum":
            raise ExportError(f"The node {node.name} is an Einsum, whose cost cannot be counted; use a MatMul.")
    return dict(counts.most_common())


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if all(dimension.HasField("dim_value") for dimension in dimensions):
            shapes[value.name] = tuple(dimension.dim_value for dimension in dimensions)
    return shapes


def _shape(shapes: Mapping[str, Shape], node: onnx.NodeProto, tensor: str) -> Shape:
    try:
        return shapes[tensor]
    except KeyError:
        raise ExportError(
            f"The shape of {tensor} at the node {node.name} ({node.op_type}) is dynamic; export with static shapes."
        ) from None
