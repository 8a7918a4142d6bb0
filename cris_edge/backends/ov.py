"""OpenVINO on CPU, GPU and NPU, and AUTO, which chooses among them."""

from __future__ import annotations

import hashlib
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cris_edge.backends.base import (
    Array,
    BackendInfo,
    BackendOptions,
    DeviceReport,
    RuntimeReport,
    check_tensors,
    importing,
    one_of,
    refuse_extra,
)
from cris_edge.bundle.manifest import GraphSpec, TensorSpec
from cris_edge.device.compiled_cache import CompiledCache
from cris_edge.device.processor import default_threads, physical_cores
from cris_edge.errors import DeviceError, OptionError

NAME = "openvino"
_TELEMETRY = "openvino_telemetry"
_PRECISIONS = {"float32": ("FP32", "f32"), "bfloat16": ("BF16", "bf16"), "float16": ("FP16", "f16")}
_UNKNOWN = "a precision that the device does not report"
# Layers that dominate the run time, and so decide what precision a graph runs in.
_HEAVY = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul", "Deconvolution")

logger = logging.getLogger(__name__)


def load() -> Any:
    """Import OpenVINO without its telemetry: importing alone starts a process that sends an event."""
    with importing("OpenVINO", NAME), _no_telemetry():
        import openvino
    return openvino


@contextmanager
def _no_telemetry() -> Iterator[None]:
    """Hide the telemetry package during the import, which also saves 40 ms.

    If an app has imported it already, nothing is changed.
    """
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # marks the module as absent
    try:
        yield
    finally:
        sys.modules.pop(_TELEMETRY, None)


def devices(core: Any) -> dict[str, str]:
    """Return the devices of this machine by lower-case name; "gpu" is the first of several."""
    found = {}
    for device in core.available_devices:
        found[device.lower()] = device
        found.setdefault(device.partition(".")[0].lower(), device)
    return found


def shared_core(module: Any) -> Any:
    """Return this process's only `Core`: destroying several leaves the signal stack of the thread in freed memory."""
    if not _CORE:
        _CORE.append(module.Core())
    return _CORE[0]


_CORE: list[Any] = []


def describe() -> RuntimeReport:
    """Report the version and the devices of this machine."""
    module = load()
    core = shared_core(module)
    found = []
    for device in core.available_devices:
        able = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        precisions = tuple(name for name, (capability, _) in _PRECISIONS.items() if capability in able)
        found.append(DeviceReport(device, str(core.get_property(device, "FULL_DEVICE_NAME")), precisions))
    absent = [kind for kind in ("GPU", "NPU") if not any(device.name.startswith(kind) for device in found)]
    advice = f"no {' and no '.join(absent)} found; a driver may be missing" if absent else ""
    return RuntimeReport(_version(module), tuple(found), advice)


def _version(module: Any) -> str:
    return str(module.__version__).partition("-")[0]


class OvBackend:
    """OpenVINO with the given options.

    `BackendOptions.device` is one that OpenVINO finds, or "AUTO", its own choice among them before the first call.
    `BackendOptions.precision` "auto" is the device's default: bfloat16 on a CPU with such arithmetic, but float32 for
    quantized graphs on a CPU.
    """

    name = NAME
    compiles_together = False  # one in ten children forked afterwards was seen to hang

    def __init__(self, options: BackendOptions) -> None:
        self._ov = load()
        refuse_extra(options.extra, (), "OpenVINO")
        self._core = shared_core(self._ov)
        known = devices(self._core)
        if options.device.strip().lower() == "npu" and "npu" not in known:
            raise OptionError(
                f"OpenVINO finds no NPU (available: {', '.join(dict.fromkeys(known.values()))}). An NPU needs its "
                "driver, which also brings the compiler; the package holds only the plugin."
            )
        self._device = one_of("device", options.device, {**known, "auto": "AUTO"}, "OpenVINO")
        if self._device == "AUTO" and set(known.values()) == {"CPU"}:
            self._device = "CPU"  # the same choice, loaded faster
        self._options = options
        self._config = self._checked_config()
        self._compiled: dict[Path, Any] = {}
        self._info: BackendInfo | None = None

    def _checked_config(self) -> dict[str, Any]:
        options, device = self._options, self._device
        config: dict[str, Any] = {"PERFORMANCE_HINT": options.hint.upper()}
        if device == "AUTO":
            # Otherwise the first calls silently run on the CPU while another device compiles.
            config["ENABLE_STARTUP_FALLBACK"] = False
        if options.threads is not None:
            if not device.startswith("CPU"):
                raise OptionError(f"threads={options.threads} was given for {device}; only the CPU has threads.")
            config["INFERENCE_NUM_THREADS"] = options.threads
        elif device.startswith("CPU") and default_threads() < physical_cores():
            # OpenVINO counts the cores of the machine, not those of a container's quota.
            config["INFERENCE_NUM_THREADS"] = default_threads()
        if options.precision != "auto":
            config["INFERENCE_PRECISION_HINT"] = self._precision_hint()
        elif options.quantized and device.startswith("CPU"):
            # In quantized graphs bfloat16 saves 0 to 3 % of the time and shifts values to other levels: masks agree
            # with PyTorch's by 0.988 instead of 0.992 (docs/quantization.md).
            config["INFERENCE_PRECISION_HINT"] = _PRECISIONS["float32"][1]
        return config

    def _precision_hint(self) -> str:
        """Return OpenVINO's name of the precision; OpenVINO itself would silently replace an unsupported one."""
        if self._device == "AUTO":
            raise OptionError(f"precision={self._options.precision!r} was given for AUTO; choose a device instead.")
        able = set(self._core.get_property(self._device, "OPTIMIZATION_CAPABILITIES"))
        known = {name: hint for name, (capability, hint) in _PRECISIONS.items() if capability in able}
        if self._options.precision not in known:
            raise OptionError(
                f"OpenVINO cannot compute in {self._options.precision} on this {self._device}. Available: "
                f"{', '.join(known)}."
            )
        return known[self._options.precision]

    @property
    def info(self) -> BackendInfo:
        """What the runtime uses, read back from the compiled graphs."""
        if self._info is None:
            self._info = self._read_info()
        return self._info

    def _read_info(self) -> BackendInfo:
        options = self._options
        device, precisions, quantized = self._device, [], False
        threads: int | None = None
        parallel = 1
        for _, compiled in sorted(self._compiled.items()):  # in any order of compilation
            device = ", ".join(str(name).strip("()") for name in compiled.get_property("EXECUTION_DEVICES"))
            precisions.append(_precision(compiled, device))
            threads = _read(compiled, device, "INFERENCE_NUM_THREADS") if device.startswith("CPU") else None
            parallel = max(parallel, int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))
            quantized = quantized or _is_quantized(compiled)
        precision = "+".join(dict.fromkeys(precisions)) or "unknown before a graph is compiled"
        named = self._device != "AUTO"
        return BackendInfo(
            runtime=NAME,
            version=_version(self._ov),
            device=device,
            device_name=str(self._core.get_property(self._device, "FULL_DEVICE_NAME")) if named else "",
            precision=f"int8+{precision}" if quantized else precision,
            threads=threads,
            hint=options.hint,
            parallel=parallel if options.hint == "throughput" else 1,
            cache_dir=options.cache_dir,
        )

    def compile(self, path: Path, spec: GraphSpec) -> OvGraph:
        """Load one IR or ONNX file; see `Backend.compile`."""
        return self._compile(path, spec, self._compile_path)

    def compile_bytes(self, path: Path, spec: GraphSpec, model: bytes, weights: bytes | None) -> OvGraph:
        """Load the content of files that were read already, without the cache; errors are those of `compile`."""

        def compiled(path: Path) -> Any:
            network = self._core.read_model(model=model, weights=weights or b"")
            return self._core.compile_model(network, self._device, self._config)

        return self._compile(path, spec, compiled)

    def _compile_path(self, path: Path) -> Any:
        with self._cached(path) as cache:
            return self._core.compile_model(str(path), self._device, {**self._config, **cache})

    def _compile(self, path: Path, spec: GraphSpec, compile_model: Callable[[Path], Any]) -> OvGraph:
        try:
            compiled = compile_model(path)
        except (RuntimeError, UnicodeDecodeError) as error:  # names that are not UTF-8 are quoted in messages
            raise DeviceError(
                f"OpenVINO {_version(self._ov)} cannot run {path} on {self._device}: {_last_line(error)}"
            ) from error
        inputs = [_tensor(port, spec.inputs) for port in compiled.inputs]
        outputs = [_tensor(port, spec.outputs) for port in compiled.outputs]
        check_tensors(path, spec, inputs, outputs)
        self._check_given(compiled)
        self._compiled[path] = compiled
        self._info = None
        return OvGraph(self._ov.Tensor, compiled, path, [tensor.name for tensor in inputs], outputs)

    @contextmanager
    def _cached(self, path: Path) -> Iterator[dict[str, str]]:
        """Yield the settings by which OpenVINO takes a graph from the cache, or adds it."""
        if self._options.cache_dir is None:
            yield {}
            return
        # One name for one graph with one configuration, so that only what may be used is read and checked.
        key = repr((_version(self._ov), self._device, sorted(self._config.items()), str(path)))
        prefix = f"{path.stem}-{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:12]}"
        with CompiledCache(self._options.cache_dir).staging(prefix) as staging:
            yield {} if staging is None else {"CACHE_DIR": str(staging)}

    def _check_given(self, compiled: Any) -> None:
        """Compare the requested options with those in use."""
        options = self._options
        if options.precision != "auto":
            used = _precision(compiled, self._device)
            if used == _UNKNOWN:
                logger.warning("%s does not report whether it computes in %s", self._device, options.precision)
            elif used != options.precision:
                raise DeviceError(
                    f"OpenVINO computes in {used} on {self._device} instead of {options.precision}; use 'auto' or "
                    f"another precision."
                )
        if options.threads is not None:
            threads = compiled.get_property("INFERENCE_NUM_THREADS")
            if threads != options.threads:
                logger.warning("OpenVINO uses %d threads instead of %d", threads, options.threads)

    def close(self) -> None:
        """Drop the graphs; a compiled graph is freed with the last reference to it."""
        self._info = self.info  # remains available afterwards
        self._compiled.clear()


class OvGraph:
    """One compiled graph, with as many infer requests as there were concurrent calls."""

    def __init__(
        self, tensor: Any, compiled: Any, path: Path, inputs: Sequence[str], outputs: Sequence[TensorSpec]
    ) -> None:
        self._tensor = tensor
        self._compiled = compiled
        self._path = path
        self._inputs = inputs  # in the graph's order, as are the outputs
        self._outputs = outputs
        self._idle: list[Any] = []
        self._lock = threading.Lock()

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs; see `CompiledGraph`."""
        with self._lock:
            request = self._idle.pop() if self._idle else None
        try:
            if request is None:
                request = self._compiled.create_infer_request()
            # The runtime reads the caller's arrays and writes into new ones, without copies if the device supports it.
            results = {tensor.name: np.empty(tensor.shape, tensor.dtype) for tensor in self._outputs}
            for index, array in enumerate(results.values()):
                request.set_output_tensor(index, self._tensor(array, shared_memory=True))
            feeds = {index: inputs[name] for index, name in enumerate(self._inputs)}
            request.infer(feeds, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise DeviceError(f"OpenVINO failed in {self._path}: {_last_line(error)}") from error
        with self._lock:  # a failed request is dropped
            self._idle.append(request)
        return results


def _tensor(port: Any, stated: Iterable[TensorSpec]) -> TensorSpec:
    """Return the spec of a port; of its several names, the one that the manifest states."""
    names = port.get_names()
    shape = port.partial_shape
    sides = tuple(side.get_length() if side.is_static else -1 for side in shape) if shape.rank.is_static else (-1,)
    name = next((tensor.name for tensor in stated if tensor.name in names), min(names, default="an unnamed tensor"))
    return TensorSpec(name, sides, port.element_type.to_dtype().name)


def _read(compiled: Any, device: str, key: str) -> Any:
    """Return a property of a compiled graph; AUTO nests those of the chosen device."""
    try:
        return compiled.get_property(key)
    except RuntimeError:
        pass
    try:
        return compiled.get_property("DEVICE_PROPERTIES")[device].get(key)
    except (RuntimeError, KeyError):
        return None


def _precision(compiled: Any, device: str) -> str:
    """Return the precision of float arithmetic."""
    hint = _read(compiled, device, "INFERENCE_PRECISION_HINT")
    if hint is None:
        return _UNKNOWN
    name = str(hint.get_type_name())
    return {short: precision for precision, (_, short) in _PRECISIONS.items()}.get(name, name)


def _is_quantized(compiled: Any) -> bool:
    """Return whether a heavy layer runs in int8."""
    try:
        operations = compiled.get_runtime_model().get_ops()
    except RuntimeError:  # a device that does not show its graph
        return False
    for operation in operations:
        info = operation.get_rt_info()
        if (
            "runtimePrecision" in info
            and info["layerType"].astype(str) in _HEAVY
            and info["runtimePrecision"].astype(str) in ("i8", "u8")
        ):
            return True
    return False


def _last_line(error: Exception) -> str:
    """What went wrong: the first lines of OpenVINO's messages are places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
