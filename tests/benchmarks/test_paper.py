"""The paper's tables: its own figures unchanged, our parameters counted, our checkpoints in their rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import fps, paper, paper_tables
from benchmarks.paper import Tables, add_accuracies, count_parameters, recipes
from cris_edge.errors import CheckpointError, DataError, OptionError
from training.checkpoint import save_model, to_public
from training.config import RunConfig
from training.model import CRIS, Architecture
from training.recipes import RECIPES

SMALL = Architecture(
    input_size=128, image_resolution=128, vision_layers=(1, 1, 1, 1), vision_width=8, embed_dim=32, text_width=32,
    text_layers=1, decoder_layers=3, decoder_heads=2, ffn_dim=32,
)  # fmt: skip


def rows(text: str, first: str) -> list[list[str]]:
    """Cells of the Markdown rows that begin with a word."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {first}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def small_recipes(monkeypatch: pytest.MonkeyPatch) -> Tables:
    """Every row's recipe with a network that a test can hold."""

    def small(name: str) -> RunConfig:
        run = RECIPES[name]()
        changes = {"decoder_layers": run.architecture.decoder_layers, "contrastive": run.architecture.contrastive}
        return replace(run, architecture=replace(SMALL, **changes))

    monkeypatch.setattr(paper, "recipe", small)
    return Tables({name: count_parameters(name) for name in recipes()})


def checkpoint(path: Path, **extra: Any) -> Path:
    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, CRIS(SMALL), **extra)
    return path


def test_the_papers_figures_are_the_papers(shared_data: Path) -> None:
    for name in ("methods.csv", "ablation.csv", "datasets.csv"):
        assert (paper_tables.FOLDER / name).read_bytes() == (shared_data / "paper" / name).read_bytes()


def test_tables_without_anything_of_ours() -> None:
    result = CliRunner().invoke(paper.main)
    assert result.exit_code == 0, result.output
    assert len(paper_tables.methods()) == 17 and len(paper_tables.ablation()) == 21
    (ours,) = rows(result.stdout, "*ours, r101*")
    assert ours[2:10] == [""] * 8 and ours[10] == "161.25"
    for row, cells in zip(
        paper_tables.ablation(), rows(result.stdout, "RefCOCO ") + rows(result.stdout, "RefCOCO+"), strict=False
    ):
        assert cells[3] == f"{row.iou:.2f}" and cells[4] == ""
        assert cells[5] == cells[6] == f"{row.parameters:.2f}"  # counted on our recipes: the paper's to the last digit
    assert "arXiv:2111.15174" in result.stdout and "python -m training.train" in result.stdout


def test_json(tmp_path: Path) -> None:
    output = tmp_path / "new" / "paper.json"
    result = CliRunner().invoke(paper.main, ["--json", "--output", str(output)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads(output.read_text())
    assert found["methods"][-1]["recipe"] == "r101" and found["methods"][0]["ours"] is None
    assert found["ablation"][5]["paper"]["iou"] == 69.52
    assert found["ablation"][5]["ours"]["parameters"] == 146_849_122


def test_recorded_accuracy(small_recipes: Tables, tmp_path: Path) -> None:
    scores = {"mIoU": 61.5, "samples": 10}
    checkpoint(tmp_path / "r50@refcoco+.pt", metrics=scores)
    checkpoint(tmp_path / "r50-contrastive-n3" / "best.pt", metrics={**scores, "mIoU": 50.25})
    checkpoint(tmp_path / "mine.pt", metrics=scores)
    add_accuracies(small_recipes, tmp_path, (), "cpu")
    text = small_recipes.to_markdown()
    (method,) = rows(text, "*ours, r50*")
    assert method[5] == "61.50 †" and method[2] == ""
    marked = [(cells[0], cells[2]) for cells in rows(text, "RefCOCO") if cells[4]]
    assert marked == [("RefCOCO+", "3")]  # the ablation's row is the same network
    assert "r50-contrastive-n3 recorded an mIoU of 50.25 †" in text and "not measured here" in text


def test_measured_accuracy(small_recipes: Tables, tmp_path: Path) -> None:
    from training.scenes.synthetic import SyntheticScenes, write

    write(tmp_path / "refcocog", SyntheticScenes("val", 2, 1, 96, 128))
    lines = tmp_path / "refcocog" / "val.jsonl"
    checkpoint(tmp_path / "made" / "r50.pt", metrics={"mIoU": 99.0})
    public = dict(to_public(CRIS(SMALL).state_dict()))
    torch.save({"state_dict": public}, tmp_path / "made" / "r101@refcocog.pth")
    torch.save({"state_dict": public}, tmp_path / "made" / "r50-contrastive-n3@refcoco.pth")
    add_accuracies(small_recipes, tmp_path / "made", [str(lines)], "cpu")
    assert set(small_recipes.accuracies) == {("r50", "refcocog", "val"), ("r101", "refcocog", "val")}
    found = small_recipes.accuracy("r50-contrastive-n3", "refcocog", "val")
    assert found is not None and found.measured and 0 <= found.miou <= 100
    (method,) = rows(small_recipes.to_markdown(), "*ours, r50*")
    assert method[8] == f"{found.miou:.2f}"


def test_what_does_not_fit_is_refused(small_recipes: Tables, tmp_path: Path) -> None:
    checkpoint(tmp_path / "wrong" / "r50-contrastive-n1.pt")
    with pytest.raises(CheckpointError, match="decoder_layers 3, but recipe r50-contrastive-n1 has 1"):
        add_accuracies(small_recipes, tmp_path / "wrong", (), "cpu")
    checkpoint(tmp_path / "none" / "mine.pt")
    with pytest.raises(DataError, match="named after a recipe"):
        add_accuracies(small_recipes, tmp_path / "none", (), "cpu")
    for words in (["--checkpoints", "gone"], ["--data", "val.jsonl"]):
        result = CliRunner().invoke(paper.main, words)
        assert result.exit_code == 1 and result.stderr.startswith("error: "), result.output


def test_speed(small_recipes: Tables) -> None:
    before = torch.get_num_threads()
    networks = {"r50-contrastive-n3": SMALL, "r50-contrastive-n0": replace(SMALL, decoder_layers=0)}
    speeds, setting = fps.measure(networks, (17, 22), threads=1, rounds=2)
    assert torch.get_num_threads() == before
    assert set(speeds) == {(name, length) for name in networks for length in (17, 22)}
    assert all(speed.seconds.count == 2 * fps.RUNS for speed in speeds.values())
    slowest, low, high = speeds["r50-contrastive-n3", 17].fps
    assert 0 < low <= slowest <= high
    small_recipes.speeds, small_recipes.setting = speeds, setting
    text = small_recipes.to_markdown()
    by_row = {
        (cells[0], cells[2]): cells[8] for cells in rows(text, "RefCOCO ") + rows(text, "G-Ref") if cells[1] == "yes"
    }
    assert by_row["RefCOCO", "3"] == str(speeds["r50-contrastive-n3", 17])
    assert by_row["G-Ref", "3"] == str(speeds["r50-contrastive-n3", 22])
    assert by_row["G-Ref", "4"] == ""
    assert "threads: 1," in text and "float32" in text and setting["device"] in text
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="not available to PyTorch"):
            fps.measure(networks, (17,), device="cuda")
