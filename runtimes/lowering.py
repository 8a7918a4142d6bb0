"""How a graph becomes the file that a runtime reads, by the runtime's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from runtimes import onnx_graph, openvino_ir

Lowering = Callable[[onnx.ModelProto, str, Path], Path]
"""(float32 graph, precision of storage, bundle folder) -> the file that the runtime reads, written into the folder."""


def to_onnx(graph: onnx.ModelProto, precision: str, folder: Path) -> Path:
    """Write what ONNX Runtime reads, and OpenVINO can."""
    path = folder / "onnx" / f"{graph.graph.name}.onnx"
    if precision == "fp16":
        stored = onnx.ModelProto()
        stored.CopyFrom(graph)
        onnx_graph.store_as_float16(stored)
        graph = stored
    onnx_graph.write(graph, path)
    return path


def to_openvino(graph: onnx.ModelProto, precision: str, folder: Path) -> Path:
    """Write OpenVINO's own format."""
    path = folder / "openvino" / f"{graph.graph.name}.xml"
    openvino_ir.write(graph, path, float16=precision == "fp16")
    return path


LOWERINGS: Mapping[str, Lowering] = {"onnxruntime": to_onnx, "openvino": to_openvino}
"""Every runtime that a bundle can be written for."""
