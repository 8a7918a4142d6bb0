"""Trials: small training runs of equal budget, one after the other, scored on the same data.

Each trial has a folder of its own, so that a stopped comparison resumes: finished trials are not trained again, others
resume from their checkpoint, and scores are kept.
"""

from __future__ import annotations

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
from scipy import stats

from benchmarks.harness import RESULTS, Command, together
from cris_edge.benchmark.results import device as machine
from cris_edge.errors import CrisEdgeError, OptionError
from cris_edge.files import write_whole
from training.allocator import keep_memory
from training.checkpoint import load_model, read_checkpoint, sha256
from training.config import RunConfig, option, override
from training.data.samples import open_source
from training.distributed import Processes, join
from training.engine import LAST, StoppedError, Trainer
from training.recipes import recipe
from training.scoring import TorchPredictor, score

logger = logging.getLogger("cris_edge.benchmarks")

SCENES = ("scenes:val:500:2026", "scenes:compositions:500:2026", "scenes:relations:500:2026")
"""Synthetic scenes to score on."""
SCORES = "scores.json"
FIGURES = ("mIoU", "oIoU", "Pr@50", "Pr@60", "Pr@70", "Pr@80", "Pr@90")
# May differ between the start of a run and its continuation without changing the result.
_HARMLESS = frozenset(("threads", "workers", "prefetch", "log_every", "checkpoint_every", "validate_every"))


@dataclass(frozen=True)
class Trial:
    """One run of a comparison.

    Attributes:
        name: Name of its folder.
        label: Name for people.
        config: The run.
    """

    name: str
    label: str
    config: RunConfig


@dataclass
class Outcome:
    """The result of a trial.

    Attributes:
        trial: The trial.
        parameters: Count of its network.
        seconds: Training time, with checkpoints and waiting for data.
        reports: By data, `training.report.Report.to_dict`.
        ious: By data, the example's index and the IoU of every prompt.
    """

    trial: Trial
    parameters: int
    seconds: float = 0.0
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    ious: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of a CSV file, one per data."""
        loop = self.trial.config.loop
        for data, report in self.reports.items():
            low, high = report["intervals"]["mIoU"]
            yield {
                "trial": self.trial.name,
                "parameters": self.parameters,
                "steps": loop.steps,
                "seed": loop.seed,
                "training_seconds": round(self.seconds, 1),
                "data": data,
                "samples": report["samples"],
                "mIoU_low": round(low, 2),
                "mIoU_high": round(high, 2),
                **{name: round(report[name], 2) for name in FIGURES},
            }


def plan(name: str, steps: int, changes: Mapping[str, Any]) -> RunConfig:
    """A recipe with the budget of a comparison and no validation on the way.

    Raises:
        OptionError: The recipe or a field is unknown.
    """
    return override(recipe(name), {"val": None, **changes, "steps": steps})


def settings(given: Sequence[str]) -> dict[str, str]:
    """Parse ``NAME=VALUE``; names are those of the run's fields, with ``-`` or ``_``.

    Raises:
        OptionError: An entry has no ``=``.
    """
    pairs = [text.partition("=") for text in given]
    for text, (_, sign, _) in zip(given, pairs, strict=True):
        if not sign:
            raise OptionError(f"--set {text} is not NAME=VALUE; write, for example, learning_rate=1e-3.")
    return {name.strip().replace("-", "_"): value.strip() for name, _, value in pairs}


def run(trials: Sequence[Trial], output: Path, data: Sequence[str], *, device: str = "auto") -> Iterator[Outcome]:
    """Train and score each trial that is not done yet; yields the outcomes in order.

    Raises:
        CrisEdgeError: A folder holds another run, the data cannot be used, or a training was stopped or diverged.
    """
    processes = join(device)
    if processes.device.type == "cpu":
        keep_memory()
    for number, trial in enumerate(trials, start=1):
        logger.info("%d of %d: %s", number, len(trials), trial.label)
        folder = output / trial.name
        _train(trial.config, folder, processes)
        yield _score(trial, folder, data, processes.device)


def options(command: Command) -> Command:
    """Add the options of a comparison of trainings."""
    folder = click.Path(file_okay=False, path_type=Path)
    add = together(
        click.option("--output", type=folder, required=True, help="Folder of the runs."),
        click.option("--recipe", default="nano-scenes", show_default=True, help="Recipe that every row changes."),
        click.option("--steps", type=click.IntRange(min=1), required=True, help="Steps of each run."),
        click.option("--data", multiple=True, default=SCENES, show_default=True, help="Data to score on; repeatable."),
        click.option("--set", "given", multiple=True, metavar="NAME=VALUE", help="Field of every run; repeatable."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda."),
        click.option(
            "--results", type=folder, default=RESULTS, help="Folder for the tables.  [default: benchmarks/results]"
        ),
    )
    return add(command)


def arguments(data: Sequence[str], given: Sequence[str]) -> list[str]:
    """The command line's arguments for options that differ from the defaults."""
    return [*(f"--data {name}" for name in data if data != SCENES), *(f"--set {text}" for text in given)]


def conclude(outcomes: Iterator[Outcome], write: Callable[[list[Outcome]], str]) -> None:
    """Call `write` after each outcome with all so far, and print its last page; exit with status 1 on an error.

    Args:
        outcomes: From `run`.
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
        click.echo("stopped; run the same command to resume", err=True)
        sys.exit(1)
    except (CrisEdgeError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    click.echo(page)


def difference(ours: Outcome, theirs: Outcome, data: str) -> tuple[float, float, float]:
    """How many points the mIoU of `ours` is above that of `theirs`, with the ends of its 95 % interval.

    A paired bootstrap over images: both were scored on the same prompts. It does not cover the training's seed.
    """
    sums: dict[int, list[float]] = {}
    for (image, mine), (other, yours) in zip(ours.ious[data], theirs.ious[data], strict=True):
        if image != other:
            raise ValueError(f"the scores of {ours.trial.name} and {theirs.trial.name} are of different prompts")
        total = sums.setdefault(image, [0.0, 0.0])
        total[0] += 100 * (mine - yours)
        total[1] += 1
    gains, counts = np.array(list(sums.values())).T
    found = stats.bootstrap(
        (gains, counts),
        lambda gain, count, axis: gain.sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(gains.sum() / counts.sum()), float(found.low), float(found.high)


def heading(trials: Sequence[Trial]) -> str:
    """A paragraph with the budget, the data and the machine."""
    config = trials[0].config
    loop, host = config.loop, machine()
    sizes = ", ".join(map(str, loop.sizes or (config.architecture.input_size,)))
    threads, prompts = loop.threads or torch.get_num_threads(), config.data.sentences_per_image
    return (
        f"Each run: {loop.steps} steps of {loop.batch_size} images with {prompts} prompts, at "
        f"{sizes} pixels, of {config.data.train}, seed {loop.seed}, in {loop.precision}; on {host['processor']}, "
        f"{host['cores']} cores, threads: {threads}, PyTorch {torch.__version__}. Accuracy: every prompt on the "
        "original image, threshold 0.35, in float32, with 95 % intervals (bootstrap over images)."
    )


def score_cells(outcome: Outcome, data: Sequence[str]) -> list[str]:
    """Table cells: the mIoU on each data with its interval."""
    cells = []
    for name in data:
        report = outcome.reports[name]
        low, high = report["intervals"]["mIoU"]
        cells.append(f"{report['mIoU']:.1f} ({low:.1f}-{high:.1f})")
    return cells


def difference_cells(ours: Outcome, theirs: Outcome, data: Sequence[str]) -> list[str]:
    """Table cells: the difference on each data with its interval."""
    found = [[round(value, 1) + 0.0 for value in difference(ours, theirs, name)] for name in data]  # no "-0.0"
    return ["{:+.1f} ({:+.1f} to {:+.1f})".format(*values) for values in found]


def titles(data: Sequence[str]) -> list[str]:
    """Short names of data: the split of synthetic scenes, the stem of a file."""
    return [name.split(":")[1] if name.startswith("scenes:") else Path(name).stem for name in data]


def _train(config: RunConfig, folder: Path, processes: Processes) -> None:
    """Train to the end, resuming from the folder's checkpoint."""
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
                    f"{folder} holds a run with {option(name)} {found}, but this comparison has {value}; use another "
                    "--output, or the options of that run."
                )


def _score(trial: Trial, folder: Path, data: Sequence[str], device: torch.device) -> Outcome:
    """Score on the data for which the folder has no scores of these weights."""
    checkpoint = folder / LAST
    model = load_model(checkpoint).to(device)
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
    """Time of the steps, from the run's metrics."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0.0
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return float(sum(record.get("seconds", 0.0) for record in records))
