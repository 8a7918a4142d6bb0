"""``python -m quantization.finetune --checkpoint FILE --data DATA --val DATA --output FILE``: int8, at a stated loss.

Climbs the ladder of `quantization.ladder` and writes the quantized checkpoint. Exit status 1 where no rung is within
``--max-drop``: the best is written all the same.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cris_edge.errors import CrisEdgeError, OptionError
from cris_edge.files import write_whole
from quantization.distill import Settings
from quantization.ladder import Ladder, Plan, Rung
from quantization.post_training import TARGETS
from quantization.quantized_checkpoint import load_float, save_quantized
from quantization.sensitivity import Row, write_chart, write_table
from training.checkpoint import sha256
from training.data.samples import open_source
from training.device import choose_device

logger = logging.getLogger("cris_edge.quantization")


def finetune(
    checkpoint: Path, data: str, val: str, output: Path, plan: Plan, *,
    resume: str = "never", device: str = "cpu", charts: Path | None = None, **given: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Write the quantized checkpoint `output`; return the report that it carries.

    Args:
        checkpoint: A float CRIS checkpoint.
        data: JSON Lines file, or ``scenes:SPLIT:LENGTH:SEED``, to calibrate and fine-tune with.
        val: The same, to measure on.
        output: The file to write. What a killed run needs lies in ``OUTPUT.work`` until the file is written.
        plan: How.
        resume: ``never``, or ``auto`` to continue in ``OUTPUT.work``.
        device: Where to fine-tune.
        charts: Folder for the table and the chart of sensitivities.
        given: What a public checkpoint does not say (word_len, decoder_heads, input_size).

    Raises:
        CheckpointError: The checkpoint is none, or quantized already.
        DataError: The data cannot be used.
        OptionError: A setting, or a run that is there already.
        ExportError: NNCF refuses a layer.
    """
    began = time.perf_counter()
    work = output.with_name(output.name + ".work")
    source = open_source(data, by_image=True)
    labelled = open_source(val, by_image=True)
    bare, recorded = load_float(checkpoint, **given)
    tuning = replace(plan.tuning, mask_target=recorded.get("mask_target", plan.tuning.mask_target))
    plan = replace(plan, tuning=tuning)
    asked = {"checkpoint": sha256(checkpoint), "data": data, "val": val, "plan": plan.to_dict()}
    _claim(work, asked, resume)
    metrics = output.with_name(output.name + ".metrics.jsonl")
    ladder = Ladder(bare, source, labelled, plan, work, metrics=metrics, device=device)
    best, rungs = ladder.climb()
    report = {
        "reached": best.drop <= plan.max_drop,
        "max_drop": plan.max_drop,
        "rung": best.figures["rung"],
        "drop": best.drop,
        "seconds": round(time.perf_counter() - began, 1),
        "float": ladder.notes["float"],
        "rungs": [rung.figures for rung in rungs],
        **asked,
        "checkpoint_path": str(checkpoint.resolve()),
    }
    if charts is not None:
        _draw(rungs, charts, checkpoint.stem)
    save_quantized(output, best.network, report=report, **recorded)
    write_whole(output.with_name(output.name + ".report.json"), json.dumps(report, indent=2) + "\n")
    shutil.rmtree(work)
    return report


def _claim(work: Path, asked: dict[str, Any], resume: str) -> None:
    """Make the work folder this run's, or see that it is."""
    file = work / "asked.json"
    if file.exists():
        if resume != "auto":
            raise OptionError(f"{work} holds a run that was stopped; continue it with --resume auto, or remove it.")
        if json.loads(file.read_text(encoding="utf-8")) != json.loads(json.dumps(asked)):
            raise OptionError(f"{work} holds a run with other settings; continue with those, or remove it.")
        return
    work.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(asked))


def _draw(rungs: list[Rung], folder: Path, name: str) -> None:
    for rung in rungs:
        if "sensitivity" in rung.figures:
            rows = [Row(**row) for row in rung.figures["sensitivity"]]
            write_table(rows, folder / "sensitivity.csv")
            write_chart(rows, folder / "sensitivity.png", f"{name}, one group quantized at a time")


def summary(report: dict[str, Any]) -> str:
    """The ladder as lines of text."""
    before = report["float"]["metrics"]["mIoU"]
    lines = [f"{'float32':14} mIoU {before:6.2f}"]
    for rung in report["rungs"]:
        spared = f", {len(rung['float'])} groups in float" if rung.get("float") else ""
        lines.append(
            f"{rung['rung']:14} mIoU {rung['metrics']['mIoU']:6.2f}  lost {rung['drop']:+.2f}  "
            f"{rung['seconds']:.0f} s{spared}"
        )
    verdict = "within" if report["reached"] else "past"
    lines.append(f"written: {report['rung']}, {verdict} the {report['max_drop']:g} points allowed")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="A float CRIS checkpoint.")
@click.option("--data", required=True, metavar="DATA", help="To calibrate and fine-tune with: FILE.jsonl or scenes:…")
@click.option("--val", required=True, metavar="DATA", help="Labelled data to measure on: FILE.jsonl or scenes:…")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Quantized checkpoint to write.")
@click.option("--max-drop", type=float, default=0.5, show_default=True, help="Points of mIoU that may be lost.")
@click.option("--all-rungs", is_flag=True, help="Measure every rung, even where one before suffices.")
@click.option("--target", type=click.Choice(TARGETS), default="vnni", show_default=True, help="any: also without VNNI.")
@click.option("--calibration", type=click.IntRange(1), default=128, show_default=True, help="Images to calibrate with.")
@click.option("--epochs", type=float, default=1.0, show_default=True, help="Passes of fine-tuning over the data.")
@click.option("--steps", type=click.IntRange(1), help="Steps of fine-tuning; overrides --epochs.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Images a step.")
@click.option("--learning-rate", type=float, default=Settings.learning_rate, show_default=True, help="Of the weights.")
@click.option("--workers", type=click.IntRange(0), default=1, show_default=True, help="Loader processes.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every random choice.")
@click.option("--limit", type=click.IntRange(1), help="Images of each half of --val to score.  [default: all]")
@click.option("--charts", type=click.Path(path_type=Path), help="Folder for the chart of sensitivities.")
@click.option("--resume", type=click.Choice(["never", "auto"]), default="never", show_default=True)
@click.option("--device", default="auto", show_default=True, help="To fine-tune on: auto, cpu, cuda.")
@click.option("--input-size", type=int, help="Pixels; for checkpoints that do not say.  [default: 416]")
@click.option("--word-len", type=int, help="Tokens; for checkpoints that do not say.  [default: 17]")
@click.option("--decoder-heads", type=int, help="For checkpoints that do not say.  [default: 8]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(checkpoint: Path, data: str, val: str, output: Path, **options: Any) -> None:
    """Read the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cris_edge").setLevel(logging.INFO)
    take = options.pop
    try:
        tuning = Settings(
            **{name: take(name) for name in ("epochs", "steps", "batch_size", "learning_rate", "workers")},
            seed=options["seed"],
        )
        names = ("max_drop", "all_rungs", "target", "calibration", "seed", "limit")
        plan = Plan(**{name: take(name) for name in names}, tuning=tuning)
    except OptionError as error:
        raise click.UsageError(str(error)) from error
    as_json = take("as_json")
    try:
        options["device"] = str(choose_device(options["device"]))
        report = finetune(checkpoint, data, val, output, plan, **options)
    except CrisEdgeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    click.echo(summary(report), err=True)
    if as_json:
        click.echo(json.dumps(report))
    sys.exit(0 if report["reached"] else 1)


if __name__ == "__main__":
    main()
