"""Trials: small runs of equal budget, trained one after the other and scored on the same data.

A trial lives in a folder of its own, so that a comparison that was stopped continues where it was: what is finished is
not trained again, what is not continues from its checkpoint, and what is scored is not scored again.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# OpenMP's threads spin while they wait, which slows training beside anything else; read when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click
import numpy as np
import torch

from benchmarks.harness import Command, together
from cris_edge.benchmark.results import device as machine
from cris_edge.errors import CrisEdgeError, OptionError
from cris_edge.files import write_whole
from training.allocator import keep_memory
from training.checkpoint import load_model, read_checkpoint, sha256
from training.config import RunConfig, option, override
from training.data.samples import open_source
from training.distributed import Processes, join
from training.engine import LAST, StoppedError, Trainer
from training.evaluate import TorchPredictor, score
from training.recipes import recipe

logger = logging.getLogger("cris_edge.benchmarks")

SCENES = ("scenes:val:500:2026", "scenes:compositions:500:2026", "scenes:relations:500:2026")
"""What trials on drawn scenes are scored on; the figures of the embedded model are of the first."""
SCORES = "scores.json"
RESAMPLES = 2000
FIGURES = ("mIoU", "oIoU", "Pr@50", "Pr@60", "Pr@70", "Pr@80", "Pr@90")
# What may differ between the start of a run and its continuation without another result.
_HARMLESS = frozenset(("threads", "workers", "prefetch", "log_every", "checkpoint_every", "validate_every"))


@dataclass(frozen=True)
class Trial:
    """One run of a comparison.

    Attributes:
        name: of its folder.
        label: for people.
        config: the run; None where `checkpoint` is only scored.
        checkpoint: of a network that is there already.
    """

    name: str
    label: str
    config: RunConfig | None
    checkpoint: Path | None = None


@dataclass
class Outcome:
    """What became of a trial.

    Attributes:
        trial: itself.
        parameters: of its network.
        seconds: that its training took, checkpoints and waiting for data included; 0 where it was not trained here.
        reports: by data, as `training.report.Report.to_dict` gives them.
        ious: by data, the example's number and the IoU of every sentence.
    """

    trial: Trial
    parameters: int
    seconds: float = 0.0
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    ious: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Lines of a CSV file, one for each data."""
        config = self.trial.config
        for data, report in self.reports.items():
            low, high = report["intervals"]["mIoU"]
            yield {
                "trial": self.trial.name,
                "parameters": self.parameters,
                "steps": config.loop.steps if config else None,
                "seed": config.loop.seed if config else None,
                "training_seconds": round(self.seconds, 1),
                "data": data,
                "samples": report["samples"],
                "mIoU_low": round(low, 2),
                "mIoU_high": round(high, 2),
                **{name: round(report[name], 2) for name in FIGURES},
            }


def plan(name: str, steps: int, changes: Mapping[str, Any]) -> RunConfig:
    """A recipe with the budget of a comparison; it is not validated on its way, the end alone counts.

    Raises:
        OptionError: there is no such recipe or field.
    """
    return override(recipe(name), {"val": None, **changes, "steps": steps})


def settings(given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` as a mapping; names are those of the run's fields, with ``-`` or ``_``.

    Raises:
        OptionError: there is no ``=``.
    """
    pairs = [text.partition("=") for text in given]
    for text, (_, sign, _) in zip(given, pairs, strict=True):
        if not sign:
            raise OptionError(f"--set {text} cannot be read; give NAME=VALUE, such as learning_rate=1e-3.")
    return {name.strip().replace("-", "_"): value.strip() for name, _, value in pairs}


def run(trials: Sequence[Trial], output: Path, data: Sequence[str], *, device: str = "auto") -> Iterator[Outcome]:
    """Train and score each trial that is not done yet; yields what became of each, in order.

    Raises:
        CrisEdgeError: a folder holds another run, the data cannot be used, or a training was stopped or diverged.
    """
    processes = join(device)
    if processes.device.type == "cpu":
        keep_memory()
    for number, trial in enumerate(trials, start=1):
        logger.info("%d of %d: %s", number, len(trials), trial.label)
        folder = output / trial.name
        if trial.config is not None:
            _train(trial.config, folder, processes)
        yield _score(trial, folder, data, processes.device)


def options(recipe_of: str) -> Callable[[Command], Command]:
    """The options that every comparison of trainings takes; `recipe_of` says whose recipe it is."""
    folder = click.Path(file_okay=False, path_type=Path)
    return together(
        click.option("--output", type=folder, required=True, help="Folder of the runs."),
        click.option("--recipe", default="nano-scenes", show_default=True, help=recipe_of),
        click.option("--steps", type=click.IntRange(min=1), required=True, help="Of each run."),
        click.option("--data", multiple=True, default=SCENES, show_default=True, help="To score on; may be several."),
        click.option(
            "--set", "given", multiple=True, metavar="NAME=VALUE", help="A field of every run; may be several."
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda."),
        click.option(
            "--results",
            type=folder,
            default=Path(__file__).parent / "results",
            help="Folder for the tables.  [default: benchmarks/results]",
        ),
    )


def said(data: Sequence[str], given: Sequence[str]) -> list[str]:
    """The words of a command line for options that differ from the defaults."""
    return [*(f"--data {name}" for name in data if data != SCENES), *(f"--set {text}" for text in given)]


def conclude(outcomes: Iterator[Outcome], write: Callable[[list[Outcome]], str]) -> None:
    """Call `write` with all outcomes so far after each, and print what it returned last; an error ends with status 1.

    Args:
        outcomes: of `run`.
        write: Writes the tables; returns the page.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    known: list[Outcome] = []
    page = ""
    try:
        for outcome in outcomes:
            known.append(outcome)
            page = write(known)
    except StoppedError:
        click.echo("stopped; the same command continues", err=True)
        sys.exit(1)
    except (CrisEdgeError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    click.echo(page)


def difference(ours: Outcome, theirs: Outcome, data: str) -> tuple[float, float, float]:
    """How far the mIoU of `ours` is above that of `theirs` in points, and the ends of the 95 % interval.

    Both were asked the same sentences, so that images are drawn with replacement for both at once (paired bootstrap).
    Another seed of the training would move the figure too; that is not in the interval.
    """
    pairs = list(zip(ours.ious[data], theirs.ious[data], strict=True))
    sums: dict[int, list[float]] = {}
    for (image, mine), (other, yours) in pairs:
        if image != other:
            raise ValueError(f"the scores of {ours.trial.name} and {theirs.trial.name} are of different sentences")
        total = sums.setdefault(image, [0.0, 0.0])
        total[0] += mine - yours
        total[1] += 1
    table = np.array(list(sums.values()))
    draws = np.random.default_rng(0).integers(len(table), size=(RESAMPLES, len(table)))
    drawn = table[draws].sum(axis=1)
    low, high = np.quantile(100 * drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    return float(100 * table[:, 0].sum() / table[:, 1].sum()), float(low), float(high)


def to_csv(outcomes: Sequence[Outcome], extra: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """All rows of all outcomes; `extra` adds columns by the trial's name."""
    rows = [{**row, **(extra or {}).get(row["trial"], {})} for outcome in outcomes for row in outcome.rows()]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["trial"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def heading(trials: Sequence[Trial]) -> str:
    """What was compared, and on what: a paragraph."""
    config = next(trial.config for trial in trials if trial.config is not None)
    loop, told = config.loop, machine()
    sizes = ", ".join(map(str, loop.sizes or (config.architecture.input_size,)))
    threads, sentences = loop.threads or torch.get_num_threads(), config.data.sentences_per_image
    return (
        f"Each run: {loop.steps} steps of {loop.batch_size} images with {sentences} sentences, at "
        f"{sizes} pixels, of {config.data.train}, seed {loop.seed}, in {loop.precision}; on {told['processor']}, "
        f"{told['cores']} cores, threads: {threads}, PyTorch {torch.__version__}. Accuracy: every sentence on the "
        "original image, threshold 0.35, in float32, with 95 % intervals (bootstrap over images)."
    )


def score_cells(outcome: Outcome, data: Sequence[str]) -> list[str]:
    """The mIoU on each data with its interval, for a table."""
    cells = []
    for name in data:
        report = outcome.reports[name]
        low, high = report["intervals"]["mIoU"]
        cells.append(f"{report['mIoU']:.1f} ({low:.1f}-{high:.1f})")
    return cells


def difference_cells(ours: Outcome, theirs: Outcome, data: Sequence[str]) -> list[str]:
    """The difference on each data with its interval, for a table."""
    found = [[round(value, 1) + 0.0 for value in difference(ours, theirs, name)] for name in data]  # no "-0.0"
    return ["{:+.1f} ({:+.1f} to {:+.1f})".format(*values) for values in found]


def titles(data: Sequence[str]) -> list[str]:
    """Short names of data: the split of drawn scenes, the stem of a file."""
    return [name.split(":")[1] if name.startswith("scenes:") else Path(name).stem for name in data]


def _train(config: RunConfig, folder: Path, processes: Processes) -> None:
    """Train to the end, from where the folder's checkpoint is."""
    last = folder / LAST
    if last.exists():
        saved = read_checkpoint(last)["training"]
        _require_same(saved["config"], config, folder)
        if int(saved["step"]) >= (config.loop.steps or 0):
            return
    if config.loop.threads:
        torch.set_num_threads(config.loop.threads)
    Trainer(config, folder, processes, resume="auto").fit()


def _require_same(before: Mapping[str, Any], config: RunConfig, folder: Path) -> None:
    now = json.loads(json.dumps(config.to_dict()))
    before = json.loads(json.dumps(before))
    for group, values in now.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            found = before.get(group, {}).get(name, value)
            if name not in _HARMLESS and found != value:
                raise OptionError(
                    f"{folder} holds a run with {option(name)} {found}, but this comparison has {value}; give another "
                    "--output, or the options that it was begun with."
                )


def _score(trial: Trial, folder: Path, data: Sequence[str], device: torch.device) -> Outcome:
    """Score on what was not scored yet with these weights."""
    checkpoint = trial.checkpoint or folder / LAST
    model = load_model(checkpoint).to(device)
    folder.mkdir(parents=True, exist_ok=True)  # nothing was trained here where the checkpoint was given
    path, digest = folder / SCORES, sha256(checkpoint)
    known: dict[str, Any] = {"checkpoint": digest, "data": {}}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        known = found if found.get("checkpoint") == digest else known
    for name in data:
        if name in known["data"]:
            continue
        report = score(TorchPredictor(model, device), open_source(name, by_image=True))
        ious = [[case.index, round(case.iou, 5)] for case in report.cases]
        known["data"][name] = {"report": report.to_dict(), "ious": ious}
        write_whole(path, json.dumps(known) + "\n")
        logger.info("%s: mIoU %.2f on %s", trial.label, report.scores.to_dict()["mIoU"], name)
    outcome = Outcome(trial, sum(parameter.numel() for parameter in model.parameters()), _seconds(folder))
    for name in data:
        outcome.reports[name] = known["data"][name]["report"]
        outcome.ious[name] = [(int(image), float(iou)) for image, iou in known["data"][name]["ious"]]
    return outcome


def _seconds(folder: Path) -> float:
    """What the steps took, by the run's own metrics."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0.0
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return float(sum(record.get("seconds", 0.0) for record in records))


__all__ = [
    "SCENES",
    "Outcome",
    "Trial",
    "conclude",
    "difference",
    "difference_cells",
    "heading",
    "options",
    "plan",
    "run",
    "said",
    "score_cells",
    "settings",
    "titles",
    "to_csv",
]
