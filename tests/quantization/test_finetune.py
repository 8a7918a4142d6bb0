"""The ladder from end to end, on a network and data that take seconds."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from cris_edge.errors import DataError, ImageError, OptionError
from quantization.distill import Settings
from quantization.finetune import finetune, main
from quantization.ladder import Ladder, Plan
from quantization.quantized_checkpoint import load_quantized

TUNING = Settings(steps=3, batch_size=4, sentences=1, workers=0)
PLAN = Plan(max_drop=100, calibration=8, sensitivity_images=2, tuning=TUNING)


def test_the_ladder_stops_at_the_first_stage_that_suffices(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    report = finetune(checkpoint, str(data), str(data), tmp_path / "int8.pt", PLAN)
    assert report["reached"] and report["rung"] == "post-training"
    assert [rung["rung"] for rung in report["rungs"]] == ["post-training"]
    assert len(report["rungs"][0]["tried"]) == 3
    assert report["plan"]["tuning"]["mask_target"] == "area"  # as the checkpoint says
    network, extra = load_quantized(tmp_path / "int8.pt")
    assert any(network.quantizers())
    assert extra["report"]["drop"] == report["drop"] and extra["description"] == "Random weights."
    assert json.loads((tmp_path / "int8.pt.report.json").read_text())["seconds"] > 0
    assert not (tmp_path / "int8.pt.work").exists()


def test_the_best_stage_is_written_where_none_suffices(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([50.0, 50.0, *[40.0] * 99])  # the float network on either half, then everything else

    def score(self: Ladder, network: object, part: object) -> dict[str, object]:
        return {"dataset": "d", "split": "s", "mIoU": next(scores)}

    monkeypatch.setattr(Ladder, "_score", score)
    arguments = ["--checkpoint", checkpoint, "--data", data, "--val", data, "--output", tmp_path / "int8.pt"]
    arguments += [
        "--steps",
        2,
        "--batch-size",
        4,
        "--workers",
        0,
        "--calibration",
        8,
        "--charts",
        tmp_path / "charts",
        "--json",
    ]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    logging.getLogger("cris_edge").setLevel(logging.NOTSET)
    assert result.exit_code == 1, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert not report["reached"] and report["drop"] == 10
    assert [rung["rung"] for rung in report["rungs"]] == ["post-training", "mixed", "fine-tuned"]
    assert report["rungs"][1]["float"] and report["rungs"][1]["sensitivity"]
    assert (tmp_path / "charts" / "sensitivity.png").exists()
    assert "past the 0.5 points allowed" in result.stderr
    load_quantized(tmp_path / "int8.pt")


def test_a_stopped_run_resumes(checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "int8.pt"
    plan = Plan(max_drop=0, all_stages=True, calibration=8, sensitivity_images=2, tuning=TUNING)

    def stop(self: Ladder, stages: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Ladder, "_mixed", stop)
        finetune(checkpoint, str(data), str(data), output, plan)
    with pytest.raises(OptionError, match="resume it with --resume auto"):
        finetune(checkpoint, str(data), str(data), output, plan)
    with pytest.raises(OptionError, match="other settings"):
        finetune(checkpoint, str(data), str(data), output, PLAN, resume="auto")
    monkeypatch.setattr(Ladder, "_post_training", stop)  # not run again
    report = finetune(checkpoint, str(data), str(data), output, plan, resume="auto")
    assert [rung["rung"] for rung in report["rungs"]] == ["post-training", "mixed", "fine-tuned"]
    assert report["rungs"][2]["steps"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data": "absent.jsonl"}, "absent.jsonl does not exist"),
        ({"--checkpoint": "absent.pt"}, "absent.pt does not exist"),
    ],
)
def test_errors_are_one_line(
    checkpoint: Path, data: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    options = {
        "--checkpoint": str(checkpoint),
        "--data": str(data),
        "--val": str(data),
        "--output": str(tmp_path / "a.pt"),
    }
    result = CliRunner().invoke(main, [word for pair in {**options, **change}.items() for word in pair])
    logging.getLogger("cris_edge").setLevel(logging.NOTSET)
    assert result.exit_code == 1
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_a_failure_on_the_input_leaves_nothing_behind(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "int8.pt"
    output.parent.mkdir()
    few = tmp_path / "few.jsonl"
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    lines = [{**line, **{name: str(data.parent / line[name]) for name in ("image", "mask")}} for line in lines]
    few.write_text("".join(json.dumps(line) + "\n" for line in lines[:5]))
    with pytest.raises(DataError, match=r"few\.jsonl has 5 images to calibrate with; expected at least 8"):
        finetune(checkpoint, str(few), str(data), output, PLAN)
    few.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(DataError, match=r"few\.jsonl has 1 image to validate with"):
        finetune(checkpoint, str(data), str(few), output, PLAN)
    # An image that cannot be decoded is found only when it is needed.
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = tmp_path / "broken.jsonl"
    first = {**lines[0], "image": str(tmp_path / "broken.png")}
    broken.write_text("".join(json.dumps(line) + "\n" for line in [first, *lines[1:]]))
    with pytest.raises(ImageError, match=r"broken\.png"):
        finetune(checkpoint, str(broken), str(data), output, replace(PLAN, calibration=12))
    assert list(output.parent.iterdir()) == []
    assert finetune(checkpoint, str(data), str(data), output, PLAN)["reached"]


def test_a_drop_below_zero_is_wrong_usage() -> None:
    with pytest.raises(OptionError, match="largest drop"):
        Plan(max_drop=-1)
