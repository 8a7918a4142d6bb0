"""Figures about the default model are those of the bundle in the package, or say that they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.provenance import PREVIOUS, bundle_record, default_digests, faults, results
from cris_edge.bundle import Bundle, default_model

RESULTS = dict(results())


@pytest.fixture(scope="module")
def digest() -> str:
    if not (default_model() / "manifest.json").exists():
        pytest.skip("this checkout has no default model")
    return Bundle.open(default_model()).digest


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_figures_are_of_the_bundle_in_the_package_or_marked(path: Path, digest: str) -> None:
    assert faults(RESULTS[path], digest) == []


def test_results_about_the_default_model_name_its_bundle() -> None:
    about_default = {path.name for path, found in RESULTS.items() if default_digests(found)}
    assert about_default >= {path.name for path in RESULTS if "-default" in path.name} | {"roofline.json"}
    assert all(digest and len(digest) == 64 for found in RESULTS.values() for digest in default_digests(found))


def test_another_bundle_makes_figures_stale(digest: str) -> None:
    record = bundle_record(default_model())
    assert record["default"] and record["digest"] == digest and len(record["checkpoint_sha256"]) == 64
    case = {"digest": digest, "path": str(default_model())}
    for found in ({"bundles": [record]}, {"cases": [case]}):
        assert faults(found, digest) == []
        (fault,) = faults(found, "0" * 64)
        assert digest in fault and "measure again" in fault
        assert faults({**found, "weights": PREVIOUS}, "0" * 64) == []
        # The mark does not outlive a new measurement.
        assert "was measured with the bundle in the package" in faults({**found, "weights": PREVIOUS}, digest)[0]


def test_other_networks_need_no_mark() -> None:
    other = {"bundles": [{"name": "cris-r50", "digest": "1" * 64, "default": False}]}
    assert faults(other, "0" * 64) == []
    assert faults({**other, "weights": PREVIOUS}, "0" * 64)
