"""``python -m benchmarks.steps``: images per second and peak memory of training, by whole steps of the real loop.

Each form (precision, ``torch.compile``, gradient checkpointing) is a `training.engine.Trainer` in a process of its own;
their steps are interleaved, on one batch of drawn scenes that is loaded before: the loader's speed is the trainer's own
to tell. ``--batch-size`` is what all forms together must fit into.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from benchmarks import harness
from cris_edge.benchmark.results import busy, device, load_average, table
from cris_edge.benchmark.rounds import Progress, interleave
from cris_edge.benchmark.worker import Worker, peak_memory
from cris_edge.device.processor import physical_cores
from cris_edge.errors import CrisEdgeError, RuntimeFailure

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, compiled": {"precision": "bfloat16", "compile": True},
    "bfloat16, checkpointed": {"precision": "bfloat16", "gradient_checkpointing": True},
}
"""Fields of the run that differ; "plain" is what the others are held against."""


class Step:
    """A trainer with one batch.

    Args:
        recipe: its name.
        changes: fields that differ from the recipe's.
        device: ``auto``, ``cpu``, ``cuda``.
        threads: of the processor.
    """

    def __init__(self, recipe: str, changes: dict[str, Any], device: str, threads: int) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in training.train; read when PyTorch is loaded
        import torch

        from training.allocator import keep_memory
        from training.config import override
        from training.data.loader import Examples, collate
        from training.data.samples import open_source
        from training.data.transforms import Transform
        from training.distributed import join
        from training.engine import Trainer
        from training.recipes import recipe as named

        torch.set_num_threads(threads)
        config = override(named(recipe), {"train": "scenes:train", "val": None, "steps": 1_000_000, **changes})
        processes = join(device)
        self._cuda = processes.device if processes.device.type == "cuda" else None
        if self._cuda is None:
            keep_memory()
        data, size = config.data, config.architecture.input_size
        transform = Transform(
            config.architecture.word_len, data.sentences_per_image, data.flip, data.jitter, data.mask_target
        )
        examples = Examples(open_source("scenes:train", by_image=data.sentences_per_image > 1), transform, seed=0)
        batch = collate([examples[0, number, size] for number in range(config.loop.batch_size)])
        if isinstance(batch, str):
            raise AssertionError(batch)
        self._batch = batch
        with tempfile.TemporaryDirectory(prefix="cris-edge-steps-") as folder:
            self._trainer = Trainer(config, Path(folder), processes)
        self.info = {
            "device": torch.cuda.get_device_name(self._cuda) if self._cuda else "cpu",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "precision": config.loop.precision,
            "input_size": size,
            "images": len(batch.ids),
            "sentences": len(batch.tokens),
        }

    def measure(self, count: int) -> list[dict[str, float]]:
        """Seconds of `count` optimizer steps, after one that does not count."""
        told = []
        for number in range(count + 1):
            began = perf_counter()
            self._trainer.train_step([self._batch])  # reads the loss, and so waits for the device
            self._synchronize()
            if number:
                took = perf_counter() - began
                told.append({"whole": took, "next": took})
        return told

    def memory(self) -> int | None:
        """Bytes at the peak: of the GPU's memory where there is one, else of the process's."""
        if self._cuda is None:
            return peak_memory()
        import torch

        return torch.cuda.max_memory_reserved(self._cuda)

    def _synchronize(self) -> None:
        if self._cuda is not None:
            import torch

            torch.cuda.synchronize(self._cuda)


def measure(
    recipe: str = "r50",
    *,
    forms: tuple[str, ...] = tuple(FORMS),
    changes: dict[str, Any] | None = None,
    device_name: str = "auto",
    threads: int | None = None,
    runs: int = 20,
    seconds: float = 60.0,
    say: Progress = lambda _: None,
) -> dict[str, Any]:
    """What was found, ready for JSON: one row for each form.

    Args:
        recipe: whose step.
        forms: of `FORMS`.
        changes: fields of the run that differ from the recipe's in all forms.
        device_name: ``auto``, ``cpu``, ``cuda``.
        threads: of the processor; None: its physical cores.
        runs: steps of each form at least.
        seconds: for each form, about.
        say: is told the progress.

    Raises:
        RuntimeFailure: none of the forms runs here.
    """
    threads, before = threads or physical_cores(), load_average()
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    workers: list[Worker] = []
    with ExitStack() as stack:
        for form in forms:
            say(f"building {recipe}, {form}")
            given = {"recipe": recipe, "changes": {**(changes or {}), **FORMS[form]}}
            try:
                worker = Worker("benchmarks.steps:Step", {**given, "device": device_name, "threads": threads}, form)
                stack.enter_context(worker)
                worker.ask("measure", count=1)  # compiles, and finds out whether the memory is enough
            except CrisEdgeError as error:
                failures.append({"case": form, "error": str(error)})
                continue
            workers.append(worker)
            rows.append({"recipe": recipe, "form": form, **worker.info})
        if not workers:
            raise RuntimeFailure("; ".join(f"{failure['case']}: {failure['error']}" for failure in failures))
        gathered = interleave(workers, runs=runs, seconds=seconds, progress=say)
        for row, worker in zip(rows, workers, strict=True):
            row["peak_memory"] = worker.ask("memory")
    harness.against_plain(rows, gathered, ("recipe",))
    return {"machine": device(), "load_before": before, "rows": rows, "failures": failures}


def to_text(found: dict[str, Any], markdown: bool = False) -> str:
    """Tables for people."""
    names = ["", "device", "pixels", "images x sentences", "ms a step", "images/s", "times plain", "peak, GB"]
    rows = []
    for row in found["rows"]:
        rows.append(
            [
                f"{row['recipe']}, {row['form']}",
                row["device"],
                str(row["input_size"]),
                f"{row['images']} x {row['sentences'] // row['images']}",
                harness.milliseconds(row["seconds"]),
                f"{row['images'] / row['seconds']['median']:.2f}",
                harness.times(row["times_faster_than_plain"]),
                f"{row['peak_memory'] / 1e9:.2f}" if row["peak_memory"] else "",
            ]
        )
    machine = found["machine"]
    versions = ", ".join(sorted({f"threads: {row['threads']}, PyTorch {row['torch']}" for row in found["rows"]}))
    parts = [f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; {versions}"]
    parts.append(table(names, rows, markdown=markdown))
    parts += [f"failed: {failure['case']}: {failure['error']}" for failure in found["failures"]]
    return "\n\n".join([*parts, *busy(found["load_before"])])


@click.command(help=__doc__)
@click.option("--recipe", default="r50", show_default=True, help="Whose step.")
@click.option("--form", "forms", multiple=True, type=click.Choice(list(FORMS)), default=list(FORMS), help="[all]")
@click.option("--batch-size", type=click.IntRange(min=1), default=2, show_default=True, help="Images of a step.")
@click.option("--device", "device_name", default="auto", show_default=True, help="auto, cpu, cuda.")
@harness.options(seconds=60.0, runs=20)
def main(output: Path | None, markdown: bool, batch_size: int, **options: Any) -> None:
    """Read the command line."""
    harness.conclude(
        lambda: measure(say=harness.tell, changes={"batch_size": batch_size}, **options),
        to_dict=dict,
        to_text=to_text,
        output=output,
        markdown=markdown,
    )


if __name__ == "__main__":
    main()
