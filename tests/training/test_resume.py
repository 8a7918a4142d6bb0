from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cris_edge.errors import CheckpointError, OptionError
from training.checkpoint import load_model, read_checkpoint
from training.distributed import join
from training.engine import Trainer
from training.train import main

EVERYTHING = {
    "steps": 8,
    "accumulation": 2,
    "ema_decay": 0.9,
    "workers": 2,
    "flip": 0.5,
    "jitter": 0.2,
    "dropout": 0.2,
    "sizes": (32, 64),
    "schedule": "cosine",
    "warmup_steps": 2,
    "clip_norm": 1.0,
    "precision": "bfloat16",
    "channels_last": True,
}


def configuration(folder: Path, run: Any) -> Path:
    path = folder / "run.json"
    path.write_text(json.dumps(run.to_dict()))
    return path


def test_a_killed_run_resumes_with_the_same_losses(
    tiny_run: Callable[..., Any], losses: Callable[[Path], dict[int, float]], tmp_path: Path
) -> None:
    config = str(configuration(tmp_path, tiny_run(**EVERYTHING)))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["--recipe", config, "--output", str(whole), "--device", "cpu"]) == 0
    command = ["--recipe", config, "--output", str(broken), "--device", "cpu", "--resume", "auto"]
    process = subprocess.Popen([sys.executable, "-m", "training.train", *command], stderr=subprocess.DEVNULL)
    metrics, deadline = broken / "metrics.jsonl", time.monotonic() + 120
    while (
        not metrics.exists() or len(metrics.read_text().splitlines()) < 4
    ):  # between the first and the last checkpoint
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (broken / "last.pt").exists()
    assert read_checkpoint(broken / "last.pt")["training"]["step"] < EVERYTHING["steps"]
    assert main(command) == 0
    expected = losses(whole)
    assert len(expected) == EVERYTHING["steps"]
    assert losses(broken) == expected
    for name in ("state_dict", "training"):
        first, second = (read_checkpoint(folder / "last.pt")[name] for folder in (whole, broken))
        first, second = ((part.get("weights", part)) for part in (first, second))
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert len(metrics.read_text().splitlines()) == len(expected)  # no duplicate step, no incomplete line
    assert (broken / "curves.png").stat().st_size > 1000


def test_resume_auto_starts_new_runs_and_never_rejects_existing_ones(
    tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    processes = join("cpu")
    Trainer(tiny_run(steps=1), tmp_path, processes, resume="auto").fit()
    with pytest.raises(OptionError, match="--resume auto"):
        Trainer(tiny_run(steps=1), tmp_path, processes)
    with pytest.raises(CheckpointError, match="another architecture"):
        Trainer(tiny_run(steps=1, decoder_layers=2), tmp_path, processes, resume="auto")


def test_weights_without_state_cannot_be_resumed(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    from training.checkpoint import save_model

    trainer = Trainer(tiny_run(), tmp_path / "a", join("cpu"))
    save_model(tmp_path / "weights.pt", trainer.model)
    with pytest.raises(CheckpointError, match="--init"):
        Trainer(tiny_run(), tmp_path / "b", join("cpu"), resume=str(tmp_path / "weights.pt"))


def test_a_checkpoint_loads_as_the_averaged_model(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    trainer = Trainer(tiny_run(ema_decay=0.5, steps=2), tmp_path, join("cpu"))
    trainer.fit()
    loaded = load_model(tmp_path / "last.pt").state_dict()
    assert trainer.ema is not None
    averaged = trainer.ema.model.state_dict()
    assert all(torch.equal(loaded[name], averaged[name]) for name in averaged)
    assert any(not torch.equal(loaded[name], value) for name, value in trainer.model.state_dict().items())


def test_sigterm_to_the_process_group_saves_a_checkpoint(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    config = str(configuration(tmp_path, tiny_run(steps=100_000, workers=2, checkpoint_every=100_000)))
    output = tmp_path / "run"
    command = [sys.executable, "-m", "training.train", "--recipe", config, "--output", str(output), "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].endswith("of 100000; continue with --resume auto.")
    assert read_checkpoint(output / "last.pt")["training"]["step"] > 0


def test_ctrl_c_saves_a_checkpoint(
    tiny_run: Callable[..., Any], losses: Callable[[Path], dict[int, float]], tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell runs the tests in the background
    config = tiny_run(checkpoint_every=1000, steps=4)
    trainer = Trainer(config, tmp_path, join("cpu"))
    step = trainer.train_step

    def interrupted(micro: Any) -> tuple[float, float]:
        if trainer.state.step == 1:
            signal.raise_signal(signal.SIGINT)
        return step(micro)

    trainer.train_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(Exception, match="Stopped at step 2 of 4"):
        trainer.fit()
    assert read_checkpoint(tmp_path / "last.pt")["training"]["step"] == 2
    assert signal.getsignal(signal.SIGINT) is before
    Trainer(config, tmp_path, join("cpu"), resume="auto").fit()
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4]
