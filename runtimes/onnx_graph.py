"""Trace a deploy module to one ONNX file with static shapes, named tensors and its weights inside."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cris_edge.bundle.manifest import GraphSpec, TensorSpec
from cris_edge.errors import ExportError, first_line
from runtimes.cost import multiply_accumulates

OPSET = 18  # the lowest that PyTorch's exporter writes by itself; read since ONNX Runtime 1.14 and OpenVINO 2023.1
IR_VERSION = 8  # the one that came with opset 18; older readers refuse a newer one
LARGEST = 2**31 - 1  # bytes: protobuf's limit, and so the limit of a file that holds its weights


def trace(name: str, module: Any, inputs: Mapping[str, Tensor], output_names: Sequence[str]) -> onnx.ModelProto:
    """Export a module, called with `inputs` in their order, as a float32 ONNX graph called `name`.

    Inputs and outputs have the given names, order and shapes; all sizes are static.

    Raises:
        ExportError: PyTorch cannot export the module, or the graph does not have the expected tensors.
    """
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=list(output_names),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        if program is None:  # only by the signature, which also serves the older exporter
            raise RuntimeError("torch.onnx.export returned nothing")
        model = program.model_proto
    except Exception as error:
        raise ExportError(f"PyTorch could not export {name} to ONNX: {first_line(error)}.") from error
    _pin(model, name)
    _check(model, name, list(inputs), list(output_names))
    return model


def store_as_float16(model: onnx.ModelProto) -> int:
    """Store weights as float16 initializers that are cast back to float32, in place; returns the bytes saved.

    This applies to tensors of two or more dimensions whose values float16 holds exactly, so that no result changes:
    round the module first (`round_to_float16`). Runtimes fold the casts at load time. Of an embedding table only the
    rows that are looked up are cast, because casting it all would dominate the load time of a small text encoder.
    """
    casts, saved, tables = [], 0, set()
    graph = model.graph
    looked_up = _looked_up(graph)
    for index, tensor in enumerate(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        if name in looked_up:
            tables.add(name)
        else:
            casts.append(_to_float32(f"{name}_float16", name))
        graph.initializer[index].CopyFrom(numpy_helper.from_array(half, f"{name}_float16"))
        saved += values.nbytes - half.nbytes
    nodes = casts  # nodes are listed in execution order
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Gather" and node.input[0] in tables:
            rows = node.output[0]
            node.input[0], node.output[0] = f"{node.input[0]}_float16", f"{rows}_float16"
            nodes.append(_to_float32(node.output[0], rows))
    del graph.node[:]
    graph.node.extend(nodes)
    return saved


def _to_float32(source: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [name], name=f"{name}_cast", to=TensorProto.FLOAT)


def _looked_up(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors that only Gather reads, as its table."""
    tables: set[str] = set()
    read = {value.name for value in graph.output}
    for node in graph.node:
        for position, name in enumerate(node.input):
            (tables if node.op_type == "Gather" and position == 0 else read).add(name)
    return tables - read


@torch.no_grad()
def round_to_float16(module: nn.Module) -> None:
    """Round every weight of `module` to float16 precision, in place, except tensors beyond float16's range."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype == torch.float32 and tensor.abs().max() <= torch.finfo(torch.float16).max:
            tensor.copy_(tensor.half())


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path` and create its folder; raises `ExportError` if it is too large for one file."""
    size = model.ByteSize()
    if size > LARGEST:
        raise ExportError(
            f"The {model.graph.name} graph is {size / 1e9:.1f} GB, and one ONNX file can hold 2.1 GB; export with "
            "--precision float16."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def spec(graph: onnx.ModelProto) -> GraphSpec:
    """Return the inputs, outputs and multiply-accumulates of a graph, as a manifest states them."""
    inputs, outputs = (
        tuple(
            TensorSpec(
                value.name,
                tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim),
                helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            )
            for value in values
        )
        for values in (graph.graph.input, graph.graph.output)
    )
    return GraphSpec(inputs, outputs, multiply_accumulates(graph))


def _pin(model: onnx.ModelProto, name: str) -> None:
    """Fix the versions, and drop the exporter's notes about this machine (stack traces with paths)."""
    model.ir_version = IR_VERSION
    model.graph.name = name
    model.doc_string = model.graph.doc_string = ""
    for holder in (model, model.graph, *model.graph.node, *_values(model.graph), *model.graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.output
    yield from graph.value_info


def _check(model: onnx.ModelProto, name: str, inputs: list[str], outputs: list[str]) -> None:
    """Raise `ExportError` unless the graph is valid, static, of the pinned opset, and has the expected tensors."""
    domains = {entry.domain: entry.version for entry in model.opset_import}
    if domains.get("") != OPSET or set(domains) - {""}:
        raise ExportError(
            f"The {name} graph needs the operator sets {domains}; expected ONNX's own, version {OPSET}, alone."
        )
    for kind, found, expected in (
        ("inputs", [value.name for value in model.graph.input], inputs),
        ("outputs", [value.name for value in model.graph.output], outputs),
    ):
        if found != expected:
            raise ExportError(f"The {name} graph has the {kind} {found}; expected {expected}.")
    for value in (*model.graph.input, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if not all(dimension.dim_value > 0 for dimension in dimensions):
            raise ExportError(f"The tensor {value.name} of the {name} graph has no static shape.")
    if model.ByteSize() <= LARGEST:
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:
            raise ExportError(f"The {name} graph is not valid ONNX: {first_line(error)}.") from error


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide the exporter's notes to developers, such as deprecations inside PyTorch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
