"""Worker: what is measured, in a process that does nothing else; asked over a pipe.

A process of its own keeps the peak of its memory apart, and a crash. The workers of one measurement live at the same
time and are asked in turn, so that what slows the machine for a while slows all of them.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import IO, Any

from cris_edge.errors import RuntimeFailure

# The child imports what this process imports, from the same places, wherever it was started.
_PRELUDE = "import sys; sys.path[:] = sys.argv[1].split(chr(10)); "
_SERVE = _PRELUDE + "from cris_edge.benchmark.worker import serve; serve(*sys.argv[2:])"
# What the smallest program does, up to its first mask; the clock is the parent's.
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
    segmenter(given["image"], given["sentence"]).mask
    print(json.dumps({"import": imported - began, "load": loaded - imported, "mask": perf_counter() - loaded}))
    sys.stdout.flush()
except Exception as error:
    print(json.dumps({"error": str(error) or type(error).__name__}))
else:
    for _ in range(3):
        segmenter(given["image"], given["sentence"]).mask
    from cris_edge.benchmark.worker import peak_memory
    print(json.dumps({"memory": peak_memory(), "info": segmenter.info.to_dict()}))
"""
)
_STATUS = Path("/proc/self/status")


class Worker:
    """A process that holds one subject. A context manager; `close` ends the process.

    Args:
        entry: "module:name" of what makes the subject, called in the process.
        arguments: For it, as JSON can carry them. What it makes has a method for each question, and `info`.
        label: What to call it in messages.

    Attributes:
        info: What the subject says of itself, a dict.

    Raises:
        RuntimeFailure: The subject cannot be made.
    """

    def __init__(self, entry: str, arguments: Mapping[str, Any], label: str) -> None:
        self.label = label
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            _command(_SERVE, entry, json.dumps(arguments)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=_environment(),
        )
        try:
            self.info: dict[str, Any] = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, question: str, **arguments: Any) -> Any:
        """What the method `question` of the subject returns.

        Raises:
            RuntimeFailure: It raised an error, or the process ended.
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
        self._said.seek(0)
        return RuntimeFailure(_how_it_ended(f"The process that measured {self.label}", status, self._said.read()))

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was still to be written, to a process that is gone
                    continue
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:  # it may be in the middle of something long
            self._process.kill()
        self.close()


def serve(entry: str, arguments: str) -> None:
    """Be the process of a worker until the other end of the pipe is closed."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints is no answer

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
        options: Of `Segmenter`.
        image: File.
        sentence: Begin of the sentences that are asked.
    """

    def __init__(self, model: str, options: Mapping[str, Any], image: str, sentence: str) -> None:
        import warnings

        from cris_edge.image import load_image
        from cris_edge.segmenter import Segmenter
        from cris_edge.tokenizer import PromptWarning

        warnings.simplefilter("ignore", PromptWarning)  # a numbered sentence may be too long for a small model
        self._segmenter = Segmenter(model, **options)
        self.info = self._segmenter.info.to_dict()
        self._image = load_image(image)
        self._sentences = numbered(sentence)
        self._scene = self._segmenter.encode_image(self._image)
        self._samples: tuple[str, list[Any]] = ("", [])

    def measure(self, count: int) -> list[dict[str, float]]:
        """Seconds of `count` turns: one image and one sentence ("whole"), its stages, another sentence ("next").

        One more turn comes first and is not told: the processor's caches hold another process's data by then.
        """
        told = []
        for number in range(count + 1):
            began = perf_counter()
            result = self._segmenter(self._image, next(self._sentences))
            ended = perf_counter()
            self._segmenter(self._scene, next(self._sentences))
            if number:
                told.append({"whole": ended - began, "next": perf_counter() - ended, **result.timings})
        return told

    def stream(self, seconds: float) -> float:
        """Images per second of a stream of them, one sentence for all."""
        until = perf_counter() + seconds
        sentence = self._segmenter.encode_text(next(self._sentences))

        def frames() -> Iterator[Any]:
            while perf_counter() < until:
                yield self._image

        began = perf_counter()
        count = sum(1 for _ in self._segmenter.stream(frames(), sentence))
        return count / (perf_counter() - began)

    def score(self, data: str, first: int, count: int) -> dict[str, Any]:
        """Overlap with the truth for `count` samples of labelled data from the `first` on, every sentence of them."""
        from cris_edge.image.labelled import read_samples
        from cris_edge.metrics import Scores

        if self._samples[0] != data:
            self._samples = data, read_samples(data)
        scores = Scores()
        for sample in self._samples[1][first : first + count]:
            scene = self._segmenter.encode_image(sample.image)
            truth = sample.truth(scene.image.shape[:2])
            for sentence in sample.sentences:
                scores.add_mask(self._segmenter(scene, sentence).mask, truth)
        return {"ious": scores.ious, "intersection": scores.intersection, "union": scores.union}

    def memory(self) -> int | None:
        """Peak of this process; see `peak_memory`."""
        return peak_memory()


def numbered(sentence: str) -> Iterator[str]:
    """Sentences that all differ, so that none is answered from memory."""
    number = 0
    while True:
        number += 1
        yield f"{sentence} {number}"


def start(model: str, options: Mapping[str, Any], image: str, sentence: str) -> dict[str, Any]:
    """Seconds from the start of a process to its first mask ("total"), the parts of it, and its peak of memory.

    Raises:
        RuntimeFailure: It came to no mask.
    """
    given = {"model": model, "options": options, "image": image, "sentence": sentence}
    with tempfile.TemporaryFile() as said:
        began = perf_counter()
        with subprocess.Popen(
            _command(_START, json.dumps(given)), stdout=subprocess.PIPE, stderr=said, env=_environment()
        ) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            total = perf_counter() - began
            second = process.stdout.readline()
        parts = json.loads(first or b"{}")
        if "error" in parts:
            raise RuntimeFailure(parts["error"])
        if process.returncode or not second:
            said.seek(0)
            raise RuntimeFailure(_how_it_ended("The process that was started", process.returncode, said.read()))
    return {"total": total, **parts, **json.loads(second)}


def peak_memory() -> int | None:
    """The largest resident memory that this process had, in bytes; None where the system does not tell."""
    try:
        # Not getrusage: on Linux a process begins with the peak of the one that started it.
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
    """As here; but byte code is kept, as an installed package has it, or each start would compile the sources."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _how_it_ended(what: str, status: int, said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    last = f", its last words: {lines[-1].strip()}" if lines else ""
    return f"{what} ended with status {status} before it was done{last}"
