"""What the measuring commands share: their options, their progress, and how figures are written down."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import click

from cris_edge.benchmark.rounds import LatencySamples
from cris_edge.benchmark.spread import Spread, ratio
from cris_edge.errors import CrisEdgeError
from cris_edge.files import write_whole

Command = TypeVar("Command", bound=Callable[..., Any])
Found = TypeVar("Found")


def together(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Decorators as one, in the order in which they would stand above a function."""

    def add(command: Command) -> Command:
        for decorate in reversed(decorators):
            command = decorate(command)
        return command

    return add


written = together(
    click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write."),
    click.option("--markdown", is_flag=True, help="Tables for a page."),
)
"""The options of `conclude`."""


def options(*, seconds: float, runs: int = 50) -> Callable[[Command], Command]:
    """The options of commands that take turns, and `written`; `seconds` and `runs` are their defaults."""
    return together(
        click.option("--threads", type=click.IntRange(min=1), help="Of all of them.  [default: the physical cores]"),
        click.option("--runs", default=runs, show_default=True, help="Turns of each at least."),
        click.option("--seconds", default=seconds, show_default=True, help="For each, about."),
        written,
    )


def timed(run: Callable[[], object], count: int) -> list[float]:
    """Seconds of `count` calls, after one that does not count: it fills the caches and starts the threads."""
    seconds = []
    for _ in range(count + 1):
        began = perf_counter()
        run()
        seconds.append(perf_counter() - began)
    return seconds[1:]


def tell(line: str) -> None:
    """Progress, where somebody looks."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{line[:78]}", err=True, nl=False)


def conclude(
    measure: Callable[[], Found],
    *,
    to_dict: Callable[[Found], dict[str, Any]],
    to_text: Callable[[Found, bool], str],
    output: Path | None,
    markdown: bool,
) -> None:
    """Measure, write the JSON file where one is wanted, and print the tables; an error of ours ends with status 1."""
    try:
        found = measure()
    except CrisEdgeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    tell("")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, json.dumps(to_dict(found), indent=1) + "\n")
    click.echo(to_text(found, markdown))


def against_plain(rows: Sequence[dict[str, Any]], gathered: Sequence[LatencySamples], kind: tuple[str, ...]) -> None:
    """Add to each row its seconds, and how many times faster it is than the form "plain" of the same `kind`.

    Args:
        rows: Each with a "form"; of each kind, "plain" comes first.
        gathered: What was measured of each.
        kind: Names of the fields in which a row and its plain form agree.
    """
    plain: dict[tuple[Any, ...], list[list[float]]] = {}
    for row, turns in zip(rows, gathered, strict=True):
        blocks, own = turns.of("whole"), tuple(row[name] for name in kind)
        if row["form"] == "plain":
            plain[own] = blocks
        row["seconds"] = Spread.of(blocks).to_dict()
        row["times_faster_than_plain"] = ratio(blocks, plain[own]) if own in plain else None


def milliseconds(spread: Spread | dict[str, Any] | None) -> str:
    """A median with half the width of its interval; nothing where nothing was measured."""
    if spread is None:
        return ""
    told = spread if isinstance(spread, dict) else spread.to_dict()
    return f"{1e3 * told['median']:.2f} ±{500 * (told['high'] - told['low']):.2f}"


def times(found: dict[str, float] | None) -> str:
    """A ratio with its interval; nothing where there was nothing to compare with."""
    return f"{found['ratio']:.2f} ({found['low']:.2f}-{found['high']:.2f})" if found else ""
