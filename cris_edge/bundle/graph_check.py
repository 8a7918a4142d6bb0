"""Checks of a bundle's ONNX files before a runtime reads them: tensors, operators, external data, sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from cris_edge.bundle.manifest import Manifest, TensorSpec
from cris_edge.bundle.onnx_header import OnnxHeader, OnnxTensor, read_onnx_header
from cris_edge.errors import BundleError

# Runtimes of this package, which load no library of custom operators.
_BUILTIN = {"onnxruntime", "openvino", "qnn"}
# ONNX's own operators, and those that every ONNX Runtime contains.
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
# Values of a tensor. The largest of CRIS-R101 at 1,024 pixels has 2 ** 26.
MAX_ELEMENTS = 1 << 29

# The fewest inputs of ONNX's operators, of those with two or more; the least of all versions. OpenVINO 2026.4 reads
# inputs that are not there: a Conv without weights ended the process.
_FEWEST_INPUTS = {
    2: (
        "Add AffineGrid And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike CausalConvWithState "
        "CenterCropPad Compress Conv ConvInteger ConvTranspose CumProd CumSum DequantizeLinear Div Equal "
        "Expand Gather GatherElements GatherND Gemm Greater GreaterOrEqual GridSample LayerNormalization Less "
        "LessOrEqual Loop MatMul MatMulInteger MaxRoiPool MaxUnpool Mod Mul NegativeLogLikelihoodLoss "
        "NonMaxSuppression Or PRelu Pow QuantizeLinear RMSNormalization ReverseSequence STFT SequenceAt "
        "SequenceInsert SoftmaxCrossEntropyLoss StringConcat Sub SwiGLU TensorScatter Tile Xor "
    ),
    3: (
        "Attention Col2Im DeformConv GRU GroupNormalization InstanceNormalization LSTM LinearAttention OneHot "
        "RNN Range RoiAlign RotaryEmbedding Scatter ScatterElements ScatterND Where "
    ),
    5: ("BatchNormalization MelWeightMatrix "),
    8: ("QLinearConv QLinearMatMul "),
}
REQUIRED_INPUTS = {name: count for count, names in _FEWEST_INPUTS.items() for name in names.split()}


def graph_uses(manifest: Manifest) -> dict[str, list[tuple[str, str]]]:
    """Return the (runtime, graph) pairs of every ONNX file of a manifest, by its name there."""
    uses: dict[str, list[tuple[str, str]]] = {}
    for runtime, files in manifest.runtimes.items():
        for graph, name in files.items():
            if graph in manifest.graphs and name.endswith(".onnx"):
                uses.setdefault(name, []).append((runtime, graph))
    return uses


def check_onnx(path: Path, name: str, manifest: Manifest, uses: Iterable[tuple[str, str]]) -> None:
    """Check an ONNX file against the manifest, without a runtime.

    Args:
        path: The file.
        name: Its name in the manifest.
        manifest: The manifest.
        uses: The (runtime, graph) pairs that it serves.

    Raises:
        BundleError: It is not an ONNX model; has other inputs or outputs than stated, custom operators, a tensor of
            absurd size, or weights in a file that the manifest does not list.
    """
    header = read_onnx_header(path)
    _check_external_data(path, name, manifest, header)
    for (domain, operator), count in header.fewest_inputs.items():
        if domain in ("", "ai.onnx") and count < REQUIRED_INPUTS.get(operator, 0):
            raise BundleError(
                f"{path} has the operator {operator} with {count} inputs; expected {REQUIRED_INPUTS[operator]} or more."
            )
    for element in header.tensors:
        _check_size(path, element)
    for runtime, graph in uses:
        spec = manifest.graphs[graph]
        # Older files list their weights among the inputs.
        inputs = [tensor for tensor in header.inputs if tensor.name not in header.initializers]
        _check_tensors(path, "inputs", spec.inputs, inputs)
        _check_tensors(path, "outputs", spec.outputs, header.outputs)
        if runtime in _BUILTIN:
            _check_operators(path, header)


def _check_tensors(path: Path, kind: str, stated: Iterable[TensorSpec], found: Iterable[OnnxTensor]) -> None:
    stated = list(stated)
    ours = {tensor.name: (tensor.shape, tensor.dtype) for tensor in found}
    if ours != {tensor.name: (tensor.shape, tensor.dtype) for tensor in stated}:
        raise BundleError(
            f"The {kind} of {path} are {', '.join(_described(ours))}; the manifest states "
            f"{', '.join(map(str, stated))}. Export the bundle again."
        )


def _described(tensors: Mapping[str, tuple[tuple[int | None, ...] | None, str]]) -> Iterator[str]:
    for name, (shape, dtype) in tensors.items():
        sides = "?" if shape is None else ", ".join("?" if side is None else str(side) for side in shape)
        yield f"{name} {dtype}[{sides}]"


def _check_operators(path: Path, header: OnnxHeader) -> None:
    custom = sorted(
        f"{domain}.{operator}" for domain, operator in header.operators - header.functions if domain not in _DOMAINS
    )
    if custom:
        raise BundleError(f"{path} has the custom operators {', '.join(custom[:5])}; expected those of ONNX.")


def _check_external_data(path: Path, name: str, manifest: Manifest, header: OnnxHeader) -> None:
    folder = PurePosixPath(name).parent
    for location in header.external_data:
        listed = (folder / location).as_posix()
        # Listed names were checked to be inside the bundle, and their files hashed.
        if not location or listed not in manifest.files:
            raise BundleError(
                f"{path} keeps weights in {location!r}, which the manifest does not list; export the bundle again."
            )


def _check_size(path: Path, tensor: OnnxTensor) -> None:
    sides = [side for side in tensor.shape or () if side is not None]
    if any(side < 0 for side in sides) or math.prod(sides) > MAX_ELEMENTS:
        raise BundleError(f"A tensor of {path} has the shape {sides}; expected at most {MAX_ELEMENTS} values.")
