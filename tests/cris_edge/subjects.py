"""Subjects that tests measure in worker processes."""

from __future__ import annotations

import os
import sys
from typing import Any

from cris_edge.benchmark.worker import SegmenterSubject, peak_memory


class Probe:
    """Reports its arguments, and misbehaves on request."""

    def __init__(self, **given: object) -> None:
        print("a runtime that talks")
        if given.get("refuse"):
            raise ValueError("this subject cannot be created")
        self.info = given

    def add(self, first: int, second: int) -> int:
        print("a runtime that talks", flush=True)
        return first + second

    def fail(self) -> None:
        raise ValueError("this question has no answer")

    def crash(self) -> None:
        print("it hurts", file=sys.stderr, flush=True)
        os._exit(7)

    def peak(self, megabytes: int = 0) -> int | None:
        held = bytearray(os.urandom(1 << 20)) * megabytes
        found = peak_memory()
        del held
        return found


class Fragile(SegmenterSubject):
    """A segmenter that crashes at its third measurement, in one of the runtimes."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._asked = 0

    def measure(self, count: int) -> list[dict[str, float]]:
        self._asked += 1
        if self._asked == 3 and self.info["runtime"] == "onnxruntime":
            os._exit(9)
        return super().measure(count)

    def stream(self, seconds: float) -> float:
        if self.info["runtime"] == "onnxruntime":
            os._exit(9)
        return super().stream(seconds)
