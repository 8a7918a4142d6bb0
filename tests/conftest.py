"""What all tests share. Nothing heavy is imported here: a test that needs torch or a runtime imports it itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before anything imports torch: the suite is many small products, which more threads only slow down.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# ONNX Runtime starts to report home when it is imported, unless this is set before; a test may import it first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
TEST_DATA = ROOT / "tests" / "data"


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session", params=["tests/data", "shared/data/golden"])
def golden(request: pytest.FixtureRequest) -> Path:
    """A folder of numbers from the reference implementation: the part in the checkout, then all of them beside it."""
    if request.param == "tests/data":
        return TEST_DATA
    shared: Path = request.getfixturevalue("shared_data")
    return shared / "golden"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Golden numbers and photos that lie beside the checkout and are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"reference data is absent: no folder {SHARED_DATA.relative_to(ROOT.parent)} beside the checkout")
    return SHARED_DATA
