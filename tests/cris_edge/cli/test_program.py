from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cris_edge.cli.program_runs import run


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        ["predict", "photo.jpg"],
        ["predict", "photo.jpg", "red", "--threshold", "2"],
        ["predict", "photo.jpg", "red", "--threads", "0"],
        ["predict", "photo.jpg", "red", "--nonsense"],
        ["nonsense"],
        ["info", "one", "two"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


def test_stdout_contains_only_json(tiny: Path, photo: Path, tmp_path: Path) -> None:
    arguments = ["predict", str(photo), "red", "--model", str(tiny), "--output", str(tmp_path / "output"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "cris_edge", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert done.stderr == ""
    logged = subprocess.run(
        [sys.executable, "-m", "cris_edge", "--verbose", *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    json.loads(logged.stdout)
    assert "tiny on " in logged.stderr


def test_a_closed_pipe_gives_no_error_message(tiny: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "cris_edge", "info", str(tiny)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    program.stdout.close()
    _, stderr = program.communicate(timeout=60)
    assert stderr == b""


def test_version_and_help() -> None:
    from cris_edge import __version__

    assert run("--version").stdout == f"cris-edge, version {__version__}\n"
    for command in ("predict", "info", "verify", "doctor"):
        assert run(command, "--help").exit_code == 0
        assert command in run("--help").stdout
