"""``python -m benchmarks.imports``: what `import cris_edge` costs, against `import numpy`, each in new processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from benchmarks import harness
from cris_edge.benchmark.results import busy, device, load_average, table
from cris_edge.benchmark.spread import Spread, ratio

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


def found(runs: int) -> dict[str, Any]:
    """What was measured, ready for JSON."""
    before, blocks = load_average(), measure(runs=runs)
    statements = {
        statement: {"seconds": Spread.of(values).to_dict(), "against_base": ratio(blocks[BASE], values)}
        for statement, values in blocks.items()
    }
    return {"machine": device(), "load_before": before, "base": BASE, "statements": statements}


def to_text(found: dict[str, Any], markdown: bool = False) -> str:
    """A table for people."""
    rows = [
        [statement, harness.milliseconds(row["seconds"]), harness.times(row["against_base"])]
        for statement, row in found["statements"].items()
    ]
    names = ["a new process", "ms", f"times {found['base']}"]
    parts = [found["machine"]["processor"], table(names, rows, markdown=markdown)]
    return "\n\n".join([*parts, *busy(found["load_before"])])


@click.command(help=__doc__)
@click.option("--runs", type=click.IntRange(min=1), default=30, show_default=True, help="Processes for each statement.")
@harness.written
def main(runs: int, output: Path | None, markdown: bool) -> None:
    """Read the command line."""
    harness.conclude(lambda: found(runs), to_dict=dict, to_text=to_text, output=output, markdown=markdown)


if __name__ == "__main__":
    main()
