"""``python -m benchmarks.pages``: write the tables of the result files into the pages that show them.

A page has a block between ``<!-- results/NAME.json -->`` and ``<!-- end of NAME.json -->`` for each result file;
``family.md`` and ``family.csv`` are written as a whole. ``--check`` writes nothing and exits with status 1 where a page
differs from its result files.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks import family, latency, roofline, serving, steps
from benchmarks.harness import RESULTS, Document
from benchmarks.provenance import PREVIOUS, default_digests, is_previous
from cris_edge.benchmark.results import CaseReport, Report
from cris_edge.benchmark.spread import Spread
from cris_edge.files import write_whole

README = RESULTS.parent / "README.md"
BLOCK = re.compile(r"(<!-- results/(?P<name>[\w-]+\.json) -->\n).*?(<!-- end of (?P=name) -->)", re.DOTALL)


def to_text(found: Document) -> str:
    """The Markdown tables of a result file, marked where they are of previous weights of the default model."""
    if "entries" in found:
        text = latency.to_text(found, markdown=True)
    elif "chains" in found:
        text = roofline.to_text(found, markdown=True)
    elif "cases" in found:
        text = _report(found).to_text(markdown=True)
    elif "loads" in found:
        text = serving.to_text(found, markdown=True)
    else:
        text = steps.to_text(found, markdown=True)
    if is_previous(found):
        digests = ", ".join(str(digest)[:12] for digest in default_digests(found))
        mark = f"**{PREVIOUS.capitalize()}**: the default model here is the bundle {digests}, not the present one."
        return f"{mark}\n\n{text}"
    return text


def _report(found: Document) -> Report:
    """The report that `cris-edge benchmark` wrote as JSON."""

    def case(entry: dict[str, Any]) -> CaseReport:
        spreads = {
            stage: {name: Spread(**seconds) for name, seconds in entry[stage].items()}
            for stage in ("latency", "first_start", "later_start")
        }
        throughput = Spread(**entry["throughput"]) if entry["throughput"] else None
        return CaseReport(**{**entry, **spreads, "throughput": throughput})

    fields = {name: value for name, value in found.items() if name not in ("units", "weights")}
    return Report(**{**fields, "cases": [case(entry) for entry in found["cases"]]})


def page(text: str, results: Path = RESULTS) -> str:
    """A page with every block written from its result file."""

    def block(match: re.Match[str]) -> str:
        found = json.loads((results / match["name"]).read_text(encoding="utf-8"))
        return f"{match[1]}{to_text(found)}\n{match[3]}"

    return BLOCK.sub(block, text)


def pages() -> dict[Path, str]:
    """Every page with the text that it should have."""
    found = json.loads((RESULTS / "family.json").read_text(encoding="utf-8"))
    return {
        README: page(README.read_text(encoding="utf-8")),
        RESULTS / "family.md": family.to_markdown(found),
        RESULTS / "family.csv": family.to_csv(found),
    }


@click.command(help=__doc__)
@click.option("--check", is_flag=True, help="Only compare.")
def main(check: bool) -> None:
    """Run the command line."""
    stale = [path for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    if check and stale:
        click.echo(f"error: {', '.join(path.name for path in stale)} differ from the result files", err=True)
        sys.exit(1)
    for path in stale:
        write_whole(path, pages()[path])
        click.echo(f"wrote {path}", err=True)


if __name__ == "__main__":
    main()
