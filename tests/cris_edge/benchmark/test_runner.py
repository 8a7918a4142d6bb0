from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cris_edge.benchmark.results import CaseReport, Report, device, table
from cris_edge.benchmark.runner import Settings, benchmark
from cris_edge.errors import BundleError, DataError, OptionError

FEW = {"runs": 3, "seconds": 0.0, "starts": 1, "stream_seconds": 0.3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images and three prompts, of which the test model finds two."""
    from tests.cris_edge.tiny_bundle import picture

    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number, (left, right, sentences) in enumerate(
        [("red", "blue", ["the red one", "red thing"]), ("green", "grey", ["blue"])]
    ):
        image = picture(left, right)
        truth = np.zeros(image.shape[:2], np.uint8)
        truth[:, : image.shape[1] // 2] = 255
        cv2.imwrite(str(folder / f"{number}.png"), image[:, :, ::-1])
        cv2.imwrite(str(folder / f"{number}_mask.png"), truth)
        lines.append(json.dumps({"image": f"{number}.png", "sentences": sentences, "mask": f"{number}_mask.png"}))
    path = folder / "test.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def report(tiny: Path, data: Path) -> Report:
    """All measurements of one runtime."""
    pytest.importorskip("onnxruntime")
    settings = Settings(models=(str(tiny), str(tiny)), runtimes=("onnxruntime",), threads=1, data=data, **FEW)
    progress: list[str] = []
    found = benchmark(settings, progress.append)
    assert any("round" in line for line in progress)
    return found


def test_a_combination_is_measured_once(report: Report) -> None:
    assert not report.failures
    (case,) = report.cases  # the bundle was given twice, and both precisions resolve to the same
    assert (case.model, case.runtime, case.precision, case.device, case.threads) == (
        "tiny",
        "onnxruntime",
        "float32",
        "CPU",
        1,
    )


def test_stages_add_up_to_the_whole(report: Report) -> None:
    latency = report.cases[0].latency
    stages = {"load", "preprocess", "image_encoder", "tokenize", "text_encoder", "mask_decoder", "postprocess"}
    assert set(latency) == {"whole", "next", *stages}
    assert latency["whole"].count >= 3
    # The remainder is spent between the stages, on the result object.
    assert sum(latency[stage].smallest for stage in stages) <= latency["whole"].p99
    assert latency["whole"].median > latency["image_encoder"].median
    assert all(spread.smallest > 0 for spread in latency.values())


def test_starts_memory_and_bytes(report: Report, tiny: Path) -> None:
    case = report.cases[0]
    for starts in (case.first_start, case.later_start):
        parts = sum(starts[part].median for part in ("import", "load", "mask"))
        assert 0 < parts < starts["total"].median  # the rest is Python's own start
    for peak in case.memory.values():
        assert peak is None or 20e6 < peak < 2e9
    assert set(case.memory) == {"first_start", "later_start", "running"}
    on_disk = sum(path.stat().st_size for path in tiny.rglob("*") if path.is_file())
    assert case.disk["bundle"] == on_disk
    assert case.disk["runtime"] == on_disk - (tiny / "golden.npz").stat().st_size


def test_accuracy_counts_every_prompt(report: Report) -> None:
    accuracy = report.cases[0].accuracy
    assert accuracy is not None
    assert (accuracy["images"], accuracy["sentences"]) == (2, 3)
    assert accuracy["Pr@50"] == pytest.approx(200 / 3)  # "blue" is not in the second image
    assert 55 < accuracy["mIoU"] < 67


def test_throughput(report: Report) -> None:
    case = report.cases[0]
    assert case.throughput is not None
    assert case.throughput.median > 1
    assert case.parallel == 1


def test_the_report_describes_the_run(report: Report) -> None:
    document = json.loads(json.dumps(report.to_dict()))
    assert document["machine"]["cores"] >= 1
    assert {"processor", "instruction_sets", "python", "cris_edge", "system"} <= set(document["machine"])
    assert document["machine"]["packages"]["numpy"] == np.__version__
    assert document["cases"][0]["version"]
    assert document["cases"][0]["latency"]["whole"]["confidence"] == 0.75  # all that three blocks allow
    assert document["settings"]["image"] == {"source": "drawn", "width": 640, "height": 480}
    assert document["settings"]["runs"] == 3


def test_files(report: Report, tmp_path: Path) -> None:
    paths = report.write(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["benchmark.json", "benchmark.csv", "benchmark.svg"]
    assert json.loads(paths[0].read_text(encoding="utf-8"))["cases"]
    (row,) = csv.DictReader(io.StringIO(paths[1].read_text(encoding="utf-8")))
    assert float(row["whole_p50_ms"]) == pytest.approx(1e3 * report.cases[0].latency["whole"].median)
    assert row["runtime"] == "onnxruntime"
    assert float(row["Pr@50"]) == pytest.approx(200 / 3)
    assert "tiny onnxruntime float32" in paths[2].read_text(encoding="utf-8")


def test_tables(report: Report) -> None:
    text = report.to_text()
    for part in (device()["processor"], "tiny onnxruntime float32", "next prompt", "mask_decoder", "mIoU"):
        assert part in text
    markdown = report.to_text(markdown=True)
    assert markdown.count("|-") >= 0
    assert "| tiny onnxruntime float32 |" in markdown


def test_a_busy_cpu_is_reported() -> None:
    busy = Report(machine={}, load_before=3.0)
    assert "Other programs were using the CPU (load 3.0" in busy.remarks()[0]
    assert not Report(machine={}, load_before=0.1).remarks()


def test_without_accuracy_there_is_no_plot() -> None:
    assert Report(machine={}).to_svg() is None


def test_table() -> None:
    assert table(["a", "b"], [["long", "1"], ["x", "10"]]) == "a      b\nlong   1\nx     10"
    assert table(["a", "b"], [["x", "10"]], markdown=True) == "| a |  b |\n| - | -: |\n| x | 10 |"


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"starts": -1}, {"seconds": -1.0}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected at least one run"):
        benchmark(Settings(**wrong))


def test_nothing_is_measured_before_the_inputs_are_read(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(BundleError, match="There is no bundle"):
        benchmark(Settings(models=(str(tmp_path / "absent"),)))
    with pytest.raises(DataError, match="There is no data file"):
        benchmark(Settings(models=(str(tiny),), data=tmp_path / "absent.jsonl"))


def test_a_runtime_that_is_not_installed_is_skipped(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "openvino", None)
    few = {**FEW, "starts": 0, "stream_seconds": 0.0}
    report = benchmark(Settings(models=(str(tiny),), precisions=("auto",), **few))
    assert [case.runtime for case in report.cases] == ["onnxruntime"]
    assert "openvino is not installed; install it with pip install" in report.notes[0]
    assert report.notes[0] in report.to_text()


def test_report_of_a_bundle_counts_weights_beside_a_graph(tiny: Path) -> None:
    from cris_edge.bundle import Bundle

    info = {"version": "1", "device": "NPU", "device_name": "", "precision": "float16", "threads": None}
    case = CaseReport.of(Bundle.open(tiny), "openvino", info, "auto")
    assert case.label == "tiny openvino NPU float16"
    assert case.row()["whole_p50_ms"] is None


def test_a_crash_costs_one_case_and_not_the_others(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
    monkeypatch.setattr("cris_edge.benchmark.runner._SUBJECT", "tests.cris_edge.subjects:Fragile")
    report = benchmark(Settings(models=(str(tiny),), precisions=("float32",), **{**FEW, "starts": 0}))
    latency, throughput = report.failures
    assert latency["case"] == "tiny onnxruntime float32, latency"
    assert "ended early with status 9" in latency["error"]
    assert throughput["case"] == "tiny onnxruntime float32, throughput"
    cases = {case.runtime: case for case in report.cases}
    assert not cases["onnxruntime"].latency
    assert cases["openvino"].latency["whole"].count >= 3
    assert cases["openvino"].throughput is not None
    assert "tiny openvino float32" in report.to_text()
