from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cris_edge import Segmenter
from tests.cris_edge.cli.program_runs import refused, run


def test_the_cache_is_described_and_cleared(tiny: Path, tmp_path: Path, runtime: str) -> None:
    with Segmenter(tiny, runtime=runtime, cache_dir=tmp_path):
        pass
    graphs = 3 if runtime == "openvino" else 0
    document = json.loads(run("cache", "info", "--cache-dir", tmp_path, "--json").stdout)
    assert (document["folder"], document["graphs"], document["records"]) == (str(tmp_path), graphs, 1)
    assert f"compiled graphs    {graphs} of" in run("cache", "info", "--cache-dir", tmp_path).stdout
    assert f"removed from {tmp_path}" in run("cache", "clear", "--cache-dir", tmp_path).stdout
    assert json.loads(run("cache", "info", "--cache-dir", tmp_path, "--json").stdout)["graphs"] == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.skipif(sys.platform == "win32", reason="sets HOME")
def test_an_unknown_home_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "~")
    assert "set HOME" in refused(run("cache", "info"))
