"""``python -m benchmarks.taught``: one small network trained alone and the same one taught by a larger one.

Both see the same data in the same order for as many steps from the same seed; the taught one also learns from the
teacher's logits and decoder features. Stop it at any time; the same command continues.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import trials
from benchmarks.trials import Outcome, Trial
from cris_edge.benchmark_report import table
from cris_edge.errors import CrisEdgeError
from training.engine import StoppedError


def plan(recipe: str, steps: int, teacher: Path, changes: Mapping[str, Any]) -> list[Trial]:
    """The teacher, which is only scored, and the two trainings.

    Raises:
        OptionError: there is no such recipe or field.
    """
    return [
        Trial("teacher", "the teacher", None, teacher),
        Trial("alone", "alone", trials.plan(recipe, steps, changes)),
        Trial("taught", "taught", trials.plan(recipe, steps, {**changes, "teacher": str(teacher)})),
    ]


def to_markdown(outcomes: Sequence[Outcome], data: Sequence[str], command: str) -> str:
    """The page: the table, and what teaching brings."""
    head = ["", "parameters", "minutes trained", *(f"{name}, mIoU" for name in trials.titles(data))]
    rows = [
        [
            outcome.trial.label,
            f"{outcome.parameters / 1e6:.2f} M",
            f"{outcome.seconds / 60:.1f}" if outcome.trial.config else "",
            *trials.score_cells(outcome, data),
        ]
        for outcome in outcomes
    ]
    found = {outcome.trial.name: outcome for outcome in outcomes}
    if {"alone", "taught"} <= set(found):
        cells = trials.difference_cells(found["taught"], found["alone"], data)
        rows.append(["taught less alone, points", "", "", *cells])
    parts = ["# One small network, alone and taught", f"`{command}`"]
    if any(outcome.trial.config for outcome in outcomes):
        parts.append(trials.heading([outcome.trial for outcome in outcomes]))
    parts += [
        table(head, rows, markdown=True),
        "Equal steps, not equal minutes: a step of the taught one runs the teacher too. The interval of the difference "
        "is by a paired bootstrap over images; one training each, another seed would move the figures too.",
    ]
    return "\n\n".join(parts) + "\n"


@click.command(help=__doc__)
@click.option("--teacher", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A CRIS checkpoint.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the runs.")
@click.option("--recipe", default="nano-scenes", show_default=True, help="Of the small network.")
@click.option("--steps", type=click.IntRange(min=1), required=True, help="Of both.")
@click.option("--data", multiple=True, default=trials.SCENES, show_default=True, help="To score on; may be several.")
@click.option("--set", "given", multiple=True, metavar="NAME=VALUE", help="A field of both runs; may be several.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda.")
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent / "results",
    help="Folder for taught.csv and .md.  [default: benchmarks/results]",
)
def main(
    teacher: Path,
    output: Path,
    recipe: str,
    steps: int,
    data: tuple[str, ...],
    given: tuple[str, ...],
    device: str,
    results: Path,
) -> None:
    """Train, score, and write the table after each run."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    words = [*(f"--data {name}" for name in data if data != trials.SCENES), *(f"--set {text}" for text in given)]
    options = " ".join(words)
    command = f"python -m benchmarks.taught --teacher {teacher} --recipe {recipe} --steps {steps} {options}".strip()
    outcomes: list[Outcome] = []
    try:
        for outcome in trials.run(plan(recipe, steps, teacher, trials.settings(given)), output, data, device=device):
            outcomes.append(outcome)
            trials.write_text(results / "taught.csv", trials.to_csv(outcomes))
            trials.write_text(results / "taught.md", to_markdown(outcomes, data, command))
    except StoppedError:
        click.echo("stopped; the same command continues", err=True)
        sys.exit(1)
    except (CrisEdgeError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    click.echo(to_markdown(outcomes, data, command))


if __name__ == "__main__":
    main()
