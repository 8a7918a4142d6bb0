"""What a run tells: JSON Lines of metrics, TensorBoard where it is installed, curves at the end."""

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
from training.curves import draw_curves
from training.data.loader import Batch

METRICS, CONFIG, CURVES = "metrics.jsonl", "config.json", "curves.png"


class Meter:
    """Images per second of the trainer and, beside it, of the loader.

    Args:
        world: processes, each of which trains as many images.
        workers: loader processes of each.
    """

    def __init__(self, world: int, workers: int) -> None:
        self._world, self._workers = world, workers
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self._began, self._wait, self._made, self._images = time.perf_counter(), 0.0, 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time what the trainer waits for data."""
        began = time.perf_counter()
        yield
        self._wait += time.perf_counter() - began

    def count(self, micro: list[Batch]) -> None:
        """Count the batches of a step."""
        self._images += sum(len(batch.ids) for batch in micro)
        self._made += sum(batch.seconds for batch in micro)

    def read(self) -> dict[str, float]:
        """Return the interval's rates and begin a new one.

        ``loader_images_per_second`` is what the workers could have loaded in the time they were at work; ``waiting`` is
        the share of the time that the trainer had nothing to do.
        """
        seconds = time.perf_counter() - self._began
        images = self._images * self._world
        rates = {
            "images_per_second": round(images / seconds, 2),
            "loader_images_per_second": round(self._workers * images / max(self._made, 1e-9), 2),
            "waiting": round(self._wait / seconds, 4),
            "seconds": round(seconds, 3),
        }
        self.restart()
        return rates


class Journal:
    """Writes into a run's folder; only the first process has one.

    Args:
        output: the folder, made if it is not there.
        config: written into it, so that the run can be repeated.
        step: from which the run continues; lines of later steps are dropped, they will be trained again.
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
        """Append a line, whose ``step`` says where it belongs."""
        path = self._output / METRICS
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name, value in record.items():
                for key, number in value.items() if isinstance(value, dict) else [("", value)]:
                    if name != "step":
                        self._board.add_scalar(f"{name}/{key}".rstrip("/"), number, record["step"])

    def finish(self) -> None:
        """Draw the curves and close what is open."""
        draw_curves(self._output / METRICS, self._output / CURVES)
        if self._board is not None:
            self._board.close()


def _step(line: str) -> float:
    """Return the step of a line; a half-written one belongs to no step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
