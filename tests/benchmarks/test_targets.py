"""What training masks lose on their way through inference."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks.targets import main


def test_areas_lose_least_and_larger_inputs_lose_less(tmp_path: Path) -> None:
    output = tmp_path / "targets.json"
    arguments = ["--data", "scenes:val:12:3", "--size", "128", "--size", "320", "--output", str(output)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = {(row["mask_target"], row["input_size"]): row["mIoU"] for row in json.loads(output.read_text())["rows"]}
    assert found["nearest", 128] + 5 < found["area", 128] < found["area", 320] <= 100
    assert found["nearest", 128] < found["nearest", 320] < found["area", 320]
    assert result.output.count("scenes:val") == 4


def test_data_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--data", str(tmp_path / "none.jsonl")])
    assert result.exit_code == 1 and "none.jsonl" in result.output
