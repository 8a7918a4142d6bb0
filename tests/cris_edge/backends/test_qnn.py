"""Qualcomm's HTP as a backend, on its emulator with one small graph."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cris_edge.backends import registry
from cris_edge.backends.base import BackendOptions
from cris_edge.bundle.manifest import GraphSpec, TensorSpec
from cris_edge.errors import BundleError, DeviceError, OptionError, RuntimeMissingError

CHANNELS, SIDE = 4, 8
SPEC = GraphSpec(
    (TensorSpec("x", (1, CHANNELS, SIDE, SIDE), "float32"),), (TensorSpec("y", (1, CHANNELS, SIDE, SIDE), "float32"),)
)
needs_provider = pytest.mark.skipif(
    not registry.is_available("qnn"),
    reason="Qualcomm's provider is not installed; it exists for Linux on x86-64 and Windows",
)


def quantized(operator: str = "Relu") -> onnx.ModelProto:
    """An operator between quantizers of 8 bits, scale 1/32, zero at 128."""
    constants = {"scale": np.array(1 / 32, np.float32), "zero": np.array(128, np.uint8)}
    nodes = []
    for name, operation in (("x", operator), ("made", None)):
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"], f"quantize_{name}"))
        out = "y" if operation is None else f"{name}_f"
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [out], f"floats_{name}"))
        if operation:
            nodes.append(helper.make_node(operation, [out], ["made"], "the_operator"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SPEC.inputs[0].shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SPEC.outputs[0].shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"activations": "int8"})
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "qnn" / "small.onnx"
    target.parent.mkdir()
    onnx.save(quantized(), target)
    return target


def inputs() -> dict[str, Any]:
    return {"x": np.linspace(-3, 3, CHANNELS * SIDE * SIDE, dtype=np.float32).reshape(SPEC.inputs[0].shape)}


def check(found: Mapping[str, Any]) -> None:
    np.testing.assert_allclose(found["y"], np.maximum(inputs()["x"], 0), atol=1 / 32)


def emulator(**options: Any) -> Any:
    return registry.create("qnn", BackendOptions(device="emulator", **options))


@needs_provider
def test_whole_graph_runs_on_the_emulator(path: Path) -> None:
    backend = emulator()
    check(backend.compile(path, SPEC)(inputs()))
    info = backend.info
    assert (info.runtime, info.device, info.precision) == ("qnn", "emulator", "int8")


@needs_provider
def test_standard_output_stays_empty(path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\nfrom cris_edge.backends import registry\nfrom cris_edge.backends.base import *\n"
        "from cris_edge.bundle.manifest import *\n"
        "backend = registry.create('qnn', BackendOptions(device='emulator'))\n"
        f"backend.compile(Path(sys.argv[1]), {SPEC!r})\nprint('here')"
    )
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run([sys.executable, "-c", code, str(path), root], check=True, timeout=100, capture_output=True)
    assert done.stdout == b"here\n"


def test_provider_is_imported_on_first_use() -> None:
    code = (
        "import sys, cris_edge.backends.qnn\n"
        "assert not {'onnxruntime', 'onnxruntime_qnn'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).resolve().parents[3])


@needs_provider
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "CPU"}, "no device 'CPU'"),
        ({"device": "emulator", "precision": "float32"}, "compute in integers"),
        ({"device": "emulator", "threads": 1}, "only the CPU has threads"),
        ({"device": "emulator", "extra": {"fallback": True}}, "no setting fallback. Available: cpu_fallback"),
    ],
)
def test_unsupported_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        registry.create("qnn", BackendOptions(**options))


@needs_provider
def test_cpu_fallback_must_be_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "small.onnx"
    onnx.save(quantized("Erf"), path)  # an operator that the HTP does not have
    with pytest.raises(DeviceError, match=r"emulator cannot run .*small\.onnx"):
        emulator().compile(path, SPEC)
    backend = emulator(extra={"cpu_fallback": True})
    with caplog.at_level(logging.WARNING, "cris_edge"):
        backend.compile(path, SPEC)(inputs())
    assert "fall back to the CPU" in caplog.text
    assert backend.info.device == "emulator, CPU"
    assert "nodes on the CPU" in backend.info.device_name


@needs_provider
def test_compiled_graphs_are_cached(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    wide = quantized()
    helper.set_model_props(wide, {"activations": "int16"})
    onnx.save(wide, path)
    check(emulator(cache_dir=cache).compile(path, SPEC)(inputs()))
    kept = list(cache.iterdir())
    assert [file.suffix for file in kept] == [".onnx"]
    monkeypatch.setattr("cris_edge.backends.qnn.QnnBackend._open", spy := _Spy())
    again = emulator(cache_dir=cache)
    again.compile(path, SPEC)
    assert spy.opened == kept
    assert again.info.precision == "int8+int16"


class _Spy:
    """Remembers which files are opened."""

    def __init__(self) -> None:
        from cris_edge.backends.qnn import QnnBackend

        self.opened: list[Path] = []
        self._open = QnnBackend._open

    def __get__(self, backend: Any, _: Any = None) -> Any:
        def opened(path: Path, compiled: Path | None = None) -> Any:
            self.opened.append(path)
            return self._open(backend, path, compiled)

        return opened


@needs_provider
def test_binary_for_another_chip_is_replaced_by_its_source(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    binary = path.parent / "SM8650" / path.name
    binary.parent.mkdir()
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=1, ep_cache_context=b"of mars"
    )
    graph = helper.make_graph([node], "small", list(quantized().graph.input), list(quantized().graph.output))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("com.microsoft", 1)], ir_version=8), binary)
    backend = emulator()
    with caplog.at_level(logging.WARNING, "cris_edge"):
        check(backend.compile(binary, SPEC)(inputs()))
    assert "compiling " in caplog.text
    assert backend.info.device_name == "small compiled on this device"
    path.unlink()
    with pytest.raises(DeviceError):
        emulator().compile(binary, SPEC)


@needs_provider
def test_other_tensors_than_stated_are_refused(path: Path) -> None:
    wrong = GraphSpec(SPEC.inputs, (TensorSpec("z", SPEC.outputs[0].shape, "float32"),))
    with pytest.raises(BundleError, match="the manifest states z"):
        emulator().compile(path, wrong)


def test_missing_package_names_its_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    with pytest.raises(RuntimeMissingError, match=r'pip install "cris-edge\[qnn\]"'):
        registry.create("qnn", BackendOptions(device="NPU"))


def test_cpu_runtimes_do_not_include_it() -> None:
    assert "qnn" in registry.names()
    assert "qnn" not in registry.available()


def test_openvino_explains_a_missing_npu() -> None:
    pytest.importorskip("openvino")
    from cris_edge.backends import ov

    if any(device.startswith("npu") for device in ov.devices(ov.shared_core(ov.load()))):
        pytest.skip("this machine has an NPU")
    with pytest.raises(OptionError, match="An NPU needs its driver, which also brings the compiler"):
        registry.create("openvino", BackendOptions(device="NPU"))
