"""``cris-edge benchmark``: latency, memory and accuracy of bundles on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from cris_edge.cli.program import complain, json_option


@click.command()
@click.option("--model", "models", metavar="DIR", multiple=True, help="Bundle.  [default: the default model]")
@click.option("--runtime", "runtimes", metavar="NAME", multiple=True, help="[default: all installed runtimes]")
@click.option("--device", "devices", metavar="NAME", multiple=True, default=["CPU"], show_default=True)
@click.option(
    "--precision",
    "precisions",
    metavar="NAME",
    multiple=True,
    default=["auto", "float32"],
    show_default=True,
    help="Precision to compute in.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the runtime's choice]")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="Labelled data to score on.")
@click.option("--image", type=click.Path(path_type=Path), metavar="FILE", help="[default: a synthetic 640 x 480 image]")
@click.option("--runs", default=100, show_default=True, help="Minimum number of iterations.")
@click.option("--seconds", default=60.0, show_default=True, help="Approximate time per combination.")
@click.option("--starts", default=5, show_default=True, help="Process starts with and without a cache; 0 skips them.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for JSON, CSV and a plot.")
@json_option
@click.pass_context
def benchmark(context: click.Context, /, output: Path | None, as_json: bool, **settings: Any) -> None:
    """Measure latency, start-up time, memory and accuracy on this machine.

    Measures every combination of the given models, runtimes, devices and precisions; repeat an option to give several.
    """
    from cris_edge.benchmark.runner import Settings
    from cris_edge.benchmark.runner import benchmark as run

    def show(message: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\033[K{message[:78]}", err=True, nl=False)

    if output is not None:
        output.mkdir(parents=True, exist_ok=True)  # fail before spending an hour on measurements
    report = run(Settings(**settings, stream_seconds=settings["seconds"] / 6), show)
    show("")
    files = report.write(output) if output is not None else []
    click.echo(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else report.to_text())
    if not as_json:
        click.echo("".join(f"\n{file}" for file in files), nl=bool(files))
    for failure in report.failures:
        complain(f"{failure['case']}: {failure['error']}")
    if report.failures:
        context.exit(1)
