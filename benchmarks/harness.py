"""Shared by the measuring commands: options, worker processes, result files and the format of figures."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import click

from cris_edge.benchmark.results import busy, device, load_average
from cris_edge.benchmark.rounds import Progress
from cris_edge.benchmark.spread import Spread
from cris_edge.benchmark.worker import Worker
from cris_edge.errors import CrisEdgeError
from cris_edge.files import write_whole

RESULTS = Path(__file__).parent / "results"

Command = TypeVar("Command", bound=Callable[..., Any])
Document = dict[str, Any]
"""A result file: ``machine``, ``load_before``, ``failures``, and what the command measured."""


def together(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator for several, applied in the order in which they would stand above a function."""

    def add(command: Command) -> Command:
        for decorate in reversed(decorators):
            command = decorate(command)
        return command

    return add


written = together(
    click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write."),
    click.option("--markdown", is_flag=True, help="Print Markdown tables."),
)
"""The options of `conclude`."""


def options(*, seconds: float, runs: int = 50) -> Callable[[Command], Command]:
    """The options of commands that measure in interleaved rounds; `seconds` and `runs` are their defaults."""
    return together(
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads of each.  [default: physical cores]"),
        click.option("--runs", default=runs, show_default=True, help="Minimum number of runs of each."),
        click.option("--seconds", default=seconds, show_default=True, help="Approximate time for each."),
        written,
    )


class Workers(ExitStack):
    """Worker processes that are measured together, closed on exit.

    Attributes:
        workers: Those that started.
        failures: A ``case`` and an ``error`` for each that did not, and for whatever else failed.
        load_before: Load average before the first one started; None where the system has none.
    """

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.workers: list[Worker] = []
        self.failures: list[dict[str, str]] = []
        self.load_before = load_average()
        self._progress = progress

    def start(self, entry: str, arguments: Mapping[str, Any], label: str) -> Worker | None:
        """Start a worker; None, with an entry in `failures`, where it cannot start."""
        self._progress(f"loading {label}")
        try:
            worker = self.enter_context(Worker(entry, arguments, label))
        except CrisEdgeError as error:
            self.failed(label, error)
            return None
        self.workers.append(worker)
        return worker

    def failed(self, case: str, error: CrisEdgeError) -> None:
        """Record a failure."""
        self.failures.append({"case": case, "error": str(error)})

    def document(self, **found: Any) -> Document:
        """The result file's content: the machine, `found`, and the failures."""
        return {"machine": device(), "load_before": self.load_before, **found, "failures": self.failures}


def timed(run: Callable[[], object], count: int) -> list[float]:
    """Seconds of `count` calls, after one that does not count: it fills the caches."""
    seconds = []
    for _ in range(count + 1):
        began = perf_counter()
        run()
        seconds.append(perf_counter() - began)
    return seconds[1:]


def progress(line: str) -> None:
    """Show a line of progress where stderr is a terminal."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{line[:78]}", err=True, nl=False)


def conclude(
    measure: Callable[[], Document],
    to_text: Callable[[Document, bool], str],
    *,
    output: Path | None,
    markdown: bool,
) -> None:
    """Measure, write the JSON file, and print the tables; exit with status 1 on an error."""
    try:
        found = measure()
        progress("")
        if output is not None:
            write_json(output, found)
    except (CrisEdgeError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    click.echo(to_text(found, markdown))


def write_json(path: Path, found: Any) -> None:
    """Write a result file, and its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(found, indent=1) + "\n")


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as CSV, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def closing(found: Document) -> list[str]:
    """Paragraphs for the end of a page: what failed, and whether the machine was busy."""
    failures = [f"failed: {failure['case']}: {failure['error']}" for failure in found["failures"]]
    return [*failures, *busy(found["load_before"])]


def milliseconds(spread: Spread | Mapping[str, float] | None) -> str:
    """The median and half the width of its interval; empty where nothing was measured."""
    if spread is None:
        return ""
    seconds = spread.to_dict() if isinstance(spread, Spread) else spread
    return f"{1e3 * seconds['median']:.2f} ±{500 * (seconds['high'] - seconds['low']):.2f}"


def times(ratio: Mapping[str, float] | None) -> str:
    """A ratio and its interval; empty where there was nothing to compare with."""
    return f"{ratio['ratio']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else ""
