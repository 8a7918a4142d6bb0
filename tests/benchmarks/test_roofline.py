"""The peak of the machine, and the fraction of it that a graph reaches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from benchmarks.chain import Chain, chain
from benchmarks.roofline import Rate, Roofline, main, measure, to_text
from cris_edge.backends import ort, registry
from cris_edge.benchmark.spread import Spread
from runtimes.cost import multiply_accumulates

pytest.importorskip("onnxruntime")


def rate(label: str, precision: str, macs: int, seconds: float) -> Rate:
    return Rate(label, precision, macs, Spread.of([[seconds]]))


def roofline(*graphs: Rate) -> Roofline:
    chains = [rate("a", "int8", 1000, 1.0), rate("b", "int8", 1000, 0.5), rate("c", "float32", 1000, 2.0)]
    machine = {"processor": "a processor", "cores": 2, "instruction_sets": ["AVX2"]}
    return Roofline(chains, list(graphs), {"machine": machine, "failures": [], "load_before": None})


def test_the_chain_has_the_operations_that_it_states():
    model = chain(8, 6, 3, quantized=False)
    onnx.checker.check_model(model, full_check=True)
    assert multiply_accumulates(model) == 3 * 8 * 8 * 9 * 36
    assert multiply_accumulates(chain(8, 6, 3, quantized=True)) == 3 * 8 * 8 * 9 * 36


def test_the_quantized_chain_computes_about_the_same():
    given = {"x": np.random.default_rng(0).random((1, 8, 6, 6), np.float32)}
    exact, rounded = (
        ort.load().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(["y"], given)[0]
        for model in (chain(8, 6, 3, quantized=False), chain(8, 6, 3, quantized=True))
    )
    assert exact.max() > 0.5  # the signal does not vanish
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_chain_runs_in_its_precision(runtime, precision):
    pytest.importorskip(runtime)
    subject = Chain(runtime, precision, 16, 8, 1)
    assert subject.info["precision"].partition("+")[0] == precision
    found = subject.measure(3)
    assert len(found) == 3
    assert all(sample["whole"] > 0 for sample in found)


def test_peak_and_fraction():
    found = roofline(
        rate("g", "int8+bfloat16", 500, 1.0), rate("h", "float32", 100, 1.0), rate("i", "bfloat16", 1, 1.0)
    )
    peak = found.peak("int8+bfloat16")
    assert peak is not None
    assert peak.label == "b"
    assert [found.fraction(graph) for graph in found.graphs] == [0.25, 0.2, None]
    rows = found.to_dict()["graphs"]
    assert rows[0]["fraction_of_peak"] == 0.25
    assert "25%" in to_text(found.to_dict())
    assert "| g " in to_text(found.to_dict(), markdown=True)


def test_all_runtimes_in_one_run(tmp_path):
    found = measure([], shapes=((8, 8),), threads=1, runs=2, seconds=0)
    assert not [failure for failure in found.document["failures"] if "bfloat16" not in failure["error"]]
    kinds = {(chain.label.partition(",")[0], chain.precision) for chain in found.chains}
    assert {(runtime, "float32") for runtime in registry.available()} <= kinds
    assert {precision for _, precision in kinds} >= {"float32", "int8"}
    assert not found.graphs


def test_command_writes_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.roofline.measure", lambda *_, **__: roofline(rate("g", "int8", 500, 1.0)))
    output = tmp_path / "new" / "roofline.json"
    result = CliRunner().invoke(main, ["--output", str(output)])
    assert result.exit_code == 0, result.output
    assert json.loads(output.read_text())["graphs"][0]["fraction_of_peak"] == 0.25
    assert "25%" in result.stdout
