"""``python -m benchmarks.steps``: images per second and peak memory of training, by whole steps of the real loop.

Each form (precision, ``torch.compile``, gradient checkpointing) is a `training.engine.Trainer` in a process of its own.
Their steps are interleaved, on one batch of synthetic scenes that is loaded beforehand: training metrics report the
loader's speed. All forms must fit into memory together, which limits ``--batch-size``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks import harness
from benchmarks.harness import Document, Workers
from cris_edge.benchmark.results import table
from cris_edge.benchmark.rounds import Progress, interleave
from cris_edge.benchmark.spread import Spread, ratio
from cris_edge.benchmark.worker import peak_memory
from cris_edge.device.processor import physical_cores
from cris_edge.errors import CrisEdgeError, RuntimeFailure

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, compiled": {"precision": "bfloat16", "compile": True},
    "bfloat16, checkpointed": {"precision": "bfloat16", "gradient_checkpointing": True},
}
"""Fields of the run that differ; ratios are against "plain"."""


class Step:
    """A trainer with one batch.

    Args:
        recipe: Name of the recipe.
        changes: Fields that differ from the recipe's.
        device: ``auto``, ``cpu``, ``cuda``.
        threads: CPU threads.
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
        return [{"whole": seconds, "next": seconds} for seconds in harness.timed(self._step, count)]

    def memory(self) -> int | None:
        """Peak memory in bytes: the GPU's where there is one, else the process's."""
        if self._cuda is None:
            return peak_memory()
        import torch

        return torch.cuda.max_memory_reserved(self._cuda)

    def _step(self) -> None:
        self._trainer.train_step([self._batch])
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
    progress: Progress = lambda _: None,
) -> Document:
    """Measure the forms; ``rows`` has one entry for each that runs.

    Args:
        recipe: Name of the recipe.
        forms: Keys of `FORMS`.
        changes: Fields that differ from the recipe's in all forms.
        device_name: ``auto``, ``cpu``, ``cuda``.
        threads: CPU threads of each; None for the number of physical cores.
        runs: Minimum number of steps of each.
        seconds: Approximate time for each.
        progress: Called with a line of progress.

    Raises:
        RuntimeFailure: None of the forms runs on this machine.
    """
    threads = threads or physical_cores()
    rows: list[dict[str, Any]] = []
    with Workers(progress) as pool:
        for form in forms:
            given = {"recipe": recipe, "changes": {**(changes or {}), **FORMS[form]}}
            worker = pool.start("benchmarks.steps:Step", {**given, "device": device_name, "threads": threads}, form)
            if worker is None:
                continue
            try:
                worker.ask("measure", count=1)  # compiles, and shows whether the memory is enough
            except CrisEdgeError as error:
                pool.workers.remove(worker)
                pool.failed(form, error)
                continue
            rows.append({"recipe": recipe, "form": form, **worker.info})
        if not rows:
            raise RuntimeFailure("; ".join(f"{failure['case']}: {failure['error']}" for failure in pool.failures))
        gathered = interleave(pool.workers, runs=runs, seconds=seconds, progress=progress)
        plain = next((samples for row, samples in zip(rows, gathered, strict=True) if row["form"] == "plain"), None)
        for row, worker, samples in zip(rows, pool.workers, gathered, strict=True):
            row["peak_memory"] = worker.ask("memory")
            row["seconds"] = Spread.of(samples.of("whole")).to_dict()
            row["times_faster_than_plain"] = ratio(samples.of("whole"), plain.of("whole")) if plain else None
        return pool.document(rows=rows)


def to_text(found: Document, markdown: bool = False) -> str:
    """Tables of a result file."""
    names = ["", "device", "pixels", "images x prompts", "ms a step", "images/s", "times plain", "peak, GB"]
    rows = [
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
        for row in found["rows"]
    ]
    machine = found["machine"]
    versions = ", ".join(sorted({f"threads: {row['threads']}, PyTorch {row['torch']}" for row in found["rows"]}))
    head = f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; {versions}"
    return "\n\n".join([head, table(names, rows, markdown=markdown), *harness.closing(found)])


@click.command(help=__doc__)
@click.option("--recipe", default="r50", show_default=True, help="Name of the recipe.")
@click.option(
    "--form", "forms", multiple=True, type=click.Choice(list(FORMS)), default=list(FORMS), help="[default: all]"
)
@click.option("--batch-size", type=click.IntRange(min=1), default=2, show_default=True, help="Images per step.")
@click.option("--device", "device_name", default="auto", show_default=True, help="auto, cpu, cuda.")
@harness.options(seconds=60.0, runs=20)
def main(output: Path | None, markdown: bool, batch_size: int, **options: Any) -> None:
    """Run the command line."""
    harness.conclude(
        lambda: measure(progress=harness.progress, changes={"batch_size": batch_size}, **options),
        to_text,
        output=output,
        markdown=markdown,
    )


if __name__ == "__main__":
    main()
