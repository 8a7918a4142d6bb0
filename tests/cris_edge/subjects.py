"""Subjects for workers: what a test asks in another process."""

from __future__ import annotations

import os
import sys

from cris_edge.worker import peak_memory


class Probe:
    """Says what it was made with, and misbehaves when asked to."""

    def __init__(self, **given: object) -> None:
        print("a runtime that talks")
        if given.get("refuse"):
            raise ValueError("this subject cannot be made")
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
