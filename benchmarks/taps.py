"""``python -m benchmarks.taps``: the projector's convolutions after upsampling, in every exact form of them.

Each form (`benchmarks.upsampled`) of each layer, in each runtime and precision, interleaved, against the plain one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.latency import tell
from cris_edge.backends import registry
from cris_edge.benchmark_report import busy, device, load_average, table
from cris_edge.errors import CrisEdgeError
from cris_edge.machine import physical_cores
from cris_edge.spread import Spread, ratio
from cris_edge.turns import Say, interleave
from cris_edge.worker import Worker

# Channels in and out, and the side before doubling: the two layers of CRIS-R50 at 416 pixels.
LAYERS = ((512, 512, 26), (512, 256, 52))
FORMS = ("plain", "shifted", "matrices", "grouped", "channels-last")
PRECISIONS = {"openvino": ("float32", "bfloat16"), "onnxruntime": ("float32",)}


@dataclass
class Exporter:
    """Writes the forms of a layer with random weights, in a process of its own."""

    channels: int
    width: int
    side: int

    @property
    def info(self) -> dict[str, Any]:
        """Nothing to say."""
        return {}

    def export(self, folder: str, forms: list[str]) -> dict[str, dict[str, Any]]:
        """Write ``FORM.onnx`` for each; returns path, shapes, operations, and the difference from the plain form."""
        import torch

        from benchmarks.upsampled import FORMS as MODULES
        from benchmarks.upsampled import to_layout
        from runtimes import onnx_graph
        from runtimes.cost import multiply_accumulates

        torch.manual_seed(0)
        weight = torch.randn(self.width, self.channels, 3, 3) / (9 * self.channels / 2) ** 0.5
        bias, x = torch.randn(self.width) / 10, torch.rand(1, self.channels, self.side, self.side)
        told: dict[str, dict[str, Any]] = {}
        with torch.inference_mode():
            expected = MODULES["plain"](weight, bias, self.side)(x)
            for form in forms:
                module = MODULES[form](weight, bias, self.side).eval()
                given, wanted = to_layout(form, x), to_layout(form, expected)
                graph = onnx_graph.trace(form, module, {"x": given}, ["y"])
                path = Path(folder) / f"{form}.onnx"
                onnx_graph.write(graph, path)
                told[form] = {
                    "path": str(path),
                    "shapes": [list(given.shape), list(wanted.shape)],
                    "macs": multiply_accumulates(graph),
                    "difference": float((module(given) - wanted).abs().max()),
                }
        return told


def measure(
    layers: tuple[tuple[int, int, int], ...] = LAYERS,
    *,
    forms: tuple[str, ...] = FORMS,
    threads: int | None = None,
    runs: int = 50,
    seconds: float = 20.0,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """What was found, ready for JSON: one row for each layer, runtime, precision and form; "plain" comes first."""
    threads, before = threads or physical_cores(), load_average()
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    workers: list[Worker] = []
    with ExitStack() as stack:
        for channels, width, side in layers:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cris-edge-taps-"))
            layer = f"{channels} to {width} channels, {side} to {2 * side}"
            say(f"exporting {layer}")
            sizes = {"channels": channels, "width": width, "side": side}
            with Worker("benchmarks.taps:Exporter", sizes, layer) as exporter:
                exported = exporter.ask("export", folder=folder, forms=list(forms))
            for runtime in registry.available():
                for precision in PRECISIONS.get(runtime, ()):
                    for form in forms:
                        told = {**exported[form]}
                        difference = told.pop("difference")
                        arguments = {**told, "runtime": runtime, "precision": precision, "threads": threads}
                        label = f"{layer}, {runtime} {precision}, {form}"
                        try:
                            worker = Worker("benchmarks.chain:GraphSubject", arguments, label)
                        except CrisEdgeError as error:
                            failures.append({"case": label, "error": str(error)})
                            continue
                        workers.append(stack.enter_context(worker))
                        row = {"layer": layer, "form": form, "difference": difference, **worker.info}
                        rows.append(row)
        gathered = interleave(workers, runs=runs, seconds=seconds, say=say) if workers else []
    plain: dict[tuple[str, ...], list[list[float]]] = {}
    for row, turns in zip(rows, gathered, strict=True):
        blocks, kind = turns.of("whole"), (row["layer"], row["runtime"], row["precision"])
        if row["form"] == "plain":
            plain[kind] = blocks
        row["seconds"] = Spread.of(blocks).to_dict()
        row["times_faster_than_plain"] = ratio(blocks, plain[kind]) if kind in plain else None
    return {"machine": device(), "load_before": before, "rows": rows, "failures": failures}


def to_text(found: dict[str, Any], markdown: bool = False) -> str:
    """Tables for people."""
    rows = []
    for row in found["rows"]:
        seconds, faster = row["seconds"], row["times_faster_than_plain"]
        rows.append(
            [
                row["layer"],
                f"{row['runtime']} {row['precision']}",
                row["form"],
                f"{row['macs'] / 1e9:.2f}",
                f"{1e3 * seconds['median']:.2f} ±{500 * (seconds['high'] - seconds['low']):.2f}",
                f"{faster['ratio']:.2f} ({faster['low']:.2f}-{faster['high']:.2f})" if faster else "",
            ]
        )
    names = ["layer", "runtime", "form", "GMAC", "ms", "times faster than plain"]
    parts = [found["machine"]["processor"], table(names, rows, markdown=markdown)]
    parts += [f"failed: {failure['case']}: {failure['error']}" for failure in found["failures"]]
    return "\n\n".join([*parts, *busy(found["load_before"])])


@click.command(help=__doc__)
@click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), default=FORMS, help="[default: all]")
@click.option("--threads", type=click.IntRange(min=1), help="Of all of them.  [default: the physical cores]")
@click.option("--runs", default=50, show_default=True, help="Runs of each at least.")
@click.option("--seconds", default=20.0, show_default=True, help="For each, about.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write.")
@click.option("--markdown", is_flag=True, help="Tables for a page.")
def main(output: Path | None, markdown: bool, **options: Any) -> None:
    """Read the command line."""
    try:
        found = measure(say=tell, **options)
    except CrisEdgeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    tell("")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    click.echo(to_text(found, markdown))


if __name__ == "__main__":
    main()
