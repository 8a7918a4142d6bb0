"""Check graphs against the published rules of OpenVINO's NPU plugin, which needs no NPU.

- Shapes are static: https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/npu-device.html
  ("Limitations"). The same page names the supported types: float32 and float16 (both computed in float16), and
  8-bit integers in quantized graphs.
- Unsupported operators have no fallback: HETERO and automatic batching do not exist for the NPU
  (https://docs.openvino.ai/2025/documentation/compatibility-and-support/supported-devices.html).
- Operators and element types are those that the compiler's front end knows, and tensors have at most five dimensions
  (openvinotoolkit/npu_compiler, ``src/vpux_compiler/src/frontend/IE.cpp``, ``getParser`` and ``importPrecision``,
  commit 0ccf9bf). This is necessary, not sufficient, so the driver's compiler is tried too if it is installed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cris_edge.backends import ov
from cris_edge.errors import last_line

logger = logging.getLogger("cris_edge.runtimes")

DEVICE = "NPU"
MOST_DIMENSIONS = 5
# Operators that the front end knows, as far as such graphs use them.
_NAMES = """
Parameter Result Constant Convert ConvertLike Softmax LogSoftmax Tile Split VariadicSplit Power Multiply Relu
Convolution GroupConvolution ConvolutionBackpropData AvgPool MaxPool Gather GatherND GatherElements OneHot
BatchNormInference GroupNormalization Clamp Elu Reshape Squeeze Unsqueeze Sigmoid GridSample ReduceMax
ReduceMean ReduceMin ReduceSum ReduceProd Minimum Maximum Add Divide SquaredDifference FloorMod Mod FakeQuantize
FakeConvert MatMul Tanh Sin Cos Sqrt Log Gelu Exp HSwish Floor Round Mish Erf Broadcast Transpose Interpolate
TopK NormalizeL2 CumSum MVN Concat StridedSlice PRelu Swish Negative Sign Pad Subtract Ceiling SoftPlus Equal
Select DepthToSpace Less LessEqual NotEqual Greater GreaterEqual LogicalNot LogicalAnd LogicalOr SpaceToDepth
Abs ShapeOf Range RMS ScaledDotProductAttention Identity ScatterUpdate ScatterNDUpdate ScatterElementsUpdate
HSigmoid HardSigmoid
"""
OPERATORS = frozenset(_NAMES.split())
# Operators rewritten before the front end (``model_preprocessor.cpp`` and the common passes).
REWRITTEN = frozenset(("Slice",))
_ELEMENTS = "f64 f32 f16 bf16 i64 u64 i32 u32 i16 u16 i8 u8 i4 u4 u2 boolean nf4"
TYPES = frozenset(_ELEMENTS.split())


@dataclass(frozen=True)
class Finding:
    """Result of the check of one graph.

    Attributes:
        graph: Its name.
        violations: Messages about broken rules.
        compiled: Whether an NPU's compiler accepted it.
        reason: Why it was not compiled.
        blob: The compiler's output, relative to the bundle; valid for this chip and driver only.
    """

    graph: str
    violations: tuple[str, ...] = ()
    compiled: bool = False
    reason: str = ""
    blob: str | None = None


def examine(files: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Check every graph, compile it if there is an NPU, and return the manifest's record.

    Args:
        files: OpenVINO or ONNX files by graph.
        folder: The bundle; blobs go to ``openvino/NPU/NAME.blob``.

    Raises:
        RuntimeMissingError: OpenVINO is not installed.
    """
    findings = []
    for name, path in files.items():
        found = check(name, path)
        for violation in found.violations:
            logger.warning("OpenVINO's NPU does not support the graph: %s", violation)
        findings.append(found if found.violations else _compile(name, path, folder))
    return {found.graph: {**asdict(found), "violations": list(found.violations)} for found in findings}


def check(name: str, path: Path) -> Finding:
    """Check one graph against the rules, without compiling it."""
    model = ov.shared_core(ov.load()).read_model(str(path))
    broken: dict[str, None] = {}
    for node in model.get_ops():
        kind = node.get_type_name()
        where = f"{kind} {node.get_friendly_name()} of {name}"
        if kind not in OPERATORS | REWRITTEN:
            broken[f"{where} is not an operator of the NPU's compiler"] = None
        for port in node.outputs():
            shape = port.get_partial_shape()
            if shape.is_dynamic and not _folded(node):
                broken[f"{where} has the shape {shape}; expected a static one"] = None
            elif len(shape) > MOST_DIMENSIONS:
                broken[f"{where} has {len(shape)} dimensions; the NPU supports {MOST_DIMENSIONS}"] = None
            element = port.get_element_type().to_string()
            if element not in TYPES:
                broken[f"{where} is of type {element}, which the NPU does not support"] = None
    return Finding(name, tuple(broken))


def _folded(node: Any) -> bool:
    """Whether a node does not depend on the graph's inputs, and so is folded at load time."""
    waiting, seen = [node], set()
    while waiting:
        current = waiting.pop()
        if current.get_type_name() == "Parameter":
            return False
        if current.get_type_name() == "ShapeOf":  # of a static shape, so a constant
            continue
        for port in current.inputs():
            source = port.get_source_output().get_node()
            if source.get_friendly_name() not in seen:
                seen.add(source.get_friendly_name())
                waiting.append(source)
    return True


def _compile(name: str, path: Path, folder: Path) -> Finding:
    """Compile with the NPU driver's compiler, if there is one, and keep the blob."""
    core = ov.shared_core(ov.load())
    if not any(device.startswith(DEVICE) for device in core.available_devices):
        return Finding(name, reason="not compiled: OpenVINO finds no NPU; only the rules were checked")
    try:
        compiled = core.compile_model(str(path), DEVICE)
        blob = folder / "openvino" / DEVICE / f"{name}.blob"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(compiled.export_model().getvalue())
    except (RuntimeError, OSError) as error:
        return Finding(name, reason=last_line(error))
    return Finding(name, compiled=True, blob=blob.relative_to(folder).as_posix())
