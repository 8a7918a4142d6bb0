"""Worker processes for measurements, controlled over a pipe.

A separate process isolates peak memory and crashes. The workers of one measurement run at the same time and are asked
one after another, so that a temporary slowdown of the machine affects all of them.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import IO, Any

from cris_edge.errors import RuntimeFailure

# The child has this process's import path.
_PRELUDE = "import sys; sys.path[:] = sys.argv[1].split(chr(10)); "
_SERVE = _PRELUDE + "from cris_edge.benchmark.worker import serve; serve(*sys.argv[2:])"
# A minimal program up to its first mask; the total is timed by the parent.
_START = (
    _PRELUDE
    + """
from time import perf_counter
began = perf_counter()
import json
given = json.loads(sys.argv[2])
try:
    from cris_edge import Segmenter
    imported = perf_counter()
    segmenter = Segmenter(given["model"], **given["options"])
    loaded = perf_counter()
    segmenter(given["image"], given["prompt"]).mask
    print(json.dumps({"import": imported - began, "load": loaded - imported, "mask": perf_counter() - loaded}))
    sys.stdout.flush()
except Exception as error:
    print(json.dumps({"error": str(error) or type(error).__name__}))
else:
    for _ in range(3):
        segmenter(given["image"], given["prompt"]).mask
    from cris_edge.benchmark.worker import peak_memory
    print(json.dumps({"memory": peak_memory(), "info": segmenter.info.to_dict()}))
"""
)
_STATUS = Path("/proc/self/status")


class Worker:
    """A process that holds one subject to measure; a context manager.

    Args:
        entry: "module:name" of the subject's factory, called in the process.
        arguments: JSON-serializable arguments of the factory. The subject has a method per question, and `info`.
        label: Name in messages.

    Attributes:
        info: The subject's `info`, a dict.

    Raises:
        RuntimeFailure: The subject cannot be created.
    """

    def __init__(self, entry: str, arguments: Mapping[str, Any], label: str) -> None:
        self.label = label
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            _command(_SERVE, entry, json.dumps(arguments)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(),
        )
        try:
            self.info: dict[str, Any] = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, question: str, **arguments: Any) -> Any:
        """Call the subject's method `question` and return its result.

        Raises:
            RuntimeFailure: The method raised an error, or the process ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([question, arguments]).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._ended() from error
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        kind, value = json.loads(line)
        if kind == "error":
            raise RuntimeFailure(str(value))
        return value

    def _ended(self) -> RuntimeFailure:
        status = self._process.wait()
        return _ended(f"The process that measured {self.label}", status, self._stderr)

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):  # unwritten data for a process that is gone
                    stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:  # it may be busy for long
            self._process.kill()
        self.close()


def serve(entry: str, arguments: str) -> None:
    """Serve questions in a worker's process until the other end of the pipe closes."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keep what a runtime prints out of the answers

    def answer(kind: str, value: Any) -> None:
        channel.write(json.dumps([kind, value]) + "\n")
        channel.flush()

    module, _, name = entry.partition(":")
    try:
        subject = getattr(importlib.import_module(module), name)(**json.loads(arguments))
        answer("value", subject.info)
    except Exception as error:
        answer("error", str(error) or type(error).__name__)
        return
    for line in sys.stdin:
        question, given = json.loads(line)
        try:
            answer("value", getattr(subject, question)(**given))
        except Exception as error:
            answer("error", str(error) or type(error).__name__)


class SegmenterSubject:
    """A `Segmenter` with one image, to be timed.

    Args:
        model: The bundle's folder.
        options: Options of `Segmenter`.
        image: Image file.
        prompt: Start of every prompt.
    """

    def __init__(self, model: str, options: Mapping[str, Any], image: str, prompt: str) -> None:
        import warnings

        from cris_edge.image import load_image
        from cris_edge.segmenter import Segmenter
        from cris_edge.tokenizer import PromptWarning

        warnings.simplefilter("ignore", PromptWarning)  # a numbered prompt may be too long for a small model
        self._segmenter = Segmenter(model, **options)
        self.info = self._segmenter.info.to_dict()
        self._image = load_image(image)
        self._prompts = numbered(prompt)
        self._features = self._segmenter.encode_image(self._image)
        self._samples: tuple[str, list[Any]] = ("", [])

    def measure(self, count: int) -> list[dict[str, float]]:
        """Return seconds of `count` iterations: image and prompt ("whole"), its stages, another prompt ("next").

        One more iteration runs first and is discarded, because the CPU's caches hold another process's data by then.
        """
        iterations = []
        for number in range(count + 1):
            began = perf_counter()
            result = self._segmenter(self._image, next(self._prompts))
            ended = perf_counter()
            self._segmenter(self._features, next(self._prompts))
            if number:
                iterations.append({"whole": ended - began, "next": perf_counter() - ended, **result.timings})
        return iterations

    def stream(self, seconds: float) -> float:
        """Return images per second of a stream with one prompt."""
        until = perf_counter() + seconds
        prompt = self._segmenter.encode_text(next(self._prompts))

        def frames() -> Iterator[Any]:
            while perf_counter() < until:
                yield self._image

        began = perf_counter()
        count = sum(1 for _ in self._segmenter.stream(frames(), prompt))
        return count / (perf_counter() - began)

    def score(self, data: str, first: int, count: int) -> dict[str, Any]:
        """Score every prompt of `count` labelled samples, starting at `first`."""
        from cris_edge.image.labelled import read_samples
        from cris_edge.metrics import Scores

        if self._samples[0] != data:
            self._samples = data, read_samples(data)
        scores = Scores()
        for sample in self._samples[1][first : first + count]:
            if sample.no_target:  # these metrics are over prompts that have a target
                continue
            features = self._segmenter.encode_image(sample.image)
            truth = sample.truth(features.image.shape[:2])
            for prompt in sample.sentences:
                scores.add_mask(self._segmenter(features, prompt).mask, truth)
        return {"ious": scores.ious, "intersection": scores.intersection, "union": scores.union}

    def memory(self) -> int | None:
        """Return the peak memory of this process; see `peak_memory`."""
        return peak_memory()


def numbered(prompt: str) -> Iterator[str]:
    """Yield distinct prompts, so that none comes from a cache."""
    return (f"{prompt} {number}" for number in itertools.count(1))


def start(model: str, options: Mapping[str, Any], image: str, prompt: str) -> dict[str, Any]:
    """Return seconds from process start to the first mask ("total"), their parts, and peak memory.

    Raises:
        RuntimeFailure: The process produced no mask.
    """
    given = {"model": model, "options": options, "image": image, "prompt": prompt}
    with tempfile.TemporaryFile() as stderr:
        began = perf_counter()
        with subprocess.Popen(
            _command(_START, json.dumps(given)), stdout=subprocess.PIPE, stderr=stderr, env=_environment()
        ) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            total = perf_counter() - began
            second = process.stdout.readline()
        parts = json.loads(first or b"{}")
        if "error" in parts:
            raise RuntimeFailure(parts["error"])
        if process.returncode or not second:
            raise _ended("The process that was started", process.returncode, stderr)
    return {"total": total, **parts, **json.loads(second)}


def peak_memory() -> int | None:
    """Return the peak resident memory of this process in bytes; None if unknown."""
    try:
        # Not getrusage: on Linux a process inherits the peak of its parent.
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    if sys.platform == "win32":
        return _peak_on_windows()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_on_windows() -> int | None:
    import ctypes

    class Counters(ctypes.Structure):
        _fields_ = (
            ("size", ctypes.c_uint32),
            ("faults", ctypes.c_uint32),
            *((name, ctypes.c_size_t) for name in ("peak", "now", "a", "b", "c", "d", "e", "f")),
        )

    counters = Counters()
    counters.size = ctypes.sizeof(counters)
    library: Any = vars(ctypes)["windll"]
    library.kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(library.kernel32.GetCurrentProcess())
    done = library.psapi.GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size)
    return int(counters.peak) if done else None


def _command(code: str, *arguments: str) -> Sequence[str]:
    return [sys.executable, "-c", code, "\n".join(sys.path), *arguments]


def _environment() -> dict[str, str]:
    """The current environment, but with byte code cached as for an installed package, or each start would compile."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _ended(what: str, status: int, stderr: IO[bytes]) -> RuntimeFailure:
    stderr.seek(0)
    lines = stderr.read().decode(errors="replace").strip().splitlines()
    last = f"; its last line of output: {lines[-1].strip()}" if lines else ""
    return RuntimeFailure(f"{what} ended early with status {status}{last}")
