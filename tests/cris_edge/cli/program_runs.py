"""Runs of the command line in this process."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import pytest

from cris_edge.cli import main


@dataclass(frozen=True)
class Result:
    """Result of a run of the program; click's own runner separates the two streams only since 8.2."""

    exit_code: object
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def run(*arguments: object) -> Result:
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments], prog_name="cris-edge")
    return Result(end.value.code, stdout.getvalue(), stderr.getvalue())


def refused(result: Result, status: int = 1) -> str:
    """The one line on stderr of a run that failed; stdout is empty."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    line = result.stderr
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
