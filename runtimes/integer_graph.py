"""Rewrite a graph with fake-quantized float weights into the form that a runtime computes in integers.

Both forms have int8 weights and use ONNX's own QuantizeLinear and DequantizeLinear only. They differ in this:

- ONNX Runtime fuses a convolution only if its input and output are quantized and its bias is int32. On x86 it
  multiplies matrices fast only if the left one is unsigned and the right one signed. It treats a MatMul with int8
  weights as weight-only quantization, computed in float, but not a Gemm.
- OpenVINO needs none of this, and adds the results of convolutions in float before it quantizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from cris_edge.errors import ExportError, first_line

Q, DQ = "QuantizeLinear", "DequantizeLinear"
LARGEST_LEVEL = 255  # of an unsigned byte
MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")  # operators that keep values

Array = np.ndarray[Any, np.dtype[Any]]


def lower(model: onnx.ModelProto, form: str, biases: dict[str, Array] | None = None) -> onnx.ModelProto:
    """Rewrite a graph in place, and return it.

    Args:
        model: A graph with fake-quantized float weights.
        form: ``onnxruntime`` or ``openvino``.
        biases: Receives each bias by name, rounded as its int32 form is.

    Raises:
        ExportError: The result is not a valid graph.
    """
    graph = _Graph(model)
    _fold_casts(graph)
    _fold_weights(graph)
    _move_constants(graph)
    _dequantize_rows(graph)
    _quantize_exact_operands(graph)
    if form == "onnxruntime":
        _join_integers(graph)
        _choose_signs(graph)
        _sink_dequantizers(graph)
        _products_as_gemm(graph)
        _quantize_biases(graph, {} if biases is None else biases)
    graph.finish()
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        name, reason = model.graph.name, first_line(error)
        raise ExportError(f"The int8 form of {name} for {form} is not valid ONNX: {reason}.") from error
    return model


class _Graph:
    """An ONNX graph with its constants as arrays, and the producer and consumers of each tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.proto = model.graph
        self.nodes = list(model.graph.node)
        self.constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        self.outputs = {value.name for value in model.graph.output}
        self._names = 0

    def producers(self) -> dict[str, NodeProto]:
        return {output: node for node in self.nodes for output in node.output}

    def consumers(self) -> dict[str, list[NodeProto]]:
        found: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    def select(self, *operators: str) -> list[NodeProto]:
        """Return the nodes of these operators, in execution order."""
        return [node for node in self.nodes if node.op_type in operators]

    def dequantizer(self, node: NodeProto, index: int = 0) -> NodeProto | None:
        """Return the DequantizeLinear behind an input of a node, if there is one."""
        producer = self.producers().get(node.input[index]) if len(node.input) > index else None
        return producer if producer is not None and producer.op_type == DQ else None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            value.name: tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
            for value in (*self.proto.input, *self.proto.value_info, *self.proto.output)
        }

    def constant(self, hint: str, array: Array) -> str:
        """Return the name of a new constant, or of an equal one."""
        for existing, other in self.constants.items():
            alike = other.size <= 4096 and other.dtype == array.dtype and other.shape == array.shape
            if alike and np.array_equal(other, array):
                return existing
        name = self.name(hint)
        self.constants[name] = array
        return name

    def name(self, hint: str) -> str:
        self._names += 1
        return f"{hint}_int8_{self._names}"

    def make(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> NodeProto:
        """Return a new node with a name of its own."""
        return helper.make_node(operator, inputs, outputs, self.name(operator.lower()), **attributes)

    def replace(self, node: NodeProto, *others: NodeProto) -> None:
        at = next(index for index, other in enumerate(self.nodes) if other is node)
        self.nodes[at : at + 1] = others

    def finish(self) -> None:
        """Write everything back, without unused nodes and constants."""
        while True:
            needed = {name for node in self.nodes for name in node.input} | self.outputs
            kept = [node for node in self.nodes if any(output in needed for output in node.output)]
            if len(kept) == len(self.nodes):
                break
            self.nodes = kept
        del self.proto.node[:]
        self.proto.node.extend(self.nodes)
        del self.proto.initializer[:]
        self.proto.initializer.extend(
            numpy_helper.from_array(np.asarray(array, order="C"), name)
            for name, array in self.constants.items()
            if name in needed
        )
        made = {output for node in self.nodes for output in node.output}
        values = [value for value in self.proto.value_info if value.name in made]
        floats = [value for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT]
        del self.proto.value_info[:]  # types of requantized tensors are inferred again
        self.proto.value_info.extend(floats)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def _fold_casts(graph: _Graph) -> None:
    """Fold casts of constants, including those that the exporter considers too large."""
    for node in graph.select("Cast"):
        if node.input[0] in graph.constants:
            kind = helper.tensor_dtype_to_np_dtype(_attribute(node, "to", TensorProto.FLOAT))
            graph.constants[node.output[0]] = graph.constants[node.input[0]].astype(kind)
            graph.nodes.remove(node)


def _fold_weights(graph: _Graph) -> None:
    """Fold QuantizeLinear of a constant into an int8 constant."""
    for node in graph.select(Q):
        if node.input[0] not in graph.constants:
            continue
        values, scale, zero = (graph.constants[name] for name in node.input)
        axis = int(_attribute(node, "axis", 1))
        shape = [1] * values.ndim
        if scale.ndim:
            shape[axis] = -1
        limits = np.iinfo(zero.dtype)
        levels = np.rint(values / scale.reshape(shape)) + zero.reshape(shape).astype(np.float32)
        folded = graph.name(node.input[0])
        graph.constants[folded] = np.clip(levels, limits.min, limits.max).astype(zero.dtype)
        for consumer in graph.consumers().get(node.output[0], []):
            for index, name in enumerate(consumer.input):
                if name == node.output[0]:
                    consumer.input[index] = folded
        graph.nodes.remove(node)


def _move_constants(graph: _Graph) -> None:
    """Transpose int8 constants instead of the dequantized floats."""
    _untranspose_gemms(graph)
    for node in graph.select("Transpose"):
        producer = graph.dequantizer(node)
        if producer is None or producer.input[0] not in graph.constants:
            continue
        order = list(_attribute(node, "perm", []))
        values = graph.constants[producer.input[0]]
        transposed = graph.name(producer.input[0])
        graph.constants[transposed] = np.transpose(values, order)
        axis = order.index(int(_attribute(producer, "axis", 1))) if graph.constants[producer.input[1]].ndim else 1
        graph.replace(
            node,
            graph.make(
                DQ,
                [transposed, *producer.input[1:]],
                list(node.output),
                axis=axis,
            ),
        )


def _untranspose_gemms(graph: _Graph) -> None:
    """Replace transB by a Transpose: ONNX Runtime expects per-channel weights along their last axis."""
    for node in graph.select("Gemm"):
        if _attribute(node, "transB", 0) and graph.dequantizer(node, 1):
            transposed = graph.name("transposed")
            graph.replace(node, graph.make("Transpose", [node.input[1]], [transposed], perm=[1, 0]), node)
            node.input[1] = transposed
            kept = [entry for entry in node.attribute if entry.name != "transB"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _dequantize_rows(graph: _Graph) -> None:
    """Gather rows of an int8 table and dequantize those, instead of the whole table for every prompt."""
    for node in graph.select("Gather"):
        producer = graph.dequantizer(node)
        if producer is None or producer.input[0] not in graph.constants:
            continue
        table, scale, zero = (graph.constants[name] for name in producer.input)
        if _attribute(node, "axis", 0) != 0 or np.any(zero):
            continue
        rows, floats = graph.name("rows"), graph.name("rows_float")
        scales = np.broadcast_to(scale.reshape(-1, 1), (len(table), 1)).astype(np.float32)
        made = [
            graph.make("Gather", [producer.input[0], node.input[1]], [rows], axis=0),
            graph.make("Cast", [rows], [floats], to=TensorProto.FLOAT),
        ]
        factor = graph.constant("row_scale", scale.reshape(1)) if scale.size == 1 else graph.name("row_scales")
        if scale.size > 1:
            table_of_scales = graph.constant("scale_table", np.ascontiguousarray(scales))
            made.append(graph.make("Gather", [table_of_scales, node.input[1]], [factor], axis=0))
        made.append(graph.make("Mul", [floats, factor], list(node.output)))
        graph.replace(node, *made)


def _quantize_exact_operands(graph: _Graph) -> None:
    """Store a constant left operand whose values are multiples of one step as integers, which is exact.

    An example is the upsampling matrix of `HalfResolution` in training.model, which multiplies integers.
    """
    for node in graph.select("MatMul"):
        if node.input[0] not in graph.constants:
            continue
        values = graph.constants[node.input[0]]
        step = np.abs(values[values != 0]).min(initial=np.inf)
        levels = values / step
        if not _is_dequantized(graph, node.input[1]) or np.any(levels != np.rint(levels)) or levels.min() < 0:
            continue
        if levels.max() > LARGEST_LEVEL:
            continue
        stored, dequantized = graph.name(node.input[0]), graph.name("dequantized")
        graph.constants[stored] = levels.astype(np.uint8)
        units = [
            graph.constant("scale", np.array(step, np.float32)),
            graph.constant("zero_point", np.array(0, np.uint8)),
        ]
        pair = graph.make(DQ, [stored, *units], [dequantized])
        graph.replace(node, pair, node)
        node.input[0] = dequantized


def _is_dequantized(graph: _Graph, tensor: str) -> bool:
    """Whether a tensor is dequantized, and at most moved afterwards."""
    producer = graph.producers().get(tensor)
    while producer is not None and producer.op_type in MOVES:
        producer = graph.producers().get(producer.input[0])
    return producer is not None and producer.op_type == DQ


def _join_integers(graph: _Graph) -> None:
    """Concatenate integers that have the same scale and zero point before they are dequantized."""
    for node in graph.select("Concat"):
        pairs = [pair for index in range(len(node.input)) if (pair := graph.dequantizer(node, index))]
        if len(pairs) < len(node.input):
            continue
        units = {tuple(graph.constants[name].tobytes() for name in pair.input[1:]) for pair in pairs}
        if len(units) > 1:
            continue
        joined = graph.name("joined")
        axis = _attribute(node, "axis", 0)
        graph.replace(
            node,
            graph.make("Concat", [pair.input[0] for pair in pairs], [joined], axis=axis),
            graph.make(DQ, [joined, *pairs[0].input[1:]], list(node.output)),
        )


def _choose_signs(graph: _Graph) -> None:
    """Make activations unsigned, but signed if they are the right operand of a matrix product; values stay."""
    for node in graph.select(Q):
        zero = graph.constants[node.input[2]]
        pairs = [consumer for consumer in graph.consumers().get(node.output[0], []) if consumer.op_type == DQ]
        if zero.ndim or not pairs:
            continue
        for pair in pairs:
            right = [_is_right_operand(graph, consumer, name) for consumer, name in _ends(graph, pair.output[0])]
            # The output of a convolution has the type of its input, unsigned.
            signed = bool(right) and all(right) and not _is_convolved(graph, node.input[0])
            if signed == (zero.dtype == np.int8):
                continue
            shifted = zero.astype(np.int32) + (-128 if signed else 128)
            name = graph.constant("zero_point", shifted.astype(np.int8 if signed else np.uint8))
            quantized = graph.name(node.output[0])
            graph.replace(
                pair,
                graph.make(Q, [node.input[0], node.input[1], name], [quantized]),
                graph.make(DQ, [quantized, pair.input[1], name], list(pair.output)),
            )


def _ends(graph: _Graph, tensor: str) -> Iterator[tuple[NodeProto, str]]:
    """Yield the consumers of a tensor, directly or after moves, with the name of their input."""
    for consumer in graph.consumers().get(tensor, []):
        if consumer.op_type in (*MOVES, "Slice", "Gather"):
            yield from _ends(graph, consumer.output[0])
        else:
            yield consumer, tensor


def _is_right_operand(graph: _Graph, node: NodeProto, name: str) -> bool:
    return node.op_type == "MatMul" and node.input[1] == name and node.input[0] != name


def _sink_dequantizers(graph: _Graph) -> None:
    """Move integers instead of the dequantized floats, so that matrix products take integers."""
    for node in graph.select(*MOVES):  # in order, because moves come in chains
        producer = graph.dequantizer(node)
        if producer is None or producer.input[0] in graph.constants:
            continue
        moved = graph.name("moved")
        dequantize = graph.make(DQ, [moved, *producer.input[1:]], list(node.output))
        node.input[0], node.output[0] = producer.input[0], moved
        graph.replace(node, node, dequantize)


def _is_convolved(graph: _Graph, tensor: str) -> bool:
    producer = graph.producers().get(tensor)
    if producer is not None and producer.op_type == "Relu":
        producer = graph.producers().get(producer.input[0])
    return producer is not None and producer.op_type == "Conv"


def _products_as_gemm(graph: _Graph) -> None:
    """Write a product with int8 weights as a Gemm with bias between reshapes.

    ONNX Runtime would treat a MatMul as weight-only quantization and compute in float.
    """
    shapes = graph.shapes()
    for node in graph.select("MatMul"):
        data, weight = graph.dequantizer(node), graph.dequantizer(node, 1)
        if data is None or weight is None:
            continue
        if weight.input[0] not in graph.constants or graph.constants[weight.input[0]].ndim != 2:
            continue
        depth, width = graph.constants[weight.input[0]].shape
        consumers = graph.consumers().get(node.output[0], [])
        last, terms = node, [node.input[0], node.input[1]]
        if len(consumers) == 1 and consumers[0].op_type == "Add" and node.output[0] not in graph.outputs:
            bias = next((name for name in consumers[0].input if name in graph.constants), None)
            if bias is not None and graph.constants[bias].shape == (width,):
                last, terms = consumers[0], [*terms, bias]
        shape = shapes[last.output[0]]
        flat, result = graph.name("flat"), graph.name("product")
        quantized = graph.name("flat_quantized")
        rows = graph.constant("shape", np.array([-1, depth], np.int64))
        back = graph.constant("shape", np.array(shape, np.int64))
        terms[0] = flat
        graph.replace(
            last,
            graph.make("Reshape", [data.input[0], rows], [quantized]),
            graph.make(DQ, [quantized, *data.input[1:]], [flat]),
            graph.make("Gemm", terms, [result]),
            graph.make("Reshape", [result, back], list(last.output)),
        )
        if last is not node:
            graph.nodes.remove(node)


def _quantize_biases(graph: _Graph, rounded: dict[str, Array]) -> None:
    """Store biases as int32 with the product of the input's and the weights' scales; a Gemm must have one."""
    for node in graph.select("Conv", "Gemm"):
        data, weight = graph.dequantizer(node), graph.dequantizer(node, 1)
        if data is None or weight is None:
            continue
        levels = graph.constants[weight.input[0]]
        if len(node.input) > 2 and node.input[2] not in graph.constants:
            continue
        if len(node.input) > 2:
            bias = graph.constants[node.input[2]]
        elif node.op_type == "Gemm":
            bias = np.zeros(levels.shape[1], np.float32)
        else:
            continue
        unit = graph.constants[data.input[1]] * graph.constants[weight.input[1]].reshape(-1)
        scale = np.broadcast_to(unit, bias.shape).astype(np.float32)
        whole = np.clip(np.rint(bias.astype(np.float64) / scale), -(2**31), 2**31 - 1).astype(np.int32)
        if len(node.input) > 2:
            rounded[node.input[2]] = whole * scale
        names = [graph.name("bias"), graph.name("bias_scale"), graph.constant("bias_zero", np.zeros_like(whole))]
        graph.constants[names[0]], graph.constants[names[1]] = whole, scale
        dequantized = graph.name("bias_float")
        graph.replace(node, graph.make(DQ, names, [dequantized], axis=0), node)
        del node.input[2:]
        node.input.append(dequantized)
        _keep_apart(graph, node)


def _keep_apart(graph: _Graph, node: NodeProto) -> None:
    """Write the ReLU after a Gemm as a maximum with 0: ONNX Runtime would fuse the two first, in float."""
    for consumer in graph.consumers().get(node.output[0], []):
        if node.op_type == "Gemm" and consumer.op_type == "Relu":
            consumer.op_type = "Max"
            consumer.input.append(graph.constant("zero", np.zeros((), np.float32)))


def integer_share(model: onnx.ModelProto) -> float:
    """Return the share of weights stored as integers, near 1 in a quantized file."""
    sizes = {True: 0, False: 0}
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            sizes[tensor.data_type in (TensorProto.INT8, TensorProto.UINT8)] += int(np.prod(tensor.dims))
    return sizes[True] / max(1, sum(sizes.values()))
