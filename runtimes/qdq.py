"""Quantize a float graph throughout, in the form that Qualcomm's HTP takes.

Every tensor passes QuantizeLinear and DequantizeLinear (ONNX Runtime's QDQ form), with ranges calibrated on samples.
Weights are int8, per channel in convolutions; activations are uint8 or uint16. ONNX Runtime's helper for this provider
places the quantizers; this module chooses the number of bits.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from cris_edge.errors import ExportError, first_line
from runtimes.network import Array
from training.model.deploy import UNSEEN

ACTIVATIONS = ("int8", "int8 around convolutions, int16 elsewhere", "int16")
"""Bits of activations, cheapest first: 16 bits halve the speed of a layer and double its bytes."""

# Attention penalty instead of `UNSEEN`: exp(-64) is 0 in 16 bits, and a range of 10,000 would leave scores no digits.
OUT_OF_SIGHT = 64.0
_KEPT_IN_FLOAT = ("Cast",)
_FOLLOWS = ("Relu", "Resize", "AveragePool")  # operators that compute in the type of the convolution beside them


class Ranges:
    """A float graph with the range of each of its tensors on samples.

    Args:
        model: Graph in float32 with static shapes.
        samples: Inputs by name.
    """

    def __init__(self, model: onnx.ModelProto, samples: Sequence[Mapping[str, Array]]) -> None:
        with _quantizer_quiet(), tempfile.TemporaryDirectory(prefix="cris-edge-") as folder:
            from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
            from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

            self.model = save_and_reload_model_with_shape_infer(_within_reach(model))
            self.operators = sorted({node.op_type for node in self.model.graph.node} - set(_KEPT_IN_FLOAT))
            path = Path(folder) / "float.onnx"
            onnx.save(self.model, path)
            calibrator = create_calibrator(
                path,
                self.operators,
                augmented_model_path=str(Path(folder) / "observed.onnx"),
                calibrate_method=CalibrationMethod.MinMax,
            )
            calibrator.collect_data(_Reader([in_reach(sample) for sample in samples]))
            self.found = calibrator.compute_data()


def quantize(ranges: Ranges, activations: str) -> onnx.ModelProto:
    """Return the quantized graph; inputs and outputs keep their names, shapes and types.

    Args:
        ranges: The float graph.
        activations: One of `ACTIVATIONS`.

    Raises:
        ExportError: The graph cannot be quantized.
    """
    try:
        with _quantizer_quiet():
            return _quantize(ranges, activations)
    except Exception as error:
        name = ranges.model.graph.name
        raise ExportError(f"The {name} graph cannot be quantized for the HTP: {first_line(error)}.") from error


def _quantize(ranges: Ranges, activations: str) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = onnx.ModelProto()
    model.CopyFrom(ranges.model)
    wide = activations != "int8"
    overrides: dict[str, list[dict[str, Any]]] = {
        # The HTP takes no layer norm whose weights are quantized per channel.
        node.input[1]: [{"quant_type": QuantType.QUInt8, "symmetric": False}]
        for node in model.graph.node
        if node.op_type == "LayerNormalization"
    }
    if activations == ACTIVATIONS[1]:
        overrides |= {name: [{"quant_type": QuantType.QUInt8}] for name in sorted(_around_convolutions(model))}
    config = get_qnn_qdq_config(
        model,
        None,
        activation_type=QuantType.QUInt16 if wide else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        init_overrides=overrides or None,
    )
    quantizer = QDQQuantizer(
        model,
        config.per_channel,
        False,
        config.weight_type,
        config.activation_type,
        ranges.found,
        [],
        [],
        ranges.operators,
        config.extra_options,
    )
    quantizer.quantize_model()
    quantized: onnx.ModelProto = quantizer.model.model
    quantized.graph.name = ranges.model.graph.name
    return quantized


def _around_convolutions(model: onnx.ModelProto) -> set[str]:
    """Return inputs and outputs of convolutions, and of the operators that follow their type."""
    found = {name for node in model.graph.node if node.op_type == "Conv" for name in (node.input[0], node.output[0])}
    while True:
        ends = [{node.input[0], node.output[0]} for node in model.graph.node if node.op_type in _FOLLOWS]
        more = set().union(*(pair for pair in ends if pair & found)) - found
        if not more:
            return found
        found |= more


def in_reach(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Replace the penalty `UNSEEN` in float tensors, as quantized graphs expect it."""
    return {
        name: np.where(values == UNSEEN, np.float32(OUT_OF_SIGHT), values) if values.dtype == np.float32 else values
        for name, values in tensors.items()
    }


def _within_reach(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with the penalty in its constants replaced, as by `in_reach`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            if np.any(values == UNSEEN):
                tensor.CopyFrom(numpy_helper.from_array(in_reach({"": values})[""], tensor.name))
    return copy


class _Reader:
    """Samples in the interface of ONNX Runtime's calibration."""

    def __init__(self, samples: Sequence[Mapping[str, Array]]) -> None:
        self._samples: Iterator[Mapping[str, Array]] = iter(samples)

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._samples, None)


@contextmanager
def _quantizer_quiet() -> Iterator[None]:
    """Silence the quantizer's advice on the root logger."""
    from cris_edge.backends.ort import load

    load()
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
