"""A graph with quantizers around float weights is brought into the form that a runtime computes in integers.

Both forms hold int8 weights and ONNX's own QuantizeLinear and DequantizeLinear, nothing else. What differs:

- ONNX Runtime fuses a convolution only with a quantizer on either side and its bias in int32; multiplies matrices fast
  on x86 only where the left one is unsigned and the right one signed; and takes a MatMul with int8 weights for
  weight-only quantization, computed in float, but a Gemm for what it is.
- OpenVINO needs none of this, and adds the results of convolutions in float before it quantizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from cris_edge.errors import ExportError

Q, DQ = "QuantizeLinear", "DequantizeLinear"
LARGEST_LEVEL = 255  # of an unsigned byte
MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")  # operators that change no value

Array = np.ndarray[Any, np.dtype[Any]]


def lower(model: onnx.ModelProto, form: str, biases: dict[str, Array] | None = None) -> onnx.ModelProto:
    """Bring a graph with quantizers around float weights into the form of a runtime, in place.

    Args:
        model: the graph.
        form: ``onnxruntime`` or ``openvino``.
        biases: receives each bias, by its name in the graph, as the int32 that stands in its place says it.

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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"The int8 form of {model.graph.name} for {form} is not valid ONNX: {reason}.") from error
    return model


class _Graph:
    """An ONNX graph with its constants as arrays, and who makes and takes each tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.proto = model.graph
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self._names = 0

    def makers(self) -> dict[str, NodeProto]:
        return {output: node for node in self.nodes for output in node.output}

    def takers(self) -> dict[str, list[NodeProto]]:
        found: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            value.name: tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
            for value in (*self.proto.input, *self.proto.value_info, *self.proto.output)
        }

    def constant(self, hint: str, array: Array) -> str:
        """A new constant; an equal one that there is already serves as well."""
        for name, other in self.constants.items():
            alike = other.size <= 4096 and other.dtype == array.dtype and other.shape == array.shape
            if alike and np.array_equal(other, array):
                return name
        name = self.name(hint)
        self.constants[name] = array
        return name

    def name(self, hint: str) -> str:
        self._names += 1
        return f"{hint}_int8_{self._names}"

    def replace(self, node: NodeProto, *others: NodeProto) -> None:
        at = next(index for index, other in enumerate(self.nodes) if other is node)
        self.nodes[at : at + 1] = others

    def finish(self) -> None:
        """Write everything back, without what nobody takes."""
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
        del self.proto.value_info[:]  # types of what was re-quantized are inferred again
        self.proto.value_info.extend(floats)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def _fold_casts(graph: _Graph) -> None:
    """Cast constants once and for all, also those that the exporter holds for too large."""
    for node in list(graph.nodes):
        if node.op_type == "Cast" and node.input[0] in graph.constants:
            kind = helper.tensor_dtype_to_np_dtype(_attribute(node, "to", TensorProto.FLOAT))
            graph.constants[node.output[0]] = graph.constants[node.input[0]].astype(kind)
            graph.nodes.remove(node)


def _fold_weights(graph: _Graph) -> None:
    """Quantize constants once and for all: QuantizeLinear of a constant is an int8 constant."""
    for node in list(graph.nodes):
        if node.op_type != Q or node.input[0] not in graph.constants:
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
        for taker in graph.takers().get(node.output[0], []):
            for index, name in enumerate(taker.input):
                if name == node.output[0]:
                    taker.input[index] = folded
        graph.nodes.remove(node)


def _move_constants(graph: _Graph) -> None:
    """Transpose int8 constants themselves instead of the floats that are made of them."""
    _untranspose_gemms(graph)
    for node in list(graph.nodes):
        maker = graph.makers().get(node.input[0]) if node.input else None
        if node.op_type != "Transpose" or maker is None or maker.op_type != DQ:
            continue
        if maker.input[0] not in graph.constants:
            continue
        order = list(_attribute(node, "perm", []))
        values = graph.constants[maker.input[0]]
        turned = graph.name(maker.input[0])
        graph.constants[turned] = np.transpose(values, order)
        axis = order.index(int(_attribute(maker, "axis", 1))) if graph.constants[maker.input[1]].ndim else 1
        graph.replace(
            node,
            helper.make_node(
                DQ, [turned, *list(maker.input)[1:]], list(node.output), name=graph.name("dequantize"), axis=axis
            ),
        )


def _untranspose_gemms(graph: _Graph) -> None:
    """Write a Gemm's transposed weights as a Transpose: ONNX Runtime takes per-channel weights from their last axis."""
    for node in list(graph.nodes):
        maker = graph.makers().get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "Gemm" and _attribute(node, "transB", 0) and maker is not None and maker.op_type == DQ:
            turned = graph.name("transposed")
            graph.replace(node, helper.make_node("Transpose", [node.input[1]], [turned], perm=[1, 0]), node)
            node.input[1] = turned
            kept = [entry for entry in node.attribute if entry.name != "transB"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _dequantize_rows(graph: _Graph) -> None:
    """Look rows up in the int8 table and dequantize those, instead of the whole table for every sentence."""
    for node in list(graph.nodes):
        maker = graph.makers().get(node.input[0]) if node.input else None
        if node.op_type != "Gather" or maker is None or maker.op_type != DQ or maker.input[0] not in graph.constants:
            continue
        table, scale, zero = (graph.constants[name] for name in maker.input)
        if _attribute(node, "axis", 0) != 0 or np.any(zero):
            continue
        rows, floats = graph.name("rows"), graph.name("rows_float")
        scales = np.broadcast_to(scale.reshape(-1, 1), (len(table), 1)).astype(np.float32)
        made = [
            helper.make_node("Gather", [maker.input[0], node.input[1]], [rows], name=graph.name("gather"), axis=0),
            helper.make_node("Cast", [rows], [floats], name=graph.name("cast"), to=TensorProto.FLOAT),
        ]
        factor = graph.constant("row_scale", scale.reshape(1)) if scale.size == 1 else graph.name("row_scales")
        if scale.size > 1:
            table_of_scales = graph.constant("scale_table", np.ascontiguousarray(scales))
            made.append(
                helper.make_node(
                    "Gather", [table_of_scales, node.input[1]], [factor], name=graph.name("gather"), axis=0
                )
            )
        made.append(helper.make_node("Mul", [floats, factor], list(node.output), name=graph.name("scale_rows")))
        graph.replace(node, *made)


def _quantize_exact_operands(graph: _Graph) -> None:
    """A constant left operand whose values are whole multiples of one step, as integers: no value changes.

    It meets integers, such as the taps that the matrix of `training.model.upsampled.HalfResolution` doubles.
    """
    for node in list(graph.nodes):
        if node.op_type != "MatMul" or node.input[0] not in graph.constants:
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
        units = [graph.constant("scale", np.array(step, np.float32)), graph.constant("zero_point", np.uint8(0)[()])]
        pair = helper.make_node(DQ, [stored, *units], [dequantized], name=graph.name("dequantize"))
        graph.replace(node, pair, node)
        node.input[0] = dequantized


def _is_dequantized(graph: _Graph, tensor: str) -> bool:
    """Whether a tensor is made of integers, and moved about at most."""
    maker = graph.makers().get(tensor)
    while maker is not None and maker.op_type in MOVES:
        maker = graph.makers().get(maker.input[0])
    return maker is not None and maker.op_type == DQ


def _join_integers(graph: _Graph) -> None:
    """Concatenate the integers, where they are all in the same units, so that what follows takes integers."""
    for node in list(graph.nodes):
        makers = graph.makers()
        pairs = [makers.get(name) for name in node.input]
        if node.op_type != "Concat" or not all(pair is not None and pair.op_type == DQ for pair in pairs):
            continue
        units = {
            tuple(graph.constants[name].tobytes() for name in pair.input[1:]) for pair in pairs if pair is not None
        }
        if len(units) > 1:
            continue
        first = pairs[0]
        assert first is not None
        joined = graph.name("joined")
        axis = _attribute(node, "axis", 0)
        graph.replace(
            node,
            helper.make_node(
                "Concat", [pair.input[0] for pair in pairs if pair], [joined], name=graph.name("concat"), axis=axis
            ),
            helper.make_node(DQ, [joined, *first.input[1:]], list(node.output), name=graph.name("dequantize")),
        )


def _choose_signs(graph: _Graph) -> None:
    """Activations unsigned, but signed where they are the right operand of a matrix product; the values stay."""
    for node in list(graph.nodes):
        if node.op_type != Q:
            continue
        zero = graph.constants[node.input[2]]
        pairs = [taker for taker in graph.takers().get(node.output[0], []) if taker.op_type == DQ]
        if zero.ndim or not pairs:
            continue
        for pair in pairs:
            right = [_is_right_operand(graph, taker, name) for taker, name in _ends(graph, pair.output[0])]
            # A convolution puts out what it takes in, unsigned.
            signed = bool(right) and all(right) and not _is_convolved(graph, node.input[0])
            if signed == (zero.dtype == np.int8):
                continue
            shifted = zero.astype(np.int32) + (-128 if signed else 128)
            name = graph.constant("zero_point", shifted.astype(np.int8 if signed else np.uint8))
            quantized = graph.name(node.output[0])
            graph.replace(
                pair,
                helper.make_node(Q, [node.input[0], node.input[1], name], [quantized], name=graph.name("quantize")),
                helper.make_node(
                    DQ, [quantized, pair.input[1], name], list(pair.output), name=graph.name("dequantize")
                ),
            )


def _ends(graph: _Graph, tensor: str) -> Iterator[tuple[NodeProto, str]]:
    """Who computes with a tensor, directly or after it was moved about; with the name by which it takes it."""
    for taker in graph.takers().get(tensor, []):
        if taker.op_type in (*MOVES, "Slice", "Gather"):
            yield from _ends(graph, taker.output[0])
        else:
            yield taker, tensor


def _is_right_operand(graph: _Graph, node: NodeProto, name: str) -> bool:
    return node.op_type == "MatMul" and node.input[1] == name and node.input[0] != name


def _sink_dequantizers(graph: _Graph) -> None:
    """Move integers about instead of the floats that are made of them, so that products find them."""
    for node in list(graph.nodes):  # in order: a chain is walked from its start
        maker = graph.makers().get(node.input[0]) if node.input else None
        if node.op_type not in MOVES or maker is None or maker.op_type != DQ or maker.input[0] in graph.constants:
            continue
        moved = graph.name("moved")
        dequantize = helper.make_node(DQ, [moved, *maker.input[1:]], list(node.output), name=graph.name("dequantize"))
        node.input[0], node.output[0] = maker.input[0], moved
        graph.replace(node, node, dequantize)


def _is_convolved(graph: _Graph, tensor: str) -> bool:
    maker = graph.makers().get(tensor)
    if maker is not None and maker.op_type == "Relu":
        maker = graph.makers().get(maker.input[0])
    return maker is not None and maker.op_type == "Conv"


def _products_as_gemm(graph: _Graph) -> None:
    """A product with int8 weights as a Gemm between reshapes, its bias in it.

    A MatMul with weights would be taken for weight-only quantization and computed in float.
    """
    shapes = graph.shapes()
    for node in list(graph.nodes):
        makers = graph.makers()
        if node.op_type != "MatMul":
            continue
        data, weight = makers.get(node.input[0]), makers.get(node.input[1])
        if data is None or weight is None or data.op_type != DQ or weight.op_type != DQ:
            continue
        if weight.input[0] not in graph.constants or graph.constants[weight.input[0]].ndim != 2:
            continue
        depth, width = graph.constants[weight.input[0]].shape
        takers = graph.takers().get(node.output[0], [])
        last, terms = node, [node.input[0], node.input[1]]
        if len(takers) == 1 and takers[0].op_type == "Add" and node.output[0] not in graph.outputs:
            bias = next((name for name in takers[0].input if name in graph.constants), None)
            if bias is not None and graph.constants[bias].shape == (width,):
                last, terms = takers[0], [*terms, bias]
        shape = shapes[last.output[0]]
        flat, result = graph.name("flat"), graph.name("product")
        quantized = graph.name("flat_quantized")
        rows = graph.constant("shape", np.array([-1, depth], np.int64))
        back = graph.constant("shape", np.array(shape, np.int64))
        terms[0] = flat
        graph.replace(
            last,
            helper.make_node("Reshape", [data.input[0], rows], [quantized], name=graph.name("reshape")),
            helper.make_node(DQ, [quantized, *data.input[1:]], [flat], name=graph.name("dequantize")),
            helper.make_node("Gemm", terms, [result], name=graph.name("gemm")),
            helper.make_node("Reshape", [result, back], list(last.output), name=graph.name("reshape")),
        )
        if last is not node:
            graph.nodes.remove(node)


def _quantize_biases(graph: _Graph, told: dict[str, Array]) -> None:
    """A layer's bias in int32, in units of the product of its input's and its weights' scales; a Gemm must have one."""
    for node in list(graph.nodes):
        makers = graph.makers()
        if node.op_type not in ("Conv", "Gemm"):
            continue
        data, weight = makers.get(node.input[0]), makers.get(node.input[1])
        if data is None or weight is None or data.op_type != DQ or weight.op_type != DQ:
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
            told[node.input[2]] = whole * scale
        names = [graph.name("bias"), graph.name("bias_scale"), graph.constant("bias_zero", np.zeros_like(whole))]
        graph.constants[names[0]], graph.constants[names[1]] = whole, scale
        dequantized = graph.name("bias_float")
        graph.replace(node, helper.make_node(DQ, names, [dequantized], name=graph.name("dequantize"), axis=0), node)
        del node.input[2:]
        node.input.append(dequantized)
        _keep_apart(graph, node)


def _keep_apart(graph: _Graph, node: NodeProto) -> None:
    """Write the ReLU after a Gemm as a maximum with 0: ONNX Runtime would fuse the two, in float, before all else."""
    for taker in graph.takers().get(node.output[0], []):
        if node.op_type == "Gemm" and taker.op_type == "Relu":
            taker.op_type = "Max"
            taker.input.append(graph.constant("zero", np.zeros((), np.float32)))


def integer_share(model: onnx.ModelProto) -> float:
    """Share of the weights' bytes that is in integers: near 1 where quantization reached the file."""
    sizes = {True: 0, False: 0}
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            sizes[tensor.data_type in (TensorProto.INT8, TensorProto.UINT8)] += int(np.prod(tensor.dims))
    return sizes[True] / max(1, sum(sizes.values()))
