"""``python -m benchmarks.decoder``: the mask decoder in its forms, and with several sentences at once.

The plain form, the one with the projector's products at low resolution, and that one with several sentences on one
image in a batch; in each runtime and precision, interleaved, seconds for a sentence.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np

from benchmarks import harness
from benchmarks.taps import PRECISIONS
from cris_edge.backends import registry
from cris_edge.backends.base import BackendOptions
from cris_edge.benchmark.results import busy, device, load_average, table
from cris_edge.benchmark.rounds import Say, interleave
from cris_edge.benchmark.worker import Worker
from cris_edge.bundle.manifest import GraphSpec, TensorSpec
from cris_edge.device.processor import physical_cores
from cris_edge.errors import CrisEdgeError


class Exporter:
    """Writes the forms of a mask decoder, in a process of its own.

    Args:
        checkpoint: File of a float CRIS; None: CRIS-R50 with random weights.
    """

    def __init__(self, checkpoint: str | None) -> None:
        self._checkpoint = checkpoint
        self.info: dict[str, Any] = {}

    def export(self, folder: str, batches: Sequence[int]) -> list[dict[str, Any]]:
        """Write a graph for each form, the low resolution in each of the `batches`; returns what is to be timed."""
        import torch

        from runtimes import onnx_graph
        from runtimes.cost import multiply_accumulates
        from runtimes.network import example_inputs
        from training.checkpoint import load_model
        from training.model import CRIS, Architecture

        torch.manual_seed(0)
        model = CRIS(Architecture()) if self._checkpoint is None else load_model(Path(self._checkpoint))
        sizes, modules = model.architecture, model.eval().deploy()
        del model
        image = np.random.default_rng(0).random((1, 3, sizes.input_size, sizes.input_size), np.float32)
        tokens = np.arange(1, sizes.word_len + 1)[None]
        inputs = example_inputs(modules, image, tokens)["mask_decoder"]
        plain = modules[2]
        forms = [("plain", plain, 1), *(("low-resolution", plain.at_resolution("low"), batch) for batch in batches)]
        told = []
        with torch.inference_mode():
            expected = plain(*inputs.values())
            for form, module, batch in forms:
                given = {
                    # Features of the image come once; those of the sentences, in a row.
                    name: tensor if name.startswith("visual") else tensor.repeat(batch, *[1] * (tensor.ndim - 1))
                    for name, tensor in inputs.items()
                }
                graph = onnx_graph.trace("mask_decoder", module, given, module.output_names)
                path = Path(folder) / f"{form}-{batch}.onnx"
                onnx_graph.write(graph, path)
                np.savez(path.with_suffix(".npz"), **{name: tensor.numpy() for name, tensor in given.items()})
                told.append(
                    {
                        "form": form,
                        "sentences": batch,
                        "path": str(path),
                        "bytes": path.stat().st_size,
                        "macs": multiply_accumulates(graph) // batch,
                        "difference": float((module(*given.values()) - expected).abs().max()),
                    }
                )
        return told


class Decoder:
    """A mask decoder in a runtime, to be timed.

    Args:
        path: ONNX file, with its inputs beside it.
        sentences: In a batch.
        runtime: Its name.
        precision: Of the arithmetic, as the runtime takes it.
        threads: Of the processor.
    """

    def __init__(self, path: str, sentences: int, runtime: str, precision: str, threads: int) -> None:
        with np.load(Path(path).with_suffix(".npz")) as arrays:
            self._inputs = dict(arrays)
        side = 4 * self._inputs["visual4"].shape[-1]
        inside = tuple(TensorSpec(name, array.shape, array.dtype.name) for name, array in self._inputs.items())
        outside = (TensorSpec("logits", (sentences, 1, side, side), "float32"),)
        self._sentences = sentences
        backend = registry.create(runtime, BackendOptions(precision=precision, threads=threads))
        self._compiled = backend.compile(Path(path), GraphSpec(inside, outside))
        ran = backend.info
        self.info: dict[str, Any] = {
            "runtime": runtime,
            "version": ran.version,
            "precision": ran.precision,
            "threads": ran.threads,
        }

    def turns(self, count: int) -> list[dict[str, float]]:
        """Seconds a sentence of `count` runs; one more comes first and is not told."""
        told = []
        for number in range(count + 1):
            began = perf_counter()
            self._compiled(self._inputs)
            seconds = (perf_counter() - began) / self._sentences
            if number:
                told.append({"whole": seconds, "next": seconds})
        return told


def measure(
    checkpoint: Path | None = None,
    *,
    batches: Sequence[int] = (1, 4),
    threads: int | None = None,
    runs: int = 50,
    seconds: float = 20.0,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """What was found, ready for JSON: one row for each runtime, precision and form; "plain" comes first."""
    threads, before = threads or physical_cores(), load_average()
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    workers: list[Worker] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cris-edge-decoder-"))
        say("exporting")
        given = {"checkpoint": None if checkpoint is None else str(checkpoint)}
        with Worker("benchmarks.decoder:Exporter", given, "export") as exporter:
            exported = exporter.ask("export", folder=folder, batches=list(batches))
        for runtime in registry.available():
            for precision in PRECISIONS.get(runtime, ()):
                for case in exported:
                    arguments = {"path": case["path"], "sentences": case["sentences"]}
                    arguments |= {"runtime": runtime, "precision": precision, "threads": threads}
                    label = f"{runtime} {precision}, {case['form']}, {case['sentences']}"
                    try:
                        worker = Worker("benchmarks.decoder:Decoder", arguments, label)
                    except CrisEdgeError as error:
                        failures.append({"case": label, "error": str(error)})
                        continue
                    workers.append(stack.enter_context(worker))
                    rows.append({name: value for name, value in case.items() if name != "path"} | worker.info)
        gathered = interleave(workers, runs=runs, seconds=seconds, say=say) if workers else []
    harness.against_plain(rows, gathered, ("runtime", "precision"))
    return {
        "machine": device(),
        "load_before": before,
        "checkpoint": "CRIS-R50, random weights" if checkpoint is None else checkpoint.name,
        "rows": rows,
        "failures": failures,
    }


def to_text(found: dict[str, Any], markdown: bool = False) -> str:
    """Tables for people."""
    rows = []
    for row in found["rows"]:
        rows.append(
            [
                f"{row['runtime']} {row['precision']}",
                row["form"],
                str(row["sentences"]),
                f"{row['macs'] / 1e9:.2f}",
                harness.milliseconds(row["seconds"]),
                harness.times(row["times_faster_than_plain"]),
            ]
        )
    names = ["runtime", "form", "sentences at once", "GMAC", "ms a sentence", "times faster than plain"]
    parts = [f"{found['checkpoint']}, {found['machine']['processor']}", table(names, rows, markdown=markdown)]
    parts += [f"failed: {failure['case']}: {failure['error']}" for failure in found["failures"]]
    return "\n\n".join([*parts, *busy(found["load_before"])])


@click.command(help=__doc__)
@click.option("--checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="[default: CRIS-R50]")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(min=1), default=(1, 4), show_default=True)
@harness.options(seconds=20.0)
def main(output: Path | None, markdown: bool, **options: Any) -> None:
    """Read the command line."""
    harness.conclude(
        lambda: measure(say=harness.tell, **options), to_dict=dict, to_text=to_text, output=output, markdown=markdown
    )


if __name__ == "__main__":
    main()
