"""Trials of equal budget: each is trained once, resumed where it was stopped, and scored on the same prompts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from benchmarks import ablation, trials
from benchmarks.trials import Outcome, Trial, difference, run, settings
from cris_edge.errors import OptionError
from training.checkpoint import load_model
from training.engine import StoppedError, Trainer

pytest.importorskip("matplotlib")

SMALL = {
    "input_size": "128", "image_resolution": "128", "vision_layers": "1,1,1,1", "vision_width": "8", "embed_dim": "32",
    "text_width": "32", "text_layers": "1", "decoder_heads": "2", "ffn_dim": "32", "sizes": "", "size_shares": "",
    "batch_size": "2", "sentences_per_image": "2", "workers": "0", "threads": "1", "precision": "float32",
    "checkpoint_every": "1",
}  # fmt: skip
DATA = ("scenes:val:3:1", "scenes:relations:2:1")


def arguments(folder: Path, steps: int = 2, **changes: str) -> list[str]:
    given = [f"--set={name}={value}" for name, value in {**SMALL, **changes}.items()]
    places = ["--output", str(folder / "runs"), "--results", str(folder / "results"), "--device", "cpu"]
    return [*places, "--steps", str(steps), *(f"--data={data}" for data in DATA), *given]


def invoke(command: object, arguments: list[str]) -> Result:
    result = CliRunner().invoke(command, arguments)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result


def outcome(name: str, ious: list[tuple[int, float]]) -> Outcome:
    return Outcome(Trial(name, name, trials.plan("nano-scenes", 1, {})), 1, ious={"d": ious})


def test_rows_differ_only_in_their_own_fields() -> None:
    planned = ablation.plan("nano-scenes", 7, ablation.PAPER + ablation.REST, {"seed": 3})
    assert {(on, n) for on, n in planned} == {(on, n) for on in (True, False) for n in range(5)}
    base = trials.plan("nano-scenes", 7, {"seed": 3}).to_dict()
    assert base["loop"]["steps"] == 7 and base["data"]["val"] is None
    for (on, n), trial in planned.items():
        assert trial.config is not None
        found = trial.config.to_dict()
        assert found["architecture"] == {**base["architecture"], "contrastive": on, "decoder_layers": n}
        assert {**found, "architecture": None} == {**base, "architecture": None}


def test_comparisons_need_both_rows() -> None:
    found = [(ours, theirs) for _, ours, theirs in ablation.pairs(ablation.PAPER)]
    assert ((True, 0), (False, 0)) in found and ((True, 4), (True, 3)) in found and ((False, 1), (False, 0)) in found
    assert len(found) == 2 + 4 + 1
    assert ablation.pairs([(True, 2)]) == []
    assert ablation._papers((True, 1), (True, 0)) == "+4.0"  # 68.66 less 64.64
    assert ablation._papers((False, 2), (False, 1)) == ""


def test_a_difference_is_paired() -> None:
    theirs = outcome("a", [(0, 0.1), (0, 0.3), (1, 0.9), (2, 0.5)])
    ours = outcome("b", [(image, iou + 0.05) for image, iou in theirs.ious["d"]])
    middle, low, high = difference(ours, theirs, "d")
    assert (middle, low, high) == pytest.approx((5.0, 5.0, 5.0))  # the images differ, what was gained does not
    uneven = outcome("c", [(0, 0.1), (0, 0.3), (1, 0.9), (2, 0.9)])
    middle, low, high = difference(uneven, theirs, "d")
    assert middle == pytest.approx(10.0) and low < middle < high
    with pytest.raises(ValueError, match="different prompts"):
        difference(outcome("d", [(5, 0.1)]), outcome("e", [(6, 0.1)]), "d")


def test_the_whole_ablation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "PAPER", ((False, 0), (True, 0), (True, 1)))  # each row takes seconds
    text = invoke(ablation.main, arguments(tmp_path)).stdout
    results = tmp_path / "results"
    with (results / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["contrastive"], row["decoder_layers"]) for row in rows[::2]] == [
        (str(int(on)), str(n)) for on, n in ablation.PAPER
    ]
    assert [row["data"] for row in rows[:2]] == list(DATA)
    assert all(row["steps"] == "2" and float(row["mIoU_low"]) <= float(row["mIoU"]) for row in rows)
    counts = [int(row["parameters"]) for row in rows[::2]]
    assert len(set(counts)) == len(counts)
    assert (results / "ablation.png").stat().st_size > 5000
    assert (results / "ablation.md").read_text() == text.rstrip("\n") + "\n"
    assert "decoder layer 1, contrastive" in text and "contrastive learning at n = 0" in text

    # Again: nothing is trained, nothing is scored.
    monkeypatch.setattr(trials, "Trainer", None)
    monkeypatch.setattr(trials, "score", None)
    assert invoke(ablation.main, arguments(tmp_path)).stdout == text
    # Another budget in the same folder would compare what cannot be compared.
    result = CliRunner().invoke(ablation.main, arguments(tmp_path, steps=3))
    assert result.exit_code == 1 and "--steps 2, but this comparison has 3" in result.stderr
    result = CliRunner().invoke(ablation.main, arguments(tmp_path, learning_rate="0.5"))
    assert result.exit_code == 1 and "--learning-rate" in result.stderr


def test_a_stopped_trial_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = trials.plan("nano-scenes", 3, SMALL)
    step, taken = Trainer.train_step, []

    def counted(self: Trainer, micro: list[object]) -> tuple[float, float]:
        taken.append(self.state.step)
        if len(taken) == 2:
            self._stop = True
        return step(self, micro)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train_step", counted)
    trial = Trial("one", "one", config)
    with pytest.raises(StoppedError):
        list(run([trial], tmp_path, DATA[:1], device="cpu"))
    assert taken == [0, 1]
    (found,) = run([trial], tmp_path, DATA[:1], device="cpu")
    assert taken == [0, 1, 2]
    assert found.parameters == sum(parameter.numel() for parameter in load_model(tmp_path / "one/last.pt").parameters())
    assert found.seconds > 0

    # Other weights in the folder are scored again.
    before = json.loads((tmp_path / "one" / "scores.json").read_text())
    content = torch.load(tmp_path / "one" / "last.pt", weights_only=False)
    next(tensor for name, tensor in content["state_dict"].items() if name.endswith("proj.txt.bias")).add_(1)
    torch.save(content, tmp_path / "one" / "last.pt")
    list(run([trial], tmp_path, DATA[:1], device="cpu"))
    after = json.loads((tmp_path / "one" / "scores.json").read_text())
    assert after["checkpoint"] != before["checkpoint"] and taken == [0, 1, 2]


def test_unknown_settings_are_refused(tmp_path: Path) -> None:
    assert settings(["learning-rate = 1e-3", "sizes="]) == {"learning_rate": "1e-3", "sizes": ""}
    with pytest.raises(OptionError, match="NAME=VALUE"):
        settings(["learning_rate"])
    for words in (["--set=learning_rat=1"], ["--recipe", "giant"]):
        result = CliRunner().invoke(ablation.main, [*arguments(tmp_path), *words])
        assert result.exit_code == 1 and result.stderr.startswith("error: ")
