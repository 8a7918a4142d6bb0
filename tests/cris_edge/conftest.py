"""Fixtures of the SDK's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports ONNX Runtime, as in the backend, so that tests that import it directly send no telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary cache folder for this run."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("HOME", str(folder))
        patch.setenv("LOCALAPPDATA", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real bundle that finds colours; read-only."""
    pytest.importorskip("onnx", reason="the bundle of the tests is built with onnx")
    from tests.cris_edge.tiny_bundle import build

    return build(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A different model with the same tensors."""
    pytest.importorskip("onnx", reason="the bundle of the tests is built with onnx")
    from tests.cris_edge.tiny_bundle import build

    return build(tmp_path_factory.mktemp("bundles") / "other", gain=20.0, name="other")


@pytest.fixture(scope="session", params=["onnxruntime", "openvino"])
def runtime(request: pytest.FixtureRequest) -> str:
    """Each built-in CPU runtime that is installed."""
    name: str = request.param
    pytest.importorskip(name)
    return name
