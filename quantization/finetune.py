"""``python -m quantization.finetune --checkpoint FILE --data DATA --val DATA --output FILE``: quantize within a drop.

Runs the ladder of `quantization.ladder` and writes the quantized checkpoint. Where no stage is within ``--max-drop`` it
writes the best one and exits with status 1.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cris_edge.errors import CrisEdgeError, OptionError
from cris_edge.files import write_whole
from quantization.calibration import require_enough, require_two
from quantization.distill import Settings
from quantization.hooks import load as load_nncf
from quantization.ladder import Ladder, Plan, Stage
from quantization.post_training import TARGETS
from quantization.quantized_checkpoint import load_float, save_quantized
from quantization.sensitivity import Row, write_chart, write_table
from training.checkpoint import sha256
from training.data.samples import open_source
from training.device import choose_device


def finetune(
    checkpoint: Path, data: str, val: str, output: Path, plan: Plan, *,
    resume: str = "never", device: str = "cpu", charts: Path | None = None, **given: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Write the quantized checkpoint `output`; returns the report stored in it.

    Args:
        checkpoint: A float CRIS checkpoint.
        data: JSON Lines file, or ``scenes:SPLIT:LENGTH:SEED``, to calibrate and fine-tune with.
        val: The same, to measure on.
        output: File to write. ``OUTPUT.work`` holds everything that resuming needs until then.
        plan: Settings of the ladder.
        resume: ``never``, or ``auto`` to resume from ``OUTPUT.work``.
        device: Device of the fine-tuning.
        charts: Folder for the table and the chart of sensitivities.
        given: What a public checkpoint does not record (word_len, decoder_heads, input_size).

    Raises:
        CheckpointError: The checkpoint cannot be read, or is quantized already.
        DataError: The data cannot be used.
        OptionError: A setting is wrong, or ``OUTPUT.work`` holds another run.
        ExportError: NNCF cannot quantize a layer.
        RuntimeMissingError: NNCF is not installed.
    """
    began = time.perf_counter()
    load_nncf()
    source, labelled = open_source(data, by_image=True), open_source(val, by_image=True)
    require_enough(source)
    require_two(labelled)
    bare, recorded = load_float(checkpoint, **given)
    tuning = replace(plan.tuning, mask_target=recorded.get("mask_target", plan.tuning.mask_target))
    plan = replace(plan, tuning=tuning)
    run = {"checkpoint": sha256(checkpoint), "data": data, "val": val, "plan": plan.to_dict()}
    work = output.with_name(output.name + ".work")
    metrics = output.with_name(output.name + ".metrics.jsonl")
    ladder = Ladder(bare, source, labelled, plan, work, metrics=metrics, device=device)
    with _claimed(work, run, resume):
        best, stages = ladder.run()
    report = {
        "reached": best.drop <= plan.max_drop,
        "max_drop": plan.max_drop,
        "rung": best.figures["rung"],
        "drop": best.drop,
        "seconds": round(time.perf_counter() - began, 1),
        "float": ladder.float_figures,
        "rungs": [stage.figures for stage in stages],
        **run,
        "checkpoint_path": str(checkpoint.resolve()),
    }
    if charts is not None:
        _plot(stages, charts, checkpoint.stem)
    save_quantized(output, best.network, report=report, **recorded)
    write_whole(output.with_name(output.name + ".report.json"), json.dumps(report, indent=2) + "\n")
    shutil.rmtree(work)
    return report


@contextlib.contextmanager
def _claimed(work: Path, run: dict[str, Any], resume: str) -> Iterator[None]:
    """Make the work folder this run's; removes it again on an error before there is a stage to resume from."""
    file = work / "asked.json"
    if file.exists():
        if resume != "auto":
            raise OptionError(f"{work} holds a stopped run; resume it with --resume auto, or remove it.")
        if json.loads(file.read_text(encoding="utf-8")) != json.loads(json.dumps(run)):
            raise OptionError(f"{work} holds a run with other settings; resume with those, or remove it.")
    else:
        work.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(run))
    try:
        yield
    except CrisEdgeError:
        if not any(work.glob("*.pt")):
            shutil.rmtree(work)
        raise


def _plot(stages: list[Stage], folder: Path, name: str) -> None:
    for stage in stages:
        if "sensitivity" in stage.figures:
            rows = [Row(**row) for row in stage.figures["sensitivity"]]
            write_table(rows, folder / "sensitivity.csv")
            write_chart(rows, folder / "sensitivity.png", f"{name}, one group quantized at a time")


def summary(report: dict[str, Any]) -> str:
    """The stages as lines of text."""
    before = report["float"]["metrics"]["mIoU"]
    lines = [f"{'float32':14} mIoU {before:6.2f}"]
    for stage in report["rungs"]:
        spared = f", {len(stage['float'])} groups in float" if stage.get("float") else ""
        lines.append(
            f"{stage['rung']:14} mIoU {stage['metrics']['mIoU']:6.2f}  drop {stage['drop']:+.2f}  "
            f"{stage['seconds']:.0f} s{spared}"
        )
    verdict = "within" if report["reached"] else "past"
    lines.append(f"written: {report['rung']}, {verdict} the {report['max_drop']:g} points allowed")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="A float CRIS checkpoint.")
@click.option("--data", required=True, metavar="DATA", help="To calibrate and fine-tune with: FILE.jsonl or scenes:…")
@click.option("--val", required=True, metavar="DATA", help="Labelled data to measure on: FILE.jsonl or scenes:…")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Quantized checkpoint to write.")
@click.option("--max-drop", type=float, default=0.5, show_default=True, help="Allowed drop in mIoU, in points.")
@click.option("--all-stages", "--all-rungs", "all_stages", is_flag=True, help="Measure every stage.")
@click.option("--target", type=click.Choice(TARGETS), default="vnni", show_default=True, help="any: CPUs without VNNI.")
@click.option("--calibration", type=click.IntRange(1), default=128, show_default=True, help="Calibration images.")
@click.option("--epochs", type=float, default=1.0, show_default=True, help="Passes of fine-tuning over the data.")
@click.option("--steps", type=click.IntRange(1), help="Steps of fine-tuning; overrides --epochs.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Images per step.")
@click.option("--learning-rate", type=float, default=Settings.learning_rate, show_default=True, help="Of the weights.")
@click.option("--workers", type=click.IntRange(0), default=1, show_default=True, help="Loader processes.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every random choice.")
@click.option("--limit", type=click.IntRange(1), help="Images of each half of --val to score.  [default: all]")
@click.option("--charts", type=click.Path(path_type=Path), help="Folder for the chart of sensitivities.")
@click.option("--resume", type=click.Choice(["never", "auto"]), default="never", show_default=True)
@click.option("--device", default="auto", show_default=True, help="Of the fine-tuning: auto, cpu, cuda.")
@click.option("--input-size", type=int, help="Pixels, where the checkpoint does not record it.  [default: 416]")
@click.option("--word-len", type=int, help="Tokens, where the checkpoint does not record it.  [default: 17]")
@click.option("--decoder-heads", type=int, help="Where the checkpoint does not record it.  [default: 8]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(checkpoint: Path, data: str, val: str, output: Path, **options: Any) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cris_edge").setLevel(logging.INFO)
    take = options.pop
    try:
        tuning = Settings(
            **{name: take(name) for name in ("epochs", "steps", "batch_size", "learning_rate", "workers")},
            seed=options["seed"],
        )
        names = ("max_drop", "all_stages", "target", "calibration", "seed", "limit")
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
