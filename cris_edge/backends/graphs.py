"""Engine: the three graphs of a bundle, compiled by one runtime in this process."""

from __future__ import annotations

import logging
import os
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
from cris_edge.errors import RuntimeFailure

logger = logging.getLogger(__name__)

# Bytes of the files of three graphs that are compiled at the same time, by a backend with `compiles_together`. While a
# graph is compiled it takes several times its size: beyond this, memory is worth more than a second core.
_TOGETHER = 100 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class EngineInfo(BackendInfo):
    """What really runs, and why.

    Attributes:
        model: Name of the bundle.
        path: Its folder.
        reason: Why this runtime.
    """

    model: str = ""
    path: Path | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def __str__(self) -> str:
        where = f"{self.device} ({self.device_name})" if self.device_name else self.device
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        return f"{self.model} on {self.runtime} {self.version}, {where}, {self.precision}{threads}: {self.reason}"


@dataclass(frozen=True)
class Graphs:
    """The three graphs, ready to run, and the runtime that runs them."""

    backend: Backend
    image_encoder: CompiledGraph
    text_encoder: CompiledGraph
    mask_decoder: CompiledGraph


class Engine:
    """Compiles a bundle, and again in a child process, where the threads that a runtime had in the parent are missing.

    Args:
        bundle: The model.
        runtime: A name of the registry; "auto" for the best that is installed and that the bundle holds; or a backend.
        options: For the runtime; not used where a backend is given.

    Attributes:
        lock: To be held for what its owner shares between threads; a new one after a fork.
    """

    def __init__(self, bundle: Bundle, runtime: str | Backend, options: BackendOptions) -> None:
        self._bundle = bundle
        self._options = options
        self._runtime = runtime
        self._reason = "it was asked for" if isinstance(runtime, str) else "its backend was given"
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
                self._bundle.graph_files(runtime)  # whether it is there at all, before the runtime is loaded
                quantized = self._bundle.manifest.precision == "int8"
                backend = registry.create(runtime, replace(self._options, quantized=quantized))
            else:
                backend = runtime
            files, specs = self._bundle.graph_files(backend.name), self._bundle.manifest.graphs
            tasks = [partial(backend.compile, files[name], specs[name]) for name in GRAPHS]
            size = sum(file.stat().st_size for file in files.values())
            together = getattr(backend, "compiles_together", False) and size <= _TOGETHER and not self._forked
            return Graphs(backend, *(_together(tasks) if together else [task() for task in tasks]))
        finally:
            preparing.join()

    def _prepare(self) -> None:
        """Load what the first call needs beside the graphs, while they are compiled. What fails here fails there."""
        with suppress(Exception):
            self._bundle.tokenizer  # noqa: B018
        with suppress(Exception):
            import cv2  # noqa: F401

    @property
    def graphs(self) -> Graphs:
        """The graphs, compiled in this process.

        Raises:
            RuntimeFailure: `close` was called, or a backend was given and this process was forked since.
        """
        graphs = self._graphs
        if graphs is not None:
            return graphs
        with self.lock:
            if self._closed:
                raise RuntimeFailure("This Segmenter was closed and cannot be used any more; make a new one.")
            if self._graphs is None:
                if not isinstance(self._runtime, str):
                    raise RuntimeFailure(
                        "This Segmenter was given a backend before the process was forked, and the runtime's threads "
                        "stayed behind in the parent; make backend and Segmenter after the fork."
                    )
                logger.info("compiling the graphs again, because the process was forked")
                self._graphs = self._compile()
            return self._graphs

    @property
    def info(self) -> EngineInfo:
        """What really runs."""
        told = self.graphs.backend.info
        return EngineInfo(
            **{entry.name: getattr(told, entry.name) for entry in fields(BackendInfo)},
            model=self._bundle.manifest.name,
            path=self._bundle.path,
            reason=self._reason,
        )

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Free the graphs; calls that are running end as usual. A backend that was given stays its maker's to close."""
        with self.lock:
            graphs, self._graphs, self._closed = self._graphs, None, True
        if graphs is not None and isinstance(self._runtime, str):
            graphs.backend.close()

    def _after_fork(self) -> None:
        self._forked = True
        self.lock = threading.RLock()  # the old one may be held by a thread that this process does not have
        if self._graphs is not None:
            _abandon(self._graphs)
            self._graphs = None


def _start(task: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=task, name="cris-edge-start")
    thread.start()
    return thread


def _together(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Results of tasks that run at the same time, the first of them in this thread; raises the first one's error."""
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}

    def run(number: int) -> None:
        try:
            results[number] = tasks[number]()
        except BaseException as error:
            errors[number] = error

    threads = [_start(partial(run, number)) for number in range(1, len(tasks))]
    run(0)
    for thread in threads:
        thread.join()
    for number in sorted(errors):
        raise errors[number]
    return [results[number] for number in range(len(tasks))]


_alive: weakref.WeakSet[Engine] = weakref.WeakSet()
_abandoned: list[Graphs] = []


def _after_fork() -> None:
    for engine in list(_alive):
        engine._after_fork()


def _abandon(graphs: Graphs) -> None:
    """Never free what another process started: freeing waits for its threads, which do not exist in this one."""
    import ctypes

    _abandoned.append(graphs)
    if hasattr(ctypes, "pythonapi"):  # CPython clears modules when it exits, so the list alone does not keep them
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(graphs))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
