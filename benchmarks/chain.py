"""Chains of 3x3 convolutions and nothing else: the highest throughput that a runtime reaches on this CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.harness import timed
from cris_edge.backends import registry
from cris_edge.backends.base import BackendOptions
from cris_edge.bundle.manifest import GraphSpec, TensorSpec
from runtimes.cost import multiply_accumulates

LAYERS = 6
# Channels and side: the large convolutions of CRIS-R50 at 416 pixels.
SHAPES = ((512, 26), (512, 52), (256, 52), (128, 104))
LEVELS = 255  # of an unsigned byte


class Chain:
    """A chain compiled for one runtime, to be timed.

    Args:
        runtime: Runtime name.
        precision: float32, bfloat16, or int8 for a quantized chain.
        channels: Channels of every layer.
        side: Height and width of every layer, in pixels.
        threads: CPU threads.
    """

    def __init__(self, runtime: str, precision: str, channels: int, side: int, threads: int) -> None:
        model = chain(channels, side, LAYERS, quantized=precision == "int8")
        shape, computed = (1, channels, side, side), "auto" if precision == "int8" else precision
        spec = GraphSpec((TensorSpec("x", shape, "float32"),), (TensorSpec("y", shape, "float32"),))
        backend = registry.create(runtime, BackendOptions(precision=computed, threads=threads))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "chain.onnx"
            onnx.save(model, path)
            self._compiled = backend.compile(path, spec)
            info = backend.info  # reads the file to see whether it is quantized
        self._inputs = {"x": np.random.default_rng(0).random(shape, np.float32)}
        self.info: dict[str, Any] = {
            "runtime": runtime,
            "version": info.version,
            "precision": info.precision,
            "threads": info.threads,
            "macs": multiply_accumulates(model),
        }

    def measure(self, count: int) -> list[dict[str, float]]:
        """Seconds of `count` runs, after one that does not count."""
        return [{"whole": seconds, "next": seconds} for seconds in timed(lambda: self._compiled(self._inputs), count)]


def chain(channels: int, side: int, layers: int, *, quantized: bool) -> onnx.ModelProto:
    """`layers` of convolution, bias and ReLU, (1, channels, side, side) -> the same.

    Quantized: unsigned activations, signed weights with one scale per output channel, and a quantizer before every
    layer, so that both runtimes compute the chain in integers from end to end.
    """
    random = np.random.default_rng(1)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray[Any, Any]] = {}
    tensor = "x"
    if quantized:
        constants |= {"scale": np.array(4 / LEVELS, np.float32), "zero": np.array(0, np.uint8)}
    for layer in range(layers):
        weight = (random.normal(size=(channels, channels, 3, 3)) / (9 * channels / 2) ** 0.5).astype(np.float32)
        bias = random.normal(0, 0.1, channels).astype(np.float32)
        if quantized:
            tensor = _quantized_input(nodes, tensor, layer)
            scales = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
            constants[f"weight{layer}"] = np.rint(weight / scales[:, None, None, None]).astype(np.int8)
            constants[f"scales{layer}"], constants[f"zeros{layer}"] = scales, np.zeros(channels, np.int8)
            unit = scales * constants["scale"]
            constants[f"bias{layer}"] = np.rint(bias / unit).astype(np.int32)
            constants[f"units{layer}"], constants[f"nulls{layer}"] = unit, np.zeros(channels, np.int32)
            for kind, names in (("w", ("weight", "scales", "zeros")), ("b", ("bias", "units", "nulls"))):
                inputs = [f"{name}{layer}" for name in names]
                nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{kind}{layer}"], axis=0))
        else:
            constants[f"w{layer}"], constants[f"b{layer}"] = weight, bias
        nodes.append(helper.make_node("Conv", [tensor, f"w{layer}", f"b{layer}"], [f"conv{layer}"], pads=[1, 1, 1, 1]))
        tensor = "y" if layer == layers - 1 else f"relu{layer}"
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [tensor]))
    shape = (1, channels, side, side)
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _quantized_input(nodes: list[onnx.NodeProto], tensor: str, layer: int) -> str:
    nodes.append(helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"bytes{layer}"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"bytes{layer}", "scale", "zero"], [f"input{layer}"]))
    return f"input{layer}"
