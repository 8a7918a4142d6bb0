"""The family's table: every member exported, measured in the same rounds, and counted."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import family
from benchmarks.family import MEMBERS, Family, Member, measure
from cris_edge.benchmark.rounds import LatencySamples
from cris_edge.errors import OptionError
from training.recipes import RECIPES

pytest.importorskip("onnxruntime")

SMALL = {
    "input_size": 64, "image_resolution": 64, "vision_layers": [1, 1, 1, 1], "vision_width": 8, "embed_dim": 32,
    "text_width": 32, "text_layers": 1, "decoder_heads": 2, "ffn_dim": 32,
}  # fmt: skip


def member(name: str, milliseconds: float, **given: object) -> Member:
    turns = LatencySamples()
    turns.blocks = [[{"whole": milliseconds / 1e3, "next": milliseconds / 2e3}] * 3] * 6
    macs = {"image_encoder": 10**9, "text_encoder": 10**8, "mask_decoder": 2 * 10**8}
    made = Member(name, 224, 5_000_000, 3_000_000, macs, **given)  # type: ignore[arg-type]
    made.turns, made.versions, made.memory = {"onnxruntime": turns}, {"onnxruntime": "1.0"}, {"onnxruntime": 10**8}
    return made


def machine() -> dict[str, object]:
    return {
        "processor": "a processor", "cores": 2, "physical_cores": 2, "system": "a system", "instruction_sets": ["AVX2"],
        "cris_edge": "0", "python": "3",
    }  # fmt: skip


def test_members_are_recipes() -> None:
    assert set(MEMBERS) <= set(RECIPES)


def test_tables(tmp_path: Path) -> None:
    found = Family(machine(), 2, [member("nano", 4.0), member("tiny", 12.0)], ["onnxruntime", "pytorch"])
    text = found.to_markdown()
    assert "| 1.30 |" in " ".join(text.split()) and "| 0.30 |" in " ".join(text.split())  # GMAC; of the next sentence
    assert "12.00 ±0.00" in text and "6.00 ±0.00" in text and "mIoU" not in text
    paths = found.write(tmp_path / "new")
    assert [path.name for path in paths] == ["family.md", "family.csv", "family.json"]
    with paths[1].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["member"] for row in rows] == ["nano", "tiny"]
    assert float(rows[1]["onnxruntime_whole_median_ms"]) == 12 and rows[1]["pytorch_whole_median_ms"] == ""
    assert json.loads(paths[2].read_text())["members"][0]["macs"]["text_encoder"] == 10**8
    scored = Family(machine(), 2, [member("nano", 4.0, accuracy=61.25)], ["onnxruntime"]).to_markdown()
    assert "mIoU recorded" in scored and "61.2" in scored


@pytest.mark.slow
def test_a_member_from_recipe_to_table(tmp_path: Path) -> None:
    found = measure(("nano",), folder=tmp_path, threads=1, runs=2, seconds=0, architecture=SMALL)
    assert not found.failures
    (nano,) = found.members
    assert set(nano.turns) == set(found.runtimes) >= {"onnxruntime", "pytorch"}
    assert nano.input_size == 64 and nano.parameters > nano.embeddings > 49_000 * 32
    assert 0 < nano.next_macs < sum(nano.macs.values())
    assert all(peak is None or peak > 2e7 for peak in nano.memory.values())
    again = measure(("nano",), folder=tmp_path, threads=1, runs=2, seconds=0)  # the export is there already
    assert again.members[0].macs == nano.macs


def test_what_cannot_be_exported_is_told(tmp_path: Path) -> None:
    (tmp_path / "nano.pt").write_bytes(b"PK")
    with pytest.raises(OptionError, match="choose from nano"):
        measure(("giant",))
    options = ["--member", "nano", "--checkpoints", tmp_path, "--output", tmp_path / "out"]
    result = CliRunner().invoke(family.main, list(map(str, options)))
    assert result.exit_code == 1 and "failed: nano: " in result.stdout and "nano.pt" in result.stdout
