"""``python -m benchmarks.imports``: what `import cris_edge` costs, against `import numpy`, each in new processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from benchmarks import harness
from cris_edge.benchmark_report import busy, device, load_average, table
from cris_edge.files import write_whole
from cris_edge.spread import Spread, ratio

# What an app writes first, the class that it then uses, and what both are held against.
STATEMENTS = ("import numpy", "import cris_edge", "from cris_edge import Segmenter", "pass")
BASE = STATEMENTS[0]


def measure(statements: Sequence[str] = STATEMENTS, *, runs: int = 30) -> dict[str, list[list[float]]]:
    """Seconds of a Python process that runs each statement and ends, interleaved; blocks of one for `Spread.of`."""
    found: dict[str, list[list[float]]] = {statement: [] for statement in statements}
    # Byte code is there, as pip leaves it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for number in range(runs + 1):
        for statement in statements:
            began = perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True, env=environment, stdin=subprocess.DEVNULL)
            if number:  # the first one compiles, and reads from the disk
                found[statement].append([perf_counter() - began])
    return found


@click.command(help=__doc__)
@click.option("--runs", type=click.IntRange(min=1), default=30, show_default=True, help="Processes for each statement.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write.")
@click.option("--markdown", is_flag=True, help="Tables for a page.")
def main(runs: int, output: Path | None, markdown: bool) -> None:
    """Read the command line."""
    before, blocks = load_average(), measure(runs=runs)
    spreads = {statement: Spread.of(values) for statement, values in blocks.items()}
    times = {statement: ratio(blocks[BASE], values) for statement, values in blocks.items()}
    if output is not None:
        found: dict[str, Any] = {"machine": device(), "load_before": before, "base": BASE}
        found["statements"] = {
            statement: {"seconds": spread.to_dict(), "against_base": times[statement]}
            for statement, spread in spreads.items()
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, json.dumps(found, indent=1) + "\n")
    rows = [
        [
            statement,
            harness.milliseconds(spread),
            harness.times(times[statement]),
        ]
        for statement, spread in spreads.items()
    ]
    parts = [device()["processor"], table(["a new process", "ms", f"times {BASE}"], rows, markdown=markdown)]
    click.echo("\n\n".join([*parts, *busy(before)]))


if __name__ == "__main__":
    main()
