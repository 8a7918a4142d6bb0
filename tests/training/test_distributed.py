from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training.checkpoint import load_model
from training.train import main


def torchrun(arguments: list[str], processes: int = 2) -> None:
    """Start processes like torchrun, without its agent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **{name: str(value) for name, value in ranks.items()}, "MASTER_PORT": str(port)}
        command = [sys.executable, "-W", "error::FutureWarning", "-m", "training.train", *arguments]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors


@pytest.mark.parametrize("frozen", [True, False], ids=["batch norm in eval mode", "shared batch norm"])
def test_two_processes_train_like_one(
    tiny_run: Callable[..., Any],
    losses: Callable[[Path], dict[int, float]],
    discs: Path,
    tmp_path: Path,
    frozen: bool,
) -> None:
    run = tiny_run(
        freeze_batch_norm=frozen,
        dropout=0.0,
        flip=0.5,
        accumulation=2,
        ema_decay=0.9,
        val=str(discs),
        validate_every=3,
        # Adam turns a rounding error in a small gradient into a whole step, and batch norm over maps of one pixel
        # amplifies it within a few steps. With shared batch norm the steps are ten times smaller, for the same bound.
        learning_rate=1e-4 if frozen else 1e-5,
    )
    config = tmp_path / "run.json"
    config.write_text(json.dumps(run.to_dict()))
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["--recipe", str(config), "--device", "cpu", "--output", str(one)]) == 0
    torchrun(["--recipe", str(config), "--device", "cpu", "--output", str(two)])
    expected = losses(one)
    assert len(expected) == 6 and len(set(expected.values())) == 6
    assert losses(two) == pytest.approx(expected, rel=1e-4)
    first, second = load_model(one / "last.pt").state_dict(), load_model(two / "last.pt").state_dict()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=2e-3, rtol=2e-2, msg=lambda text, n=name: f"{n}: {text}")
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (one, two)]
    scores = [[record["val"] for record in map(json.loads, part) if "val" in record] for part in lines]
    assert len(scores[0]) == 2
    for alone, together in zip(*scores, strict=True):
        assert alone["samples"] == together["samples"] == 40  # each prompt by one process
        assert together["mIoU"] == pytest.approx(alone["mIoU"], abs=1.0)
