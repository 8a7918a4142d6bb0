"""The engine: the three graphs of a bundle, compiled by one runtime in this process."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cris_edge.backends import registry
from cris_edge.backends.base import Backend, BackendInfo, BackendOptions, CompiledGraph
from cris_edge.bundle import GRAPHS, Bundle
from cris_edge.device.memory import memory_bytes
from cris_edge.errors import OptionError, RuntimeFailure

logger = logging.getLogger(__name__)

# Total file size up to which a backend with `compiles_together` compiles the three graphs in parallel. Compiling takes
# several times a graph's size in memory, which for larger models matters more than a second core.
_TOGETHER = 100 << 20

# Memory of a process with a runtime and no model, and per byte of graph files. In OpenVINO the first was 123 MB, and
# the default model, with files of 15 MB, took 117 MB more.
_BASE_MEMORY = 128 << 20
_MEMORY_FACTOR = 8

T = TypeVar("T")


@dataclass(frozen=True)
class EngineInfo(BackendInfo):
    """The runtime in effect, and why it was chosen.

    Attributes:
        model: Name of the bundle.
        path: Folder of the bundle.
        reason: Why this runtime was chosen.
    """

    model: str = ""
    path: Path | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def __str__(self) -> str:
        where = f"{self.device} ({self.device_name})" if self.device_name else self.device
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        return f"{self.model} on {self.runtime} {self.version}, {where}, {self.precision}{threads}: {self.reason}"


@dataclass(frozen=True)
class Graphs:
    """The three compiled graphs and their runtime."""

    backend: Backend
    image_encoder: CompiledGraph
    text_encoder: CompiledGraph
    mask_decoder: CompiledGraph


class Engine:
    """Compiles a bundle's graphs, and recompiles them after a fork, which a runtime's threads do not survive.

    Args:
        bundle: The bundle.
        runtime: A name in the registry; "auto" for the best installed runtime of the bundle; or a backend.
        options: Options of the runtime; ignored if a backend is given.

    Attributes:
        lock: For state that the owner shares between threads; replaced after a fork.
    """

    def __init__(self, bundle: Bundle, runtime: str | Backend, options: BackendOptions) -> None:
        self._bundle = bundle
        self._options = options
        self._runtime = runtime
        self._reason = "it was requested" if isinstance(runtime, str) else "its backend was given"
        if runtime == "auto":
            self._runtime, self._reason = registry.choose(bundle.manifest.runtimes)
        self._closed = False
        self._forked = False
        self.lock = threading.RLock()
        self._graphs: Graphs | None = self._compile()
        _alive.add(self)

    def _compile(self) -> Graphs:
        preparing = _start(self._prepare)
        try:
            runtime = self._runtime
            if isinstance(runtime, str):
                self._bundle.graph_files(runtime)  # fail before loading a runtime that the bundle does not support
                quantized = self._bundle.manifest.precision == "int8"
                backend = registry.create(runtime, replace(self._options, quantized=quantized))
            else:
                backend = runtime
            files = self._bundle.graph_files(backend.name)
            weights = {name: file for name, path in files.items() if (file := self._bundle.weights(path)) is not None}
            _warn_of_memory(sum(file.stat().st_size for file in {*files.values(), *weights.values()}))
            tasks = [partial(self._compile_one, backend, name, files[name], weights.get(name)) for name in GRAPHS]
            size = sum(file.stat().st_size for file in files.values())
            together = getattr(backend, "compiles_together", False) and size <= _TOGETHER and not self._forked
            with self._bundle.unchanged([] if self._bundle.strict else [*files.values(), *weights.values()]):
                return Graphs(backend, *(_together(tasks) if together else [task() for task in tasks]))
        finally:
            preparing.join()

    def _compile_one(self, backend: Backend, name: str, path: Path, weights: Path | None) -> CompiledGraph:
        spec = self._bundle.manifest.graphs[name]
        if not self._bundle.strict:
            return backend.compile(path, spec)
        compile_bytes = getattr(backend, "compile_bytes", None)
        if compile_bytes is None:
            raise OptionError(f"The runtime {backend.name!r} opens graphs itself; use it without strict=True.")
        data = self._bundle.read_path(path), None if weights is None else self._bundle.read_path(weights)
        graph: CompiledGraph = compile_bytes(path, spec, *data)
        return graph

    def _prepare(self) -> None:
        """Load what the first call needs besides the graphs while they compile; errors recur in that call."""
        with suppress(Exception):
            self._bundle.tokenizer  # noqa: B018
        with suppress(Exception):
            import cv2  # noqa: F401

    @property
    def graphs(self) -> Graphs:
        """The graphs, compiled in this process.

        Raises:
            RuntimeFailure: `close` was called, or a backend was given and the process has forked since.
        """
        graphs = self._graphs
        if graphs is not None:
            return graphs
        with self.lock:
            if self._closed:
                raise RuntimeFailure("This Segmenter was closed; create a new one.")
            if self._graphs is None:
                if not isinstance(self._runtime, str):
                    raise RuntimeFailure(
                        "This Segmenter was given a backend before the process forked, and the runtime's threads do "
                        "not survive a fork; create backend and Segmenter after the fork."
                    )
                logger.info("recompiling the graphs after a fork")
                self._graphs = self._compile()
            return self._graphs

    @property
    def info(self) -> EngineInfo:
        """The runtime in effect, and why it was chosen."""
        info = self.graphs.backend.info
        return EngineInfo(
            **{entry.name: getattr(info, entry.name) for entry in fields(BackendInfo)},
            model=self._bundle.manifest.name,
            path=self._bundle.path,
            reason=self._reason,
        )

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Free the graphs; running calls finish. A backend passed by the caller is not closed."""
        with self.lock:
            graphs, self._graphs, self._closed = self._graphs, None, True
        if graphs is not None and isinstance(self._runtime, str):
            graphs.backend.close()

    def _after_fork(self) -> None:
        self._forked = True
        self.lock = threading.RLock()  # the old one may be held by a thread that exists only in the parent
        if self._graphs is not None:
            _abandon(self._graphs)
            self._graphs = None


def _warn_of_memory(size: int) -> None:
    """Warn if this process may not have the memory that graphs of `size` bytes take."""
    limit, needed = memory_bytes(), _BASE_MEMORY + _MEMORY_FACTOR * size
    if limit is not None and limit < needed:
        logger.warning(
            "this process may use %.0f MB of memory, and the model may need about %.0f MB", limit / 1e6, needed / 1e6
        )


def _start(task: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=task, name="cris-edge-start")
    thread.start()
    return thread


def _together(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run tasks in parallel, the first one in this thread; return their results or raise the first error."""
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}

    def run(index: int) -> None:
        try:
            results[index] = tasks[index]()
        except BaseException as error:
            errors[index] = error

    threads = [_start(partial(run, index)) for index in range(1, len(tasks))]
    run(0)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[min(errors)]
    return [results[index] for index in range(len(tasks))]


_alive: weakref.WeakSet[Engine] = weakref.WeakSet()
_abandoned: list[Graphs] = []


_opencv_threads: list[int] = []


def _before_fork() -> None:
    """End OpenCV's worker threads: one that holds a lock during the fork makes the child wait for it forever.

    Seen in `preprocess` of one child in 400 on a busy machine, with OpenCV 5.0. OpenCV starts the threads again when it
    needs them.
    """
    module = sys.modules.get("cv2")
    if _alive and module is not None and hasattr(module, "getNumThreads"):
        threads = module.getNumThreads()
        if threads > 1:
            module.setNumThreads(1)
            _opencv_threads.append(threads)


def _restore_opencv() -> None:
    if _opencv_threads:
        sys.modules["cv2"].setNumThreads(_opencv_threads.pop())


def _after_fork() -> None:
    # Sessions that are garbage already, in a cycle, must not be collected here: freeing one waits for its threads,
    # which exist in the parent alone.
    gc.freeze()
    _restore_opencv()
    for engine in list(_alive):
        engine._after_fork()


def _abandon(graphs: Graphs) -> None:
    """Leak graphs inherited from the parent: freeing them would wait for threads that do not exist in the child."""
    import ctypes

    _abandoned.append(graphs)
    if hasattr(ctypes, "pythonapi"):  # CPython clears modules at exit, so the list alone does not keep them
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(graphs))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_restore_opencv, after_in_child=_after_fork)
