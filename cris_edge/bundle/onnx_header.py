"""A small ONNX reader: operators, inputs and outputs, metadata and external data, without the `onnx` package.

Weights are skipped, not read. The format is that of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from cris_edge.errors import BundleError

_MAX_DEPTH = 16  # of subgraphs inside subgraphs; exporters nest two or three
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL = 1  # TensorProto.DataLocation
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip

Span: TypeAlias = tuple[int, int]  # start and end of a message in the file


@dataclass(frozen=True)
class OnnxTensor:
    """An input or output of a graph.

    Attributes:
        name: Its name.
        dtype: Its numpy dtype, or "type N" for ONNX's type number N if there is none.
        shape: Sides; a symbolic or unknown one is None. None if the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass
class OnnxHeader:
    """What an ONNX file contains apart from its weights.

    Attributes:
        ir_version: Version of the file format.
        opsets: Operator set version by domain; "" is ONNX's own.
        operators: (domain, operator) of every node, those of subgraphs and functions included.
        fewest_inputs: For each of them, how many inputs a node has at least, up to the first that is left out.
        inputs: Inputs of the graph; old files list initializers among them.
        outputs: Outputs of the graph.
        initializers: Names of the weights of the main graph.
        tensors: Every tensor whose shape the file states: weights, inputs, outputs and intermediate values.
        functions: (domain, operator) of the functions that the file defines.
        metadata: The model's metadata properties.
        external_data: Locations of the files that hold weights, as written in the model, unchecked.
    """

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    operators: set[tuple[str, str]] = field(default_factory=set)
    fewest_inputs: dict[tuple[str, str], int] = field(default_factory=dict)
    inputs: list[OnnxTensor] = field(default_factory=list)
    outputs: list[OnnxTensor] = field(default_factory=list)
    initializers: set[str] = field(default_factory=set)
    tensors: list[OnnxTensor] = field(default_factory=list)
    functions: set[tuple[str, str]] = field(default_factory=set)
    metadata: dict[str, str] = field(default_factory=dict)
    external_data: set[str] = field(default_factory=set)


def read_onnx_header(path: Path) -> OnnxHeader:
    """Read the header of an ONNX file.

    Raises:
        BundleError: The file cannot be read or is not a well-formed ONNX model.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse_onnx_header(data)
    except (OSError, ValueError) as error:  # ValueError: the file is empty, which mmap does not take
        raise BundleError(f"{path} cannot be read as an ONNX model: {error}.") from error


def parse_onnx_header(data: bytes | mmap.mmap) -> OnnxHeader:
    """Parse the header of an ONNX model in memory.

    Raises:
        ValueError: The bytes are not a well-formed ONNX model.
    """
    header = OnnxHeader()
    reader = _Reader(data, header)
    for number, value in reader.fields((0, len(data))):
        if number == 1:
            header.ir_version = reader.integer(value)
        elif number == 7:
            reader.graph(reader.span(value), depth=0)
        elif number == 8:
            entry = reader.message(value, {1: "text", 2: "integer"})
            header.opsets[entry.get(1, "")] = entry.get(2, 0)
        elif number == 14:
            entry = reader.message(value, {1: "text", 2: "text"})
            header.metadata[entry.get(1, "")] = entry.get(2, "")
        elif number == 25:
            reader.function(reader.span(value))
    if not header.ir_version or not header.opsets:
        raise ValueError("it has no IR version or no operator set")
    return header


class _Reader:
    """Reads messages of the protocol buffer into a header. Field numbers are those of onnx.proto3."""

    def __init__(self, data: bytes | mmap.mmap, header: OnnxHeader) -> None:
        self.data = data
        self.header = header

    def graph(self, span: Span, depth: int) -> None:
        for number, value in self.fields(span):
            if number == 1:
                self.node(self.span(value), depth)
            elif number == 5:
                name = self.tensor(self.span(value))
                if depth == 0:
                    self.header.initializers.add(name)
            elif number == 15:
                self.sparse_tensor(self.span(value))
            elif number in (11, 12, 13):
                tensor = self.value_info(self.span(value))
                self.header.tensors.append(tensor)
                if depth == 0 and number != 13:
                    (self.header.inputs if number == 11 else self.header.outputs).append(tensor)

    def function(self, span: Span) -> None:
        name = domain = ""
        for number, value in self.fields(span):
            if number == 1:
                name = self.text(value)
            elif number == 10:
                domain = self.text(value)
            elif number == 7:
                self.node(self.span(value), depth=0)
        self.header.functions.add((domain, name))

    def node(self, span: Span, depth: int) -> None:
        operator = domain = ""
        inputs, complete = 0, True
        for number, value in self.fields(span):
            if number == 1:
                start, end = self.span(value)
                complete = complete and end > start
                inputs += complete
            elif number == 4:
                operator = self.text(value)
            elif number == 7:
                domain = self.text(value)
            elif number == 5:
                self.attribute(self.span(value), depth)
        kind = domain, operator
        self.header.operators.add(kind)
        self.header.fewest_inputs[kind] = min(inputs, self.header.fewest_inputs.get(kind, inputs))

    def attribute(self, span: Span, depth: int) -> None:
        for number, value in self.fields(span):
            if number in (5, 10):
                self.tensor(self.span(value))
            elif number in (22, 23):
                self.sparse_tensor(self.span(value))
            elif number in (6, 11):
                if depth >= _MAX_DEPTH:
                    raise ValueError(f"its subgraphs are nested more than {_MAX_DEPTH} deep")
                self.graph(self.span(value), depth + 1)

    def sparse_tensor(self, span: Span) -> None:
        for number, value in self.fields(span):
            if number in (1, 2):
                self.tensor(self.span(value))

    def tensor(self, span: Span) -> str:
        external, locations = False, set()
        name, dtype = "", "type 0"
        shape: list[int] = []
        for number, value in self.fields(span):
            if number == 1:  # a side, or several of them packed
                shape += [self.integer(value)] if isinstance(value, int) else self.packed(value)
            elif number == 2:
                code = self.integer(value)
                dtype = _DTYPES.get(code, f"type {code}")
            elif number == 8:
                name = self.text(value)
            elif number == 14:
                external = self.integer(value) == _EXTERNAL
            elif number == 13:
                entry = self.message(value, {1: "text", 2: "text"})
                if entry.get(1) == "location":
                    locations.add(entry.get(2, ""))
        if any(side < 0 for side in shape) or (not external and math.prod(shape) > 2 * len(self.data)):
            raise ValueError(f"the tensor {name!r} has the shape {shape}, more values than the file can hold")
        self.header.tensors.append(OnnxTensor(name, dtype, tuple(shape)))
        if external:
            self.header.external_data |= locations or {""}
        return name

    def packed(self, span: Span) -> list[int]:
        values = []
        at, end = span
        while at < end:
            value, at = self.varint(at, end)
            values.append(self.integer(value))
        return values

    def value_info(self, span: Span) -> OnnxTensor:
        name, dtype, shape = "", "type 0", None
        for number, value in self.fields(span):
            if number == 1:
                name = self.text(value)
            elif number == 2:
                for kind, tensor_type in self.fields(self.span(value)):
                    if kind == 1:  # a tensor; sequences, maps and optionals have other numbers
                        dtype, shape = self.tensor_type(self.span(tensor_type))
        return OnnxTensor(name, dtype, shape)

    def tensor_type(self, span: Span) -> tuple[str, tuple[int | None, ...] | None]:
        dtype, shape = "type 0", None
        for number, value in self.fields(span):
            if number == 1:
                code = self.integer(value)
                dtype = _DTYPES.get(code, f"type {code}")
            elif number == 2:
                sides = (
                    self.message(side, {1: "integer"}) for kind, side in self.fields(self.span(value)) if kind == 1
                )
                shape = tuple(side.get(1) for side in sides)
        return dtype, shape

    def message(self, value: int | Span, kinds: dict[int, str]) -> dict[int, Any]:
        """The last value of each named field, as text or integer."""
        found = self.fields(self.span(value))
        return {number: getattr(self, kinds[number])(entry) for number, entry in found if number in kinds}

    def fields(self, span: Span) -> Iterator[tuple[int, int | Span]]:
        """Number and value of each field: an integer for varints, the position of the bytes for everything else."""
        at, end = span
        while at < end:
            key, at = self.varint(at, end)
            kind = key & 7
            value: int | Span
            if kind == _VARINT:
                value, at = self.varint(at, end)
            else:
                if kind == _BYTES:
                    length, at = self.varint(at, end)
                elif kind in (_FIXED64, _FIXED32):
                    length = 8 if kind == _FIXED64 else 4
                else:
                    raise ValueError(f"a field at byte {at} has the unknown wire type {kind}")
                value, at = (at, at + length), at + length
                if at > end:
                    raise ValueError(f"a field ends at byte {at}, beyond its message or the file")
            yield key >> 3, value

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """An unsigned integer of at most ten bytes, seven bits each, lowest first; and the position after it."""
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise ValueError("an integer is cut off at the end of its message or the file")
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise ValueError(f"an integer before byte {at} has more than ten bytes")

    def span(self, value: int | Span) -> Span:
        if isinstance(value, int):
            raise ValueError("a field holds an integer; expected bytes")
        return value

    def integer(self, value: int | Span) -> int:
        if not isinstance(value, int):
            raise ValueError("a field holds bytes; expected an integer")
        return value - (1 << 64) if value >= 1 << 63 else value  # int64 in two's complement

    def text(self, value: int | Span) -> str:
        start, end = self.span(value)
        return self.data[start:end].decode("utf-8", errors="replace")
