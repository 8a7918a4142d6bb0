"""Qualcomm's HTP, the NPU of Snapdragon chips, through ONNX Runtime's plugin, and its emulator on x86-64."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cris_edge.backends import ort
from cris_edge.backends.base import (
    Array,
    BackendInfo,
    BackendOptions,
    DeviceReport,
    RuntimeReport,
    check_tensors,
    one_of,
    refuse_extra,
)
from cris_edge.bundle.manifest import GraphSpec
from cris_edge.bundle.onnx_header import OnnxHeader, read_onnx_header
from cris_edge.device.compiled_cache import CompiledCache
from cris_edge.errors import BundleError, DeviceError, OptionError, RuntimeMissingError, first_line

NAME = "qnn"
PROVIDER = "QNNExecutionProvider"
NPU, EMULATOR = "NPU", "emulator"
ACTIVATIONS = "activations"  # metadata key of an ONNX file: the bits of its activations
COMPILED = "EPContext"  # the operator that stands for a compiled graph
# The HTP also converts the graph's float inputs and outputs.
SETTINGS = {"offload_graph_io_quantization": "0"}
_SPEED = {"latency": "burst", "throughput": "sustained_high_performance"}

logger = logging.getLogger(__name__)
_lock = threading.Lock()
_registered: list[Any] = []


def load() -> tuple[Any, Any]:
    """Return ONNX Runtime with the provider registered, and the provider's package."""
    runtime = ort.load()
    try:
        import onnxruntime_qnn as package
    except ModuleNotFoundError:
        raise RuntimeMissingError(
            f'Qualcomm\'s provider is not installed; install it with pip install "cris-edge[{NAME}]" '
            "(Linux on x86-64, or Windows; Python 3.11 or newer)."
        ) from None
    except (ImportError, OSError) as error:
        raise RuntimeMissingError(_broken(error)) from error
    with _lock:
        if not _registered:
            try:
                _load_quietly(package.get_qnn_htp_path())
                runtime.register_execution_provider_library(PROVIDER, package.get_library_path())
            except Exception as error:  # ONNX Runtime's exceptions have no common base
                raise RuntimeMissingError(_broken(error)) from error
            _registered.append(package)
    return runtime, package


def _broken(error: Exception) -> str:
    return (
        f"Qualcomm's provider is installed but cannot be loaded ({first_line(error)}); it needs an onnxruntime of the "
        f"same release date."
    )


def _load_quietly(library: str) -> None:
    """Load the emulator without its message on standard output, which is reserved for JSON."""
    if os.name != "posix" or not Path(library).exists():
        return
    import ctypes
    import sys

    sys.stdout.flush()
    kept = os.dup(1)
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        with suppress(OSError):  # reported when the provider loads it
            ctypes.CDLL(library)
        ctypes.CDLL(None).fflush(None)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def devices(runtime: Any) -> dict[str, Any]:
    """Return Qualcomm's devices: "NPU" if the chip has one, "emulator" on x86-64."""
    found: dict[str, Any] = {}
    for device in runtime.get_ep_devices():
        if device.ep_name != PROVIDER:
            continue
        kind = str(device.device.type).rpartition(".")[2]
        if kind == "NPU":
            found.setdefault(NPU, device)
        elif kind == "CPU" and platform.machine().lower() in ("x86_64", "amd64"):
            found.setdefault(EMULATOR, device)
    return found


def describe() -> RuntimeReport:
    """Report the version and the devices of this machine."""
    runtime, package = load()
    names = {
        NPU: "Hexagon Tensor Processor",
        EMULATOR: "emulator of the Hexagon Tensor Processor: for checks, takes seconds per image",
    }
    found = tuple(DeviceReport(name, names[name], ("int8", "int16")) for name in devices(runtime))
    absent = "" if any(device.name == NPU for device in found) else "no Qualcomm NPU is found"
    return RuntimeReport(str(package.__version__), found, absent)


class QnnBackend:
    """The HTP with the given options.

    `BackendOptions.device` is "NPU" (also "auto"), or "emulator" on x86-64, which computes the same in seconds instead
    of milliseconds. A graph that would partly fall back to the CPU is refused, unless ``extra={"cpu_fallback": True}``
    allows it; `info` then reports how many nodes. If a binary does not load because it was compiled for another chip,
    its source graph is compiled instead, with a warning, at each start or once with a cache.
    """

    name = NAME

    def __init__(self, options: BackendOptions) -> None:
        self._ort, self._package = load()
        refuse_extra(options.extra, ("cpu_fallback",), "Qualcomm's provider")
        found = devices(self._ort)
        known = {name.lower(): name for name in found}
        if NPU in found:
            known["auto"] = NPU
        if not known:
            raise DeviceError("Qualcomm's provider finds no NPU, and has no emulator for this processor.")
        self._device = one_of("device", options.device, known, "Qualcomm's provider")
        self._ep_device = found[self._device]
        if options.precision != "auto":
            raise OptionError(
                f"Graphs for the HTP compute in integers, but {options.precision} was requested; use 'auto'."
            )
        if options.threads is not None:
            raise OptionError(f"threads={options.threads} was given for the HTP; only the CPU has threads.")
        self._fallback = bool(options.extra.get("cpu_fallback", False))
        self._options = options
        self._wide = False
        self._left: list[str] = []
        self._compiled_here: list[str] = []

    @property
    def info(self) -> BackendInfo:
        """What the runtime uses."""
        notes = []
        if self._left:
            notes.append(f"{len(self._left)} nodes on the CPU")
        if self._compiled_here:
            notes.append(f"{', '.join(self._compiled_here)} compiled on this device")
        return BackendInfo(
            runtime=NAME,
            version=str(self._package.__version__),
            device=f"{self._device}, CPU" if self._left else self._device,
            device_name="; ".join(notes),
            precision="int8+int16" if self._wide else "int8",
            hint=self._options.hint,
            cache_dir=self._options.cache_dir,
        )

    def compile(self, path: Path, spec: GraphSpec) -> QnnGraph:
        """Load or compile one graph, one at a time; see `Backend.compile`."""
        with _lock:
            return self._compile(path, spec)

    def _compile(self, path: Path, spec: GraphSpec) -> QnnGraph:
        try:
            session = self._session(path)
        except DeviceError as error:
            source = path.parent.parent / path.name
            if not is_compiled(path) or not source.is_file():
                raise
            logger.warning("%s; compiling %s instead", str(error).rstrip("."), source)
            session = self._session(source)
            self._compiled_here.append(path.stem)
        check_tensors(path, spec, map(ort.tensor, session.get_inputs()), map(ort.tensor, session.get_outputs()))
        self._wide = self._wide or _is_wide(path)
        return QnnGraph(session, path)

    def _session(self, path: Path) -> Any:
        """Return the session of a file; with a cache, a graph is compiled once."""
        cache = self._options.cache_dir
        if cache is None or self._fallback or is_compiled(path):
            return self._open(path)
        name = f"{path.stem}-{self._device}-{self._package.__version__}.onnx"
        kept = CompiledCache(cache).find(name)
        if kept is not None:
            with suppress(DeviceError):  # of another driver; compiled again
                return self._open(kept)
        partial = cache / f".{path.stem}-{secrets.token_hex(8)}.onnx"
        try:
            session = self._open(path, compiled=partial)
            CompiledCache(cache).publish([(partial, name)])
        finally:
            partial.unlink(missing_ok=True)
        return session

    def _open(self, path: Path, compiled: Path | None = None) -> Any:
        runtime = self._ort
        settings = runtime.SessionOptions()
        settings.log_severity_level = 4  # errors are raised, not printed
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "0" if self._fallback else "1")
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1" if self._fallback else "0")
        if compiled is not None:
            settings.add_session_config_entry("ep.context_enable", "1")
            settings.add_session_config_entry("ep.context_embed_mode", "1")
            settings.add_session_config_entry("ep.context_file_path", os.fspath(compiled))
        provider = {
            **SETTINGS,
            "backend_path": self._package.get_qnn_htp_path(),
            "htp_performance_mode": _SPEED[self._options.hint],
        }
        try:
            settings.add_provider_for_devices([self._ep_device], provider)
            session = runtime.InferenceSession(os.fspath(path), settings)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise DeviceError(
                f"The {self._device} cannot run {path} ({first_line(error)}); export it for this chip, or use another "
                f"runtime."
            ) from error
        if self._fallback:
            left = [f"{path.stem}: {node}" for node in left_to_cpu(session)]
            self._left += left
            if left:
                logger.warning("%d nodes of %s fall back to the CPU", len(left), path)
        return session

    def close(self) -> None:
        """Do nothing: a session is freed with the last reference to it."""


class QnnGraph:
    """One session; the HTP runs one call at a time."""

    def __init__(self, session: Any, path: Path) -> None:
        self._graph = ort.OrtGraph(session, path)
        self._lock = threading.Lock()

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs; see `CompiledGraph`."""
        with self._lock:
            return self._graph(inputs)


def left_to_cpu(session: Any) -> Iterator[str]:
    """Yield operator and name of every node outside the provider; the session must record assignments."""
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name != PROVIDER:
            yield from (f"{node.op_type} {node.name}" for node in part.get_nodes())


def is_compiled(path: Path) -> bool:
    """Return whether an ONNX file holds a compiled graph."""
    header = _header(path)
    return header is not None and any(operator == COMPILED for _, operator in header.operators)


def _is_wide(path: Path) -> bool:
    """Return whether a graph has 16-bit activations; copies that the provider caches do not state it."""
    header = _header(path)
    return header is not None and "int16" in header.metadata.get(ACTIVATIONS, "")


def _header(path: Path) -> OnnxHeader | None:
    try:
        return read_onnx_header(path)
    except BundleError:
        return None
