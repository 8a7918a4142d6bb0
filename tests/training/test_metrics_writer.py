"""TensorBoard and JSON Lines get the same metrics."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from training.metrics_writer import MetricsWriter


class Writer:
    """A fake of TensorBoard's SummaryWriter."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    """TensorBoard as if it were installed."""
    installed, module = ModuleType("tensorboard"), ModuleType("torch.utils.tensorboard")
    installed.__spec__ = importlib.machinery.ModuleSpec("tensorboard", None)
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboard", installed)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_tensorboard_gets_the_same_metrics(board: list[Writer], tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    metrics = MetricsWriter(tmp_path, tiny_run(), 4)
    record = {
        "step": 5, "size": 64, "loss": 0.5, "learning_rate": 1e-3, "images_per_second": 2.0,
        "loader_images_per_second": 9.0,
    }  # fmt: skip
    metrics.write(record)
    metrics.write({"step": 5, "val": {"mIoU": 50.0, "oIoU": 40.0, "Pr@50": 45.0}})
    metrics.finish()
    (writer,) = board
    assert writer.folder == str(tmp_path / "tensorboard") and writer.purge_step == 5 and writer.closed
    assert ("loss", 0.5, 5) in writer.scalars and ("val/mIoU", 50.0, 5) in writer.scalars
    assert not [name for name, *_ in writer.scalars if name == "step"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == record
    assert (tmp_path / "curves.png").stat().st_size > 1000
