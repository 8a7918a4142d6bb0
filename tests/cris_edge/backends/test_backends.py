from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cris_edge.backends import registry
from cris_edge.backends.base import Array, Backend, BackendInfo, BackendOptions, usable_cache
from cris_edge.bundle import Bundle, GraphSpec, TensorSpec
from cris_edge.device.processor import usable_cores
from cris_edge.errors import BundleError, DeviceError, OptionError, RuntimeMissingError

GRAPH = "mask_decoder"


@pytest.fixture
def bundle(tiny: Path) -> Bundle:
    return Bundle.open(tiny)


def compiled(bundle: Bundle, runtime: str, graph: str = GRAPH, **options: Any) -> tuple[Backend, Any]:
    backend = registry.create(runtime, BackendOptions(**options))
    return backend, backend.compile(bundle.graph_files(runtime)[graph], bundle.manifest.graphs[graph])


def feeds(bundle: Bundle, graph: str = GRAPH, seed: int = 0) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for tensor in bundle.manifest.graphs[graph].inputs:
        if tensor.dtype == "int64":
            arrays[tensor.name] = generator.integers(0, 49408, tensor.shape)
        else:
            arrays[tensor.name] = generator.random(tensor.shape, np.float32)
    return arrays


@pytest.mark.parametrize("graph", ["image_encoder", "text_encoder", "mask_decoder"])
def test_each_graph_matches_the_reference(bundle: Bundle, runtime: str, graph: str) -> None:
    from tests.cris_edge.tiny_bundle import _interpret, graphs

    _, run = compiled(bundle, runtime, graph, precision="float32")
    given = feeds(bundle, graph)
    found, expected = run(given), _interpret(graphs()[graph], given)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, atol=1e-4)


def test_surplus_inputs_are_ignored_and_read_only_ones_accepted(bundle: Bundle, runtime: str) -> None:
    _, run = compiled(bundle, runtime)
    given = feeds(bundle)
    expected = run(given)["logits"].copy()
    for array in given.values():
        array.setflags(write=False)
    assert (run({**given, "surplus": np.zeros(1)})["logits"] == expected).all()


def test_results_are_owned_by_the_caller(bundle: Bundle, runtime: str) -> None:
    _, run = compiled(bundle, runtime)
    first = run(feeds(bundle, seed=1))["logits"]
    kept = first.copy()
    second = run(feeds(bundle, seed=2))["logits"]
    assert not np.shares_memory(first, second)
    assert (first == kept).all()
    assert not (first == second).all()
    first[:] = 0  # writable


def test_graphs_are_thread_safe(bundle: Bundle, runtime: str) -> None:
    _, run = compiled(bundle, runtime)
    given = [feeds(bundle, seed=seed) for seed in range(6)]
    expected = [run(each)["logits"] for each in given]
    wrong: list[int] = []
    barrier = threading.Barrier(len(given))

    def work(index: int) -> None:
        barrier.wait()
        for _ in range(20):
            if not np.array_equal(run(given[index])["logits"], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_info_reports_what_is_used(bundle: Bundle, runtime: str) -> None:
    backend, _ = compiled(bundle, runtime, precision="float32", threads=1)
    info = backend.info
    assert isinstance(backend, Backend)
    assert (info.runtime, info.device, info.precision, info.threads) == (runtime, "CPU", "float32", 1)
    assert info.version[0].isdecimal()
    assert (info.hint, info.parallel) == ("latency", 1)
    backend.close()
    assert backend.info.precision == "float32"


def test_openvino_reports_bfloat16_if_it_uses_it(bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    able = next(device.precisions for device in registry.describe("openvino").devices if device.name == "CPU")
    backend, run = compiled(bundle, "openvino")
    if "bfloat16" not in able:
        assert backend.info.precision == "float32"
        with pytest.raises(OptionError, match=r"cannot compute in bfloat16 on this CPU\. Available: float32"):
            compiled(bundle, "openvino", precision="bfloat16")
        return
    assert backend.info.precision == "bfloat16"
    exact = compiled(bundle, "openvino", precision="float32")[1]
    requested = compiled(bundle, "openvino", precision="bfloat16")[1]
    given = feeds(bundle)
    assert np.abs(run(given)["logits"] - exact(given)["logits"]).max() > 1e-4  # the arithmetic really differs
    assert (run(given)["logits"] == requested(given)["logits"]).all()


def test_openvino_defaults_to_float32_in_quantized_graphs(bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    assert compiled(bundle, "openvino", quantized=True)[0].info.precision == "float32"
    if "bfloat16" in next(d.precisions for d in registry.describe("openvino").devices if d.name == "CPU"):
        requested = compiled(bundle, "openvino", quantized=True, precision="bfloat16")[0]
        assert requested.info.precision == "bfloat16"


def test_openvino_refuses_precisions_it_would_replace(bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    if "float16" in next(device.precisions for device in registry.describe("openvino").devices if device.name == "CPU"):
        pytest.skip("this processor has float16 arithmetic")
    with pytest.raises(OptionError, match="cannot compute in float16"):
        registry.create("openvino", BackendOptions(precision="float16"))


def test_onnxruntime_offers_only_float32(bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(OptionError, match="computes in float32 on the CPU, but bfloat16 was requested"):
        registry.create("onnxruntime", BackendOptions(precision="bfloat16"))


def test_quantized_graphs_are_reported(tmp_path: Path, runtime: str) -> None:
    path, spec = _quantized(tmp_path / "quantized.onnx")
    backend = registry.create(runtime, BackendOptions(precision="float32"))
    run = backend.compile(path, spec)
    assert run({"image": np.ones((1, 16, 32, 32), np.float32)})["features"].shape == (1, 16, 32, 32)
    assert backend.info.precision == "int8+float32"


def _quantized(path: Path) -> tuple[Path, GraphSpec]:
    """A convolution between quantized activations, with quantized weights: u8, s8, as both runtimes prefer."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)
    constants = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.full(16, 0.01, np.float32), "w_scale"),
        numpy_helper.from_array(np.zeros(16, np.int8), "w_zero"),
        numpy_helper.from_array(np.float32(0.02), "scale"),
        numpy_helper.from_array(np.uint8(128), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["k"], axis=0),
        helper.make_node("Conv", ["x", "k"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "scale", "zero"], ["features"]),
    ]
    shape = (1, 16, 32, 32)
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, shape)],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path, GraphSpec((TensorSpec("image", shape, "float32"),), (TensorSpec("features", shape, "float32"),))


@pytest.mark.parametrize("device", ["NPU9", "banana", "cpu.7", "HETERO:CPU", "AzureExecutionProvider"])
def test_unknown_devices_are_refused_with_a_list(runtime: str, device: str) -> None:
    with pytest.raises(OptionError, match=rf"has no device '{device}'. Available: CPU"):
        registry.create(runtime, BackendOptions(device=device))


@pytest.mark.parametrize("device", ["cpu", "CPU", " Cpu ", "auto", "AUTO"])
def test_device_names_ignore_case(bundle: Bundle, runtime: str, device: str) -> None:
    backend, _ = compiled(bundle, runtime, device=device)
    assert backend.info.device  # for AUTO, its choice
    if device.lower() != "auto":
        assert backend.info.device == "CPU"


def test_openvino_auto_reports_its_choice(bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    from cris_edge.backends.ov import OvBackend

    backend = OvBackend(BackendOptions(device="auto"))
    backend._device = "AUTO"  # skipped if there is only the CPU
    backend._config = backend._checked_config()
    run = backend.compile(bundle.graph_files("openvino")[GRAPH], bundle.manifest.graphs[GRAPH])
    assert run(feeds(bundle))["logits"].shape == (1, 1, 32, 32)
    assert backend.info.device in registry.describe("openvino").devices[0].name
    assert backend.info.precision in ("float32", "bfloat16", "float16")


def test_onnxruntime_accepts_both_names_of_a_provider(bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime")
    assert compiled(bundle, "onnxruntime", device="CPUExecutionProvider")[0].info.device == "CPU"


@pytest.mark.parametrize("precision", ["fp32", "int8", "FLOAT32", "", "double"])
def test_unknown_precisions_are_refused(precision: str) -> None:
    with pytest.raises(OptionError, match="expected one of auto, float32, bfloat16, float16"):
        BackendOptions(precision=precision)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 10_000])
def test_invalid_threads_are_refused(threads: Any) -> None:
    with pytest.raises(OptionError, match=rf"from 1 to {usable_cores()} "):
        BackendOptions(threads=threads)


def test_other_options_are_checked(runtime: str) -> None:
    with pytest.raises(OptionError, match="hint 'fast' is unknown; expected one of latency, throughput"):
        BackendOptions(hint="fast")
    with pytest.raises(OptionError, match="device '' is not a name"):
        BackendOptions(device="")
    with pytest.raises(OptionError, match="has no setting nonsense"):
        registry.create(runtime, BackendOptions(extra={"nonsense": 1}))


def test_throughput_reports_the_useful_number_of_calls(bundle: Bundle, runtime: str) -> None:
    backend, run = compiled(bundle, runtime, hint="throughput")
    assert 1 <= backend.info.parallel <= usable_cores()
    assert run(feeds(bundle))["logits"].shape == (1, 1, 32, 32)


def test_graph_with_other_tensors_than_stated_is_refused(bundle: Bundle, runtime: str) -> None:
    backend = registry.create(runtime)
    path, spec = bundle.graph_files(runtime)[GRAPH], bundle.manifest.graphs[GRAPH]
    renamed = replace(spec, outputs=(TensorSpec("mask", (1, 1, 32, 32), "float32"),))
    with pytest.raises(BundleError, match=r"outputs of .* are logits float32\[1, 1, 32, 32\].* states mask"):
        backend.compile(path, renamed)
    with pytest.raises(BundleError, match="inputs of"):
        backend.compile(path, replace(spec, inputs=spec.inputs[1:]))


def test_invalid_file_is_a_device_error(bundle: Bundle, runtime: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph at all")
    with pytest.raises(DeviceError, match=r"cannot run .*broken\.onnx on CPU: .*\w+"):
        registry.create(runtime).compile(path, bundle.manifest.graphs[GRAPH])


def test_wrong_call_is_a_device_error(bundle: Bundle, runtime: str) -> None:
    _, run = compiled(bundle, runtime)
    given = feeds(bundle)
    with pytest.raises(DeviceError, match="failed in"):
        run({**given, "visual5": np.zeros((1, 8, 3, 3), np.float32)})
    assert run(given)["logits"].shape == (1, 1, 32, 32)  # and works on


def test_missing_runtime_names_its_pip_command(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(RuntimeMissingError, match=rf'pip install "cris-edge\[{runtime}\]"'):
        registry.create(runtime)


def test_broken_runtime_is_not_reported_missing(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{runtime}.py").write_text("raise OSError('libwhatever.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, runtime)
    with pytest.raises(RuntimeMissingError, match=r"is installed and cannot be loaded .*libwhatever"):
        registry.create(runtime)


def test_openvino_caches_compiled_graphs(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    folder = usable_cache(tmp_path / "cache", "model")
    given = feeds(bundle)
    first = compiled(bundle, "openvino", cache_dir=folder)[1](given)["logits"]
    assert folder is not None
    (blob,) = folder.glob("*.blob")
    backend, run = compiled(bundle, "openvino", cache_dir=folder)
    assert (run(given)["logits"] == first).all()
    assert backend.info.cache_dir == folder
    blob.write_bytes(blob.read_bytes()[:1000])  # damaged: compiled again
    assert (compiled(bundle, "openvino", cache_dir=folder)[1](given)["logits"] == first).all()


def test_damaged_compiled_graphs_are_compiled_again(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenVINO itself loads a blob with other weights, and computes other logits."""
    pytest.importorskip("openvino")
    folder = usable_cache(tmp_path / "cache", "model")
    assert folder is not None
    given = feeds(bundle)
    first = compiled(bundle, "openvino", cache_dir=folder)[1](given)["logits"]
    for share in (0.3, 0.6, 0.9, 0.99):
        (blob,) = folder.glob("*.blob")
        data = bytearray(blob.read_bytes())
        for place in range(int(share * len(data)), min(len(data), int(share * len(data)) + 64)):
            data[place] ^= 0x5A
        blob.unlink()  # the graphs above have it mapped into memory
        blob.write_bytes(data)
        caplog.clear()
        assert (compiled(bundle, "openvino", cache_dir=folder)[1](given)["logits"] == first).all()
        assert "is damaged" in caplog.text


def test_unwritable_cache_is_skipped(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert usable_cache(tmp_path / "file" / "cache", "model") is None
    assert "compiled graphs cannot be cached" in caplog.text
    assert usable_cache(None, "model") is None
    found = usable_cache("auto", "model")
    assert found is not None
    assert found.is_dir()
    if sys.platform == "linux":
        assert found == cache.resolve() / "cris-edge" / "compiled" / "model"


def test_available_runtimes_are_found_without_imports() -> None:
    code = (
        "import sys\nfrom cris_edge.backends import registry\n"
        "names = registry.available()\nassert names, names\n"
        "assert not {'onnxruntime', 'openvino'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the files that the Linux builds leave")
def test_onnxruntime_sends_no_telemetry(tiny: Path, tmp_path: Path) -> None:
    """Its telemetry leaves an identifier and a queue in the home folder, and runs a thread."""
    pytest.importorskip("onnxruntime")
    code = (
        "import sys\nfrom cris_edge import Segmenter\nimport numpy as np\n"
        "segmenter = Segmenter(sys.argv[1], runtime='onnxruntime', cache_dir=None)\n"
        "segmenter(np.zeros((9, 9, 3), np.uint8), 'red')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code, str(tiny)], check=True, timeout=60, env=environment)
    left = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*")}
    assert left <= {("cache",), ("cache", "cris-edge")}


def test_unknown_runtimes_are_refused_with_a_list() -> None:
    with pytest.raises(OptionError, match=r"Unknown runtime 'tensorflow'\. Available: openvino, onnxruntime"):
        registry.create("tensorflow")


def test_choice_is_explained() -> None:
    for name in ("openvino", "onnxruntime"):
        pytest.importorskip(name)
    assert registry.choose(["onnxruntime", "openvino"])[0] == "openvino"
    name, reason = registry.choose(["onnxruntime"])
    assert name == "onnxruntime"
    assert "onnxruntime" in reason
    with pytest.raises(RuntimeMissingError, match=r"it holds elsewhere"):
        registry.choose(["elsewhere"])


def test_choice_names_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "openvino" not in registry.available()
    name, reason = registry.choose(["onnxruntime", "openvino"])
    assert name == "onnxruntime"
    assert reason.startswith("openvino is not installed")
    with pytest.raises(RuntimeMissingError, match=r'pip install "cris-edge\[openvino\]"'):
        registry.choose(["openvino"])


class Zeros:
    """The smallest backend that another package could register."""

    name = "zeros"

    def __init__(self, options: BackendOptions) -> None:
        self.options = options

    @property
    def info(self) -> BackendInfo:
        return BackendInfo("zeros", "1.0", self.options.device, "float32")

    def compile(self, path: Path, spec: GraphSpec) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        return lambda inputs: {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in spec.outputs}

    def close(self) -> None:
        pass


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that registers `Zeros`, one runtime that cannot be loaded, and a name that is taken."""
    metadata = tmp_path / "zeros-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: zeros\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[cris_edge.backends]\nzeros = {__name__}:Zeros\nlost = no_such_module:Backend\nopenvino = {__name__}:Zeros\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[Zeros.__module__])


def test_other_packages_can_register_runtimes(registered: None) -> None:
    assert registry.names()[3:] == ["zeros", "lost"]
    backend = registry.create("zeros", BackendOptions(device="anything"))
    assert isinstance(backend, Zeros)
    assert backend.info.device == "anything"
    assert registry.choose(["zeros"]) == ("zeros", "zeros is the only installed runtime in this bundle")
    with pytest.raises(RuntimeMissingError, match=r"'lost' \(registered as no_such_module:Backend\) cannot be loaded"):
        registry.create("lost")


def test_built_in_names_cannot_be_replaced(registered: None) -> None:
    pytest.importorskip("openvino")
    assert not isinstance(registry.create("openvino"), Zeros)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no such signals on this platform")
def test_signals_and_forks_after_openvino_was_closed(tiny: Path) -> None:
    """OpenVINO's CPU plugin puts the stack for signals elsewhere; were it freed, the next signal would be the last."""
    pytest.importorskip("openvino")
    script = f"""
import gc, os, signal
import numpy as np
from cris_edge import Segmenter

seen, image = [], np.zeros((48, 64, 3), np.uint8)
signal.signal(signal.SIGUSR1, lambda *_: seen.append("delivered"))
first, second = (Segmenter({str(tiny)!r}, runtime="openvino", cache_dir=None) for _ in range(2))
first(image, "red"), second(image, "red")
first.close(), second.close()
del first, second
gc.collect()
taken = [bytearray(1 << 16) for _ in range(200)]  # what was freed is used again
os.kill(os.getpid(), signal.SIGUSR1)
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGUSR1)
    os._exit(len(seen))
print(*seen, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout.split()) == (0, ["delivered", "2"]), run.stderr


def test_importing_openvino_sends_no_telemetry(tmp_path: Path) -> None:
    """Its telemetry leaves an identifier in the home folder, and starts a thread and a process."""
    pytest.importorskip("openvino")
    script = (
        "import multiprocessing, sys, threading\n"
        "from cris_edge.backends import ov\n"
        "ov.shared_core(ov.load())\n"
        "print(threading.active_count(), multiprocessing.active_children(), 'openvino_telemetry' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.strip() == "1 [] False", run.stderr
    assert list(tmp_path.iterdir()) == []
