"""The engine loads what a first call needs, in parallel where that is faster, and reports failures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cris_edge import Segmenter
from cris_edge.backends import graphs as module
from cris_edge.backends.base import BackendInfo
from cris_edge.bundle import GRAPHS, Bundle
from cris_edge.errors import DeviceError


class Recorder:
    """A backend without a runtime; `compiling` and `running` are called with the graph's name."""

    name = "onnxruntime"
    compiles_together = True

    def __init__(
        self,
        compiling: Callable[[str], Any] = lambda _: None,
        running: Callable[[str], Any] = lambda _: None,
        parallel: int = 1,
    ) -> None:
        self._compiling, self._running = compiling, running
        self.info = BackendInfo("recorder", "1", "none", "float32", parallel=parallel)

    def compile(self, path: Path, spec: Any) -> Any:
        self._compiling(path.stem)

        def run(inputs: Any) -> Any:
            self._running(path.stem)
            return {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in spec.outputs}

        return run

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.zeros((48, 64, 3), np.uint8)


def test_small_graphs_are_compiled_in_parallel(tiny: Path) -> None:
    meeting = threading.Barrier(len(GRAPHS), timeout=20)
    Segmenter(tiny, runtime=Recorder(lambda _: meeting.wait()))


def test_large_graphs_are_compiled_sequentially(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 0)
    seen: list[tuple[str, threading.Thread]] = []
    Segmenter(tiny, runtime=Recorder(lambda name: seen.append((name, threading.current_thread()))))
    assert seen == [(name, threading.current_thread()) for name in GRAPHS]


def test_other_backends_compile_sequentially(tiny: Path) -> None:
    seen: list[threading.Thread] = []
    backend = Recorder(lambda _: seen.append(threading.current_thread()))
    backend.compiles_together = False
    Segmenter(tiny, runtime=backend)
    assert seen == [threading.current_thread()] * len(GRAPHS)


def test_the_first_failing_graph_is_reported(tiny: Path) -> None:
    def fail(name: str) -> None:
        if name != "image_encoder":
            raise DeviceError(f"no room for the {name}")

    with pytest.raises(DeviceError, match="no room for the text_encoder"):
        Segmenter(tiny, runtime=Recorder(fail))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cris-edge")]


def test_the_tokenizer_is_loaded_in_parallel(tiny: Path) -> None:
    bundle = Bundle.open(tiny)
    Segmenter(bundle, runtime=Recorder())
    assert "tokenizer" in vars(bundle)


@pytest.mark.parametrize("parallel", [1, 2])
def test_prompts_run_in_parallel_where_the_runtime_supports_it(
    tiny: Path, image: NDArray[np.uint8], parallel: int
) -> None:
    inside, most, lock, met = 0, 0, threading.Lock(), threading.Event()

    def running(name: str) -> None:
        nonlocal inside, most
        if name != "mask_decoder":
            return
        with lock:
            inside, most = inside + 1, max(most, inside + 1)
            if inside == parallel:
                met.set()
        assert met.wait(20)
        with lock:
            inside -= 1

    with Segmenter(tiny, runtime=Recorder(running=running, parallel=parallel)) as segmenter:
        sentences = [f"thing {number}" for number in range(6)]
        results = segmenter(image, sentences)
    assert [result.prompt for result in results] == sentences
    assert most == parallel
    assert "image_encoder" in results[0].timings and "image_encoder" not in results[1].timings


def test_prompts_of_a_stream_run_sequentially(tiny: Path, image: NDArray[np.uint8]) -> None:
    """A stream already computes several frames in parallel."""
    inside, most, lock = 0, 0, threading.Lock()

    def running(name: str) -> None:
        nonlocal inside, most
        with lock:
            inside, most = inside + 1, max(most, inside + 1)
        threading.Event().wait(0.005)
        with lock:
            inside -= 1

    with Segmenter(tiny, runtime=Recorder(running=running, parallel=2)) as segmenter:
        rows = list(segmenter.stream([image] * 4, ["one", "two", "three"]))
    assert [[result.prompt for result in row] for row in rows] == [["one", "two", "three"]] * 4
    assert most == 2
