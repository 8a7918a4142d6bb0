"""``python -m benchmarks.taught``: one small network trained alone and the same one taught by a larger one.

Both see the same data in the same order for as many steps from the same seed; the taught one also learns from the
teacher's logits and decoder features. Stop it at any time; the same command continues.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import trials
from benchmarks.trials import Outcome, Trial
from cris_edge.benchmark.results import table
from cris_edge.files import write_whole


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
@trials.options("Of the small network.")
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
    words = [f"python -m benchmarks.taught --teacher {teacher} --recipe {recipe} --steps {steps}"]
    command = " ".join([*words, *trials.said(data, given)])

    def outcomes() -> Iterator[Outcome]:
        yield from trials.run(plan(recipe, steps, teacher, trials.settings(given)), output, data, device=device)

    def write(known: list[Outcome]) -> str:
        page = to_markdown(known, data, command)
        results.mkdir(parents=True, exist_ok=True)
        write_whole(results / "taught.csv", trials.to_csv(known))
        write_whole(results / "taught.md", page)
        return page

    trials.conclude(outcomes(), write)


if __name__ == "__main__":
    main()
