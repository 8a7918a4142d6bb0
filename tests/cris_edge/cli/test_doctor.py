from __future__ import annotations

import json
import sys

import pytest

from tests.cris_edge.cli.program_runs import run


def test_doctor_lists_runtimes_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert 'openvino: unavailable; install it with pip install "cris-edge[openvino]"' in result.stdout
    assert "  CPU" in result.stdout
    document = json.loads(run("doctor", "--json").stdout)
    runtimes = {runtime["name"]: runtime for runtime in document["runtimes"]}
    assert runtimes["openvino"]["usable"] is False
    assert runtimes["onnxruntime"]["devices"][0]["name"] == "CPU"
    assert document["cores"] >= 1
