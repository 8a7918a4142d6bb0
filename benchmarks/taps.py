"""``python -m benchmarks.taps``: the projector's convolutions after upsampling, in every exact form of them.

Each form (`benchmarks.upsampled`) of each layer, in each runtime and precision, interleaved, against the plain one.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import harness
from cris_edge.backends import registry
from cris_edge.benchmark.results import busy, device, load_average, table
from cris_edge.benchmark.rounds import Say, interleave
from cris_edge.benchmark.worker import Worker
from cris_edge.device.processor import physical_cores
from cris_edge.errors import CrisEdgeError

# Channels in and out, and the side before doubling: the two layers of CRIS-R50 at 416 pixels.
LAYERS = ((512, 512, 26), (512, 256, 52))
FORMS = ("plain", "shifted", "matrices", "grouped", "channels-last", "half")
INT8 = "int8"
QUANTIZED = ("plain", "half")  # the others have products that would have to be quantized twice over
PRECISIONS = {"openvino": ("float32", "bfloat16", INT8), "onnxruntime": ("float32", INT8)}


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
        """Write every form, in float and, where it is one of `QUANTIZED`, in int8 for each runtime.

        Returns path, shapes, operations, and the difference from the plain form, by form and by ``FORM/RUNTIME``.
        """
        import torch

        from benchmarks.upsampled import FORMS as MODULES
        from benchmarks.upsampled import to_layout
        from quantization.post_training import Scheme, quantize_module
        from runtimes import onnx_graph, quantized
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
                graphs = {form: (module, onnx_graph.trace(form, module, {"x": given}, ["y"]))}
                if form in QUANTIZED:
                    whole = quantize_module(module, [(given,)], Scheme())
                    for runtime in quantized.FORMS:
                        ours = quantized.module_in_form(form, whole, {"x": given}, ["y"], runtime)
                        traced = quantized.trace(form, ours, {"x": given}, ["y"], runtime)
                        graphs[f"{form}/{runtime}"] = ours, traced
                for name, (computes, graph) in graphs.items():
                    path = Path(folder) / f"{name.replace('/', '-')}.onnx"
                    onnx_graph.write(graph, path)
                    told[name] = {
                        "path": str(path),
                        "shapes": [list(given.shape), list(wanted.shape)],
                        "macs": multiply_accumulates(graph),
                        "difference": float((computes(given) - wanted).abs().max()),
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
                        if precision == INT8 and form not in QUANTIZED:
                            continue
                        told = {**exported[f"{form}/{runtime}" if precision == INT8 else form]}
                        difference = told.pop("difference")
                        asked = "auto" if precision == INT8 else precision
                        arguments = {**told, "runtime": runtime, "precision": asked, "threads": threads}
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
    harness.against_plain(rows, gathered, ("layer", "runtime", "precision"))
    return {"machine": device(), "load_before": before, "rows": rows, "failures": failures}


def to_text(found: dict[str, Any], markdown: bool = False) -> str:
    """Tables for people."""
    rows = []
    for row in found["rows"]:
        rows.append(
            [
                row["layer"],
                f"{row['runtime']} {row['precision']}",
                row["form"],
                f"{row['macs'] / 1e9:.2f}",
                harness.milliseconds(row["seconds"]),
                harness.times(row["times_faster_than_plain"]),
            ]
        )
    names = ["layer", "runtime", "form", "GMAC", "ms", "times faster than plain"]
    parts = [found["machine"]["processor"], table(names, rows, markdown=markdown)]
    parts += [f"failed: {failure['case']}: {failure['error']}" for failure in found["failures"]]
    return "\n\n".join([*parts, *busy(found["load_before"])])


@click.command(help=__doc__)
@click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), default=FORMS, help="[default: all]")
@harness.options(seconds=20.0)
def main(output: Path | None, markdown: bool, **options: Any) -> None:
    """Read the command line."""
    harness.conclude(
        lambda: measure(say=harness.tell, **options), to_dict=dict, to_text=to_text, output=output, markdown=markdown
    )


if __name__ == "__main__":
    main()
