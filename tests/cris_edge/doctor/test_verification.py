from __future__ import annotations

import json
from pathlib import Path

import pytest

from cris_edge.backends import registry
from cris_edge.doctor import verify


@pytest.mark.skipif(not registry.is_available("qnn"), reason="Qualcomm's provider is not installed")
def test_large_models_are_not_emulated_when_verified(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx", reason="the bundle of the tests is built with onnx")
    from tests.cris_edge.tiny_bundle import build

    folder = build(tmp_path / "large")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["runtimes"]["qnn"] = manifest["runtimes"].pop("openvino")
    manifest["graphs"]["mask_decoder"]["macs"] = 40_000_000_000
    (folder / "manifest.json").write_text(json.dumps(manifest))
    report = verify(folder)
    found = {check.runtime: check for check in report.checks}
    assert found["qnn"].outcome == "not checked"
    assert "minutes for 40 GMAC" in found["qnn"].message
    assert report.passed
