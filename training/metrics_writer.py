"""Training metrics: JSON Lines, TensorBoard where installed, and a plot at the end."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cris_edge.files import naming, write_whole
from training.config import RunConfig
from training.curves import plot_metrics
from training.data.loader import Batch

METRICS, CONFIG, CURVES = "metrics.jsonl", "config.json", "curves.png"


class Meter:
    """Throughput of training and of data loading, in images per second.

    Args:
        world: Number of training processes.
        workers: Number of loader processes per training process.
    """

    def __init__(self, world: int, workers: int) -> None:
        self._world, self._workers = world, workers
        self.restart()

    def restart(self) -> None:
        """Start a new interval."""
        self._start, self._wait, self._loading, self._images = time.perf_counter(), 0.0, 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the time that the trainer waits for data."""
        start = time.perf_counter()
        yield
        self._wait += time.perf_counter() - start

    def count(self, micro: list[Batch]) -> None:
        """Count the batches of a step."""
        self._images += sum(len(batch.ids) for batch in micro)
        self._loading += sum(batch.seconds for batch in micro)

    def read(self) -> dict[str, float]:
        """Return the rates of the interval and start a new one.

        ``loader_images_per_second`` is the capacity of the loader processes; ``waiting`` is the share of the time that
        the trainer waited for them.
        """
        seconds = time.perf_counter() - self._start
        images = self._images * self._world
        rates = {
            "images_per_second": round(images / seconds, 2),
            "loader_images_per_second": round(self._workers * images / max(self._loading, 1e-9), 2),
            "waiting": round(self._wait / seconds, 4),
            "seconds": round(seconds, 3),
        }
        self.restart()
        return rates


class MetricsWriter:
    """Writes the metrics and the configuration of a run into its folder; only the first process has one.

    Args:
        output: Folder of the run; created if missing.
        config: Configuration of the run, written to ``config.json``.
        step: Step that the run continues from; lines of later steps are dropped.
    """

    def __init__(self, output: Path, config: RunConfig, step: int) -> None:
        self._output = output
        with naming(output):
            output.mkdir(parents=True, exist_ok=True)
        write_whole(output / CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")
        metrics = output / METRICS
        if metrics.exists():
            lines = metrics.read_text(encoding="utf-8").splitlines()
            write_whole(metrics, "".join(f"{line}\n" for line in lines if _step(line) <= step))
        self._board: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(output / "tensorboard"), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record of the step ``record["step"]``."""
        path = self._output / METRICS
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name, value in record.items():
                for key, number in value.items() if isinstance(value, dict) else [("", value)]:
                    if name != "step":
                        self._board.add_scalar(f"{name}/{key}".rstrip("/"), number, record["step"])

    def finish(self) -> None:
        """Plot the metrics and close TensorBoard."""
        plot_metrics(self._output / METRICS, self._output / CURVES)
        if self._board is not None:
            self._board.close()


def _step(line: str) -> float:
    """Return the step of a line; infinity for an incomplete line."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
