"""``python -m benchmarks.ablation``: the paper's ablation at compact size, on synthetic scenes with equal budgets.

Contrastive learning on and off, decoder layers 0 to 4. A stopped run resumes with the same command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import paper_tables, trials
from benchmarks.harness import to_csv
from benchmarks.trials import Outcome, Trial
from cris_edge.benchmark.results import table
from cris_edge.files import write_whole

Row = tuple[bool, int]
"""Contrastive learning, decoder layers."""

PAPER: tuple[Row, ...] = ((False, 0), (True, 0), (False, 1), (True, 1), (True, 2), (True, 3), (True, 4))
"""The paper's rows, in its order."""
REST: tuple[Row, ...] = ((False, 2), (False, 3), (False, 4))


def plan(recipe: str, steps: int, rows: Sequence[Row], changes: Mapping[str, Any]) -> dict[Row, Trial]:
    """The trial of each row: the recipe with `changes` and the row's own two fields.

    Raises:
        OptionError: The recipe or a field is unknown.
    """
    return {
        (contrastive, layers): Trial(
            f"{'' if contrastive else 'no-'}contrastive-n{layers}",
            f"{'contrastive' if contrastive else 'fixed kernel'}, n = {layers}",
            trials.plan(recipe, steps, {**changes, "contrastive": contrastive, "decoder_layers": layers}),
        )
        for contrastive, layers in rows
    }


def pairs(rows: Sequence[Row]) -> list[tuple[str, Row, Row]]:
    """The comparisons that these rows allow: name, row with the part, row without it."""
    known = set(rows)
    every = [(f"contrastive learning at n = {n}", (True, n), (False, n)) for n in range(5)]
    for contrastive in (True, False):
        kind = "contrastive" if contrastive else "fixed kernel"
        every += [(f"decoder layer {n}, {kind}", (contrastive, n), (contrastive, n - 1)) for n in range(1, 5)]
    return [(name, ours, theirs) for name, ours, theirs in every if {ours, theirs} <= known]


def to_markdown(outcomes: Mapping[Row, Outcome], data: Sequence[str], command: str) -> str:
    """The page: the table, the differences, and how to read them."""
    head = [
        "contrastive",
        "decoder layers n",
        "parameters",
        "minutes trained",
        *(f"{name}, mIoU" for name in trials.titles(data)),
    ]
    rows = [
        [
            "yes" if contrastive else "no",
            str(layers),
            f"{outcome.parameters / 1e6:.2f} M",
            f"{outcome.seconds / 60:.1f}",
            *trials.score_cells(outcome, data),
        ]
        for (contrastive, layers), outcome in outcomes.items()
    ]
    head_of_differences = ["points of mIoU", *trials.titles(data), "paper, RefCOCO val"]
    differences = [
        [name, *trials.difference_cells(outcomes[ours], outcomes[theirs], data), _papers(ours, theirs)]
        for name, ours, theirs in pairs(list(outcomes))
    ]
    parts = [
        "# The ablation at compact size",
        f"`{command}`",
        trials.heading([outcome.trial for outcome in outcomes.values()]),
        table(head, rows, markdown=True),
        "Without contrastive learning the projector's kernel is the same for every prompt: a *fixed kernel*.",
        "![mIoU over the number of decoder layers](ablation.png)",
    ]
    if differences:
        parts += [
            "## The gain of each part",
            table(head_of_differences, differences, markdown=True),
            "Intervals of 95 % by a paired bootstrap over images. One training each: another seed would change the "
            "figures too. The paper's column is the difference of its IoU for CRIS-R50 at full budget.",
        ]
    return "\n\n".join(parts) + "\n"


def draw(outcomes: Mapping[Row, Outcome], data: Sequence[str], path: Path) -> None:
    """Plot mIoU over the number of layers, with and without contrastive learning, one panel per data."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(data) + 0.6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(data), sharey=True, squeeze=False)[0]
    for panel, name, title in zip(panels, data, trials.titles(data), strict=True):
        for contrastive, label, colour in ((True, "contrastive", "tab:blue"), (False, "fixed kernel", "tab:orange")):
            found = sorted((n, outcome.reports[name]) for (on, n), outcome in outcomes.items() if on == contrastive)
            if not found:
                continue
            middle = [report["mIoU"] for _, report in found]
            ends = [report["intervals"]["mIoU"] for _, report in found]
            bars = [
                [max(0.0, m - low) for m, (low, _) in zip(middle, ends, strict=True)],
                [max(0.0, high - m) for m, (_, high) in zip(middle, ends, strict=True)],
            ]
            layers = [n for n, _ in found]
            panel.errorbar(layers, middle, yerr=bars, marker="o", capsize=3, label=label, color=colour)
        panel.set(title=title, xlabel="decoder layers n", xticks=range(5))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("mIoU, %")
    panels[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _papers(ours: Row, theirs: Row) -> str:
    """The same difference in the paper; empty where it lacks a row."""
    known = {(row.contrastive, row.layers): row.iou for row in paper_tables.ablation() if row.dataset == "RefCOCO"}
    return f"{known[ours] - known[theirs]:+.1f}" if {ours, theirs} <= set(known) else ""


@click.command(help=__doc__)
@trials.options
@click.option("--all", "every", is_flag=True, help="Add the rows that the paper leaves out: fixed kernel, n = 2 to 4.")
def main(
    output: Path,
    recipe: str,
    steps: int,
    every: bool,
    data: tuple[str, ...],
    given: tuple[str, ...],
    device: str,
    results: Path,
) -> None:
    """Train, score, and write the table after each row."""
    parts = ["python -m benchmarks.ablation", f"--recipe {recipe} --steps {steps}", *(["--all"] if every else [])]
    command = " ".join([*parts, *trials.arguments(data, given)])
    rows: dict[str, Row] = {}

    def outcomes() -> Iterator[Outcome]:
        planned = plan(recipe, steps, PAPER + REST if every else PAPER, trials.settings(given))
        rows.update((trial.name, row) for row, trial in planned.items())
        yield from trials.run(list(planned.values()), output, data, device=device)

    def write(known: list[Outcome]) -> str:
        found = {rows[outcome.trial.name]: outcome for outcome in known}
        lines = [
            {**line, "contrastive": int(contrastive), "decoder_layers": layers}
            for (contrastive, layers), outcome in found.items()
            for line in outcome.rows()
        ]
        page = to_markdown(found, data, command)
        results.mkdir(parents=True, exist_ok=True)
        write_whole(results / "ablation.csv", to_csv(lines))
        write_whole(results / "ablation.md", page)
        draw(found, data, results / "ablation.png")
        return page

    trials.conclude(outcomes(), write)


if __name__ == "__main__":
    main()
