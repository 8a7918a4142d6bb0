from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cris_edge.cli.program_runs import refused, run


def test_verify_runs_every_runtime(tiny: Path) -> None:
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
    result = run("verify", tiny)
    assert result.exit_code == 0, result.output
    assert "the hashes of all 5 files match" in result.stdout
    assert "onnxruntime float32: passed" in result.stdout
    assert "openvino float32: passed" in result.stdout
    document = json.loads(run("verify", tiny, "--json").stdout)
    assert document["passed"] is True
    assert {check["outcome"] for check in document["checks"]} == {"passed"}


def test_verify_finds_a_changed_file(tiny: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    data = bytearray((bundle / "golden.npz").read_bytes())
    data[-1] ^= 1
    (bundle / "golden.npz").write_bytes(data)
    assert "golden.npz was modified after the bundle was written" in refused(run("verify", bundle))


def test_verify_fails_where_outputs_differ(tiny: Path, tmp_path: Path) -> None:
    bundle = _with_parity(tiny, tmp_path, [])
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    with np.load(bundle / "golden.npz") as golden:
        arrays: dict[str, Any] = dict(golden)
    arrays["logits"][1] += 0.01
    np.savez(bundle / "golden.npz", **arrays)
    _rewrite(bundle, manifest)
    result = run("verify", bundle, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["passed"] is False
    assert "a logit differs from PyTorch's by 0.01; the tolerance is 0.001" in result.stderr


def test_verify_reports_what_it_cannot_check(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = run("verify", tiny)
    assert result.exit_code == 0, result.output
    assert "openvino auto: not checked (it is not installed; install it with pip install" in result.stdout
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run("verify", tiny)
    assert result.exit_code == 1
    assert "could not be checked" in result.stderr


def test_verify_checks_no_precision_without_a_tolerance(tiny: Path, tmp_path: Path) -> None:
    from cris_edge.backends import registry

    pytest.importorskip("openvino")
    if "bfloat16" not in registry.describe("openvino").devices[0].precisions:
        pytest.skip("this processor has no bfloat16 arithmetic")
    result = run("verify", _with_parity(tiny, tmp_path, []))
    assert result.exit_code == 0, result.output
    assert "openvino bfloat16: not checked" in result.stdout
    assert "states no tolerance for bfloat16" in result.stdout


def _with_parity(tiny: Path, tmp_path: Path, parity: list[Any]) -> Path:
    bundle = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    _rewrite(bundle, {**manifest, "parity": parity})
    return bundle


def _rewrite(bundle: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the hashes of the current files."""

    for name in manifest["files"]:
        data = (bundle / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
