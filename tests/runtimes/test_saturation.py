"""Overflow of integer convolutions on CPUs without VNNI, which add 8-bit products in 16 bits.

OpenVINO can use older instructions than the CPU has; ONNX Runtime cannot.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 32
RUN = """
import sys
import numpy as np
from cris_edge.backends import ov
core = ov.shared_core(ov.load())
compiled = core.compile_model(core.read_model(sys.argv[1]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
print(float(compiled({"x": np.ones((1, 32, 8, 8), np.float32)})[0].max()))
print([op.get_rt_info()["primitiveType"].astype(str) for op in compiled.get_runtime_model().get_ops()
       if op.get_rt_info()["layerType"].astype(str) == "Convolution"][0])
"""


def convolution(level: int) -> onnx.ModelProto:
    """A 1x1 integer convolution of ones with every weight at `level`."""
    constants = {
        "x_scale": np.float32(1 / 255),
        "x_zero": np.uint8(0),
        "w": np.full((8, CHANNELS, 1, 1), level, np.int8),
        "w_scale": np.full(8, 1 / 127, np.float32),
        "w_zero": np.zeros(8, np.int8),
        "y_scale": np.float32(CHANNELS / 255),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_int"]),
        helper.make_node("DequantizeLinear", ["x_int", "x_scale", "x_zero"], ["x_float"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_float"], axis=0),
        helper.make_node("Conv", ["x_float", "w_float"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "y_scale", "x_zero"], ["y_int"]),
        helper.make_node("DequantizeLinear", ["y_int", "y_scale", "x_zero"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 8, 8, 8])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def largest(level: int, instructions: str | None, folder: Path) -> float:
    """OpenVINO's largest output, in its own process because the instruction set is chosen once."""
    path = folder / "convolution.onnx"
    onnx.save(convolution(level), path)
    environment = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": instructions} if instructions else {})}
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    value, kernel = result.stdout.split()
    if instructions and "avx512" in kernel:
        pytest.skip(f"this OpenVINO runs {kernel} despite {instructions}")
    return float(value)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 instructions")
def test_eight_bit_weights_overflow_without_vnni_and_seven_bit_weights_do_not(tmp_path: Path) -> None:
    assert largest(127, "AVX2", tmp_path) < 0.6 * CHANNELS  # two products of 255 * 127 are past 2**15
    assert largest(63, "AVX2", tmp_path) == pytest.approx(CHANNELS * 63 / 127, rel=0.01)
    if "avx512_vnni" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False:
        assert largest(127, None, tmp_path) == pytest.approx(CHANNELS, rel=0.01)
