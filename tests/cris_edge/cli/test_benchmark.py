from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cris_edge.cli.program_runs import run


def test_the_command_reports_what_cannot_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run(
        "benchmark", "--model", tiny, "--runtime", "openvino", "--device", "TPU", "--precision", "auto", "--json"
    )
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["cases"] == []
    assert "OpenVINO has no device 'TPU'" in document["failures"][0]["error"]
    assert result.stderr.startswith("error: tiny on openvino TPU auto: ")


def test_without_a_runtime_there_is_nothing_to_measure(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run("benchmark", "--model", tiny)
    assert result.exit_code == 1
    assert "Nothing to measure: onnxruntime is not installed; install it with pip" in result.stderr


def test_the_command_prints_one_document(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    few = ["--runs", 1, "--seconds", 0, "--starts", 0, "--runtime", "onnxruntime", "--precision", "auto"]
    result = run("benchmark", "--model", tiny, *few, "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["cases"][0]["latency"]["whole"]["median"] > 0
    assert result.stderr == ""
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text()) == json.loads(result.stdout)
