"""The family's table: every member exported, measured in the same rounds, and counted."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import family
from benchmarks.family import MEMBERS, measure, to_markdown, write
from cris_edge.benchmark.spread import Spread
from cris_edge.errors import OptionError
from training.recipes import RECIPES

pytest.importorskip("onnxruntime")

SMALL = {
    "input_size": 64, "image_resolution": 64, "vision_layers": [1, 1, 1, 1], "vision_width": 8, "embed_dim": 32,
    "text_width": 32, "text_layers": 1, "decoder_heads": 2, "ffn_dim": 32,
}  # fmt: skip


def member(name: str, milliseconds: float, accuracy: float | None = None) -> dict[str, object]:
    seconds = {
        stage: Spread.of([[milliseconds / 1e3 / divisor] * 3] * 6).to_dict()
        for stage, divisor in (("whole", 1), ("next", 2))
    }
    return {
        "name": name, "input_size": 224, "parameters": 5_000_000, "token_table": 3_000_000, "recorded_mIoU": accuracy,
        "macs": {"image_encoder": 10**9, "text_encoder": 10**8, "mask_decoder": 2 * 10**8},
        "runtimes": {"onnxruntime": {"version": "1.0", "peak_memory": 10**8, "seconds": seconds}},
    }  # fmt: skip


def document(*members: dict[str, object]) -> dict[str, object]:
    return {"machine": machine(), "threads": 2, "load_before": None, "failures": [], "members": list(members)}


def machine() -> dict[str, object]:
    return {
        "processor": "a processor", "cores": 2, "physical_cores": 2, "system": "a system", "instruction_sets": ["AVX2"],
        "cris_edge": "0", "python": "3",
    }  # fmt: skip


def test_members_are_recipes() -> None:
    assert set(MEMBERS) <= set(RECIPES)


def test_tables(tmp_path: Path) -> None:
    tiny = member("tiny", 12.0)
    tiny["runtimes"]["pytorch"] = tiny["runtimes"]["onnxruntime"]  # type: ignore[index]
    found = document(member("nano", 4.0), {**tiny, "note": "an earlier network"})
    text = to_markdown(found)
    assert "| 1.30 |" in " ".join(text.split()) and "| 0.30 |" in " ".join(text.split())  # GMAC; of the next prompt
    assert "12.00 ±0.00" in text and "6.00 ±0.00" in text and "mIoU" not in text
    assert "| tiny † |" in text and "† tiny: an earlier network" in text
    write(found, tmp_path / "new")
    with (tmp_path / "new" / "family.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["member"] for row in rows] == ["nano", "tiny"]
    assert float(rows[1]["onnxruntime_whole_median_ms"]) == 12 and rows[0]["pytorch_whole_median_ms"] == ""
    assert json.loads((tmp_path / "new" / "family.json").read_text()) == found
    assert (tmp_path / "new" / "family.md").read_text() == text
    scored = to_markdown(document(member("nano", 4.0, 61.25)))
    assert "mIoU recorded" in scored and "61.2" in scored


@pytest.mark.slow
def test_a_member_from_recipe_to_table(tmp_path: Path) -> None:
    found = measure(("nano",), folder=tmp_path, threads=1, runs=2, seconds=0, architecture=SMALL)
    assert not found["failures"]
    (nano,) = found["members"]
    assert set(nano["runtimes"]) >= {"onnxruntime", "pytorch"}
    assert nano["input_size"] == 64 and nano["parameters"] > nano["token_table"] > 49_000 * 32
    assert all(count > 0 for count in nano["macs"].values()) and len(nano["checkpoint"]["sha256"]) == 64
    assert all(row["peak_memory"] is None or row["peak_memory"] > 2e7 for row in nano["runtimes"].values())
    again = measure(("nano",), folder=tmp_path, threads=1, runs=2, seconds=0)  # reuses the export
    assert again["members"][0]["macs"] == nano["macs"]


def test_a_failed_export_is_reported(tmp_path: Path) -> None:
    (tmp_path / "nano.pt").write_bytes(b"PK")
    with pytest.raises(OptionError, match="choose from nano"):
        measure(("giant",))
    options = ["--member", "nano", "--checkpoints", tmp_path, "--output", tmp_path / "out"]
    result = CliRunner().invoke(family.main, list(map(str, options)))
    assert result.exit_code == 1 and "failed: nano: " in result.stdout and "nano.pt" in result.stdout
