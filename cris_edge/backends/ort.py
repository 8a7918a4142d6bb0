"""ONNX Runtime on the CPU and on other execution providers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from cris_edge.bundle.onnx_header import parse_onnx_header, read_onnx_header
from cris_edge.device.processor import default_threads, processor_name
from cris_edge.errors import BundleError, DeviceError, OptionError, first_line

NAME = "onnxruntime"
_SUFFIX = "ExecutionProvider"
_CPU = f"CPU{_SUFFIX}"
# Azure's provider sends the input to a server.
_REMOTE = {"AzureExecutionProvider"}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
# A graph with any of these operators computes with integers.
_QUANTIZED = {"QuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}


def load() -> Any:
    """Import ONNX Runtime with its telemetry off: builds of 1.31 send events by default, on Linux too."""
    # Read when the library starts: disable_telemetry_events alone comes after the first event. It also avoids a thread
    # that makes a forked child hang when it exits.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with importing("ONNX Runtime", NAME):
        import onnxruntime
    onnxruntime.disable_telemetry_events()  # in case an app imported it first
    return onnxruntime


def devices(module: Any) -> dict[str, str]:
    """Return devices by lower-case name, the CPU first: "cuda" and "cudaexecutionprovider" are both "CUDA"."""
    found = {}
    for provider in sorted(set(module.get_available_providers()) - _REMOTE, key=lambda name: (name != _CPU, name)):
        device = provider.removesuffix(_SUFFIX)
        found[device.lower()] = device
        found[provider.lower()] = device
    return found


def describe() -> RuntimeReport:
    """Report the version and the devices of this machine."""
    module = load()
    found = tuple(
        DeviceReport(device, processor_name(), ("float32",)) if device == "CPU" else DeviceReport(device)
        for device in dict.fromkeys(devices(module).values())
    )
    return RuntimeReport(module.__version__, found)


class OrtBackend:
    """ONNX Runtime with the given options.

    `BackendOptions.device` is the short name of an execution provider ("CPU", "CUDA", "CoreML", "XNNPACK", …) or its
    full name; "auto" is the CPU. On other providers, a graph that would partly fall back to the CPU is refused. The CPU
    computes in float32; with the hint "throughput" each call takes one thread, for as many concurrent calls as threads.
    """

    name = NAME
    compiles_together = True

    def __init__(self, options: BackendOptions) -> None:
        self._ort = load()
        refuse_extra(options.extra, (), "ONNX Runtime")
        known = devices(self._ort)
        self._device = one_of("device", options.device, {"auto": "CPU", **known}, "ONNX Runtime")
        self._provider = self._device + _SUFFIX
        self._options = options
        self._provider_options: dict[str, str] = {}
        self._check_precision()
        self._threads = options.threads or default_threads()
        self._graphs: list[Path] = []
        self._info: BackendInfo | None = None

    def _check_precision(self) -> None:
        precision, device = self._options.precision, self._device
        if precision == "auto" or (precision == "float32" and self._provider == _CPU):
            return
        if precision == "float32" and self._provider == "CUDAExecutionProvider":
            self._provider_options["use_tf32"] = "0"
            return
        if self._provider == _CPU:
            raise OptionError(
                f"ONNX Runtime computes in float32 on the CPU, but {precision} was requested; use 'auto'."
            )
        raise OptionError(
            f"ONNX Runtime leaves the precision to {device}, but {precision} was requested; use 'auto' or the CPU."
        )

    @property
    def _intra_threads(self) -> int:
        return 1 if self._options.hint == "throughput" else self._threads

    @property
    def info(self) -> BackendInfo:
        """What the runtime uses."""
        if self._info is None:
            self._info = self._read_info()
        return self._info

    def _read_info(self) -> BackendInfo:
        on_cpu = self._provider == _CPU
        rest = "float32" if on_cpu or self._options.precision == "float32" else "provider's choice"
        return BackendInfo(
            runtime=NAME,
            version=self._ort.__version__,
            device=self._device,
            device_name=processor_name() if on_cpu else "",
            precision=f"int8+{rest}" if any(map(_is_quantized, self._graphs)) else rest,
            threads=self._threads if on_cpu else None,
            hint=self._options.hint,
            parallel=self._threads if on_cpu and self._options.hint == "throughput" else 1,
        )

    def compile(self, path: Path, spec: GraphSpec) -> OrtGraph:
        """Load one ONNX file; see `Backend.compile`."""
        return self._compile(path, spec, os.fspath(path))

    def compile_bytes(self, path: Path, spec: GraphSpec, model: bytes, weights: bytes | None) -> OrtGraph:
        """Load the content of an ONNX file that was read already; errors are those of `compile`."""
        if weights is not None or parse_onnx_header(model).external_data:  # would be read from the working directory
            raise BundleError(f"{path} keeps weights in another file; load it without strict=True.")
        return self._compile(path, spec, model)

    def _compile(self, path: Path, spec: GraphSpec, source: str | bytes) -> OrtGraph:
        ort = self._ort
        settings = ort.SessionOptions()
        settings.log_severity_level = 4  # errors are raised, not printed
        settings.intra_op_num_threads = self._intra_threads
        settings.inter_op_num_threads = 1
        # A session's threads keep spinning after its run. The three graphs run in turn, each with its own threads:
        # without this, the threads of the previous graph compete with those of the running one.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        if self._provider != _CPU:
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = ort.InferenceSession(
                source, settings, providers=[(self._provider, self._provider_options)], enable_fallback=0
            )
        except Exception as error:  # its exceptions have no common base
            raise DeviceError(
                f"ONNX Runtime {ort.__version__} cannot run {path} on {self._device}: {first_line(error)}"
            ) from error
        if session.get_providers()[0] != self._provider:
            raise DeviceError(
                f"ONNX Runtime would run {path} on {session.get_providers()[0]} instead of {self._provider}; check the "
                f"driver, or choose that device."
            )
        check_tensors(path, spec, map(tensor, session.get_inputs()), map(tensor, session.get_outputs()))
        self._graphs.append(path)
        self._info = None
        return OrtGraph(session, path)

    def close(self) -> None:
        """Do nothing: a session is freed with the last reference to it."""


class OrtGraph:
    """One session, which several threads may run concurrently."""

    def __init__(self, session: Any, path: Path) -> None:
        self._session = session
        self._path = path
        self._inputs = [tensor.name for tensor in session.get_inputs()]
        self._outputs = [tensor.name for tensor in session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs; see `CompiledGraph`."""
        try:
            values = self._session.run(self._outputs, {name: inputs[name] for name in self._inputs})
        except Exception as error:  # its exceptions have no common base
            raise DeviceError(f"ONNX Runtime failed in {self._path}: {first_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))


def tensor(value: Any) -> TensorSpec:
    """Return the spec of a session's input or output."""
    # A dynamic axis is a name or None; -1 matches no manifest.
    shape = tuple(side if isinstance(side, int) else -1 for side in value.shape)
    return TensorSpec(value.name, shape, _DTYPES.get(value.type, value.type))


def _is_quantized(path: Path) -> bool:
    """Return whether an ONNX file has quantized operators, which the runtime does not report."""
    try:
        return any(operator in _QUANTIZED for _, operator in read_onnx_header(path).operators)
    except BundleError:
        return False
