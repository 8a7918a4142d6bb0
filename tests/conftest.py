"""Fixtures of all tests. Imports nothing heavy: tests that need torch or a runtime import it themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Set before anything imports torch: the tests are many small products, which more threads only slow down.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Set before a test imports ONNX Runtime, which otherwise sends telemetry from its import on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Hypothesis fails an example that takes more than 200 ms, which happens on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
TEST_DATA = ROOT / "tests" / "data"


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session", params=["tests/data", "shared/data/golden"])
def golden(request: pytest.FixtureRequest) -> Path:
    """A folder of outputs of the reference implementation: the part in the checkout, then all of them beside it."""
    if request.param == "tests/data":
        return TEST_DATA
    shared: Path = request.getfixturevalue("shared_data")
    return shared / "golden"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Reference outputs and photos beside the checkout, which are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"reference data is absent: no folder {SHARED_DATA.relative_to(ROOT.parent)} beside the checkout")
    return SHARED_DATA
