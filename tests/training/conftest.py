"""A run that is small enough to train in a test."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

if TYPE_CHECKING:
    from training.model import Architecture

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SIDES = {"left": 16, "right": 48}


def write_scenes(folder: Path, count: int = 10) -> Path:
    """Write images with two discs, one on each side, described by its side; return the JSON Lines file."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        image = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        for side, x in SIDES.items():
            mask = np.zeros((48, 64), np.uint8)
            cv2.circle(mask, (x, int(rng.integers(14, 34))), int(rng.integers(6, 12)), 255, -1)
            image[mask > 0] = rng.integers(100, 255, 3)
            cv2.imwrite(str(folder / f"{number}_{side}.png"), mask)
            sentences = [f"the {side} disc", f"disc on the {side}"]
            lines.append({"image": f"{number}.png", "sentences": sentences, "mask": f"{number}_{side}.png"})
        cv2.imwrite(str(folder / f"{number}.png"), image)
    path = folder / "discs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small() -> Architecture:
    """A network with every part of CRIS that runs in milliseconds."""
    from training.model import Architecture

    return Architecture(
        input_size=64,
        word_len=8,
        vision_layers=(1, 1, 1, 1),
        vision_width=8,
        image_resolution=64,
        embed_dim=32,
        vocab_size=100,
        context_length=12,
        text_width=32,
        text_layers=1,
        decoder_layers=2,
        decoder_heads=4,
        ffn_dim=64,
    )


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON Lines file with twenty objects in ten images."""
    return write_scenes(tmp_path_factory.mktemp("discs"))


@pytest.fixture
def tiny_run(discs: Path) -> Callable[..., Any]:
    """Return a function that makes a run on the discs; keywords set fields of any group."""
    from training.config import DataConfig, LoopConfig, OptimizerConfig, RunConfig, override
    from training.model import Architecture

    def make(**changes: Any) -> RunConfig:
        run = RunConfig(
            name="tiny-test",
            architecture=Architecture(
                input_size=64,
                image_resolution=64,
                vision_layers=(1, 1, 1, 1),
                vision_width=8,
                embed_dim=32,
                text_width=32,
                text_layers=1,
                decoder_layers=1,
                decoder_heads=2,
                ffn_dim=32,
            ),
            data=DataConfig(train=str(discs), sentences_per_image=2, workers=0),
            optimizer=OptimizerConfig(optimizer="adamw", learning_rate=1e-3, backbone_scale=1.0),
            loop=LoopConfig(batch_size=4, steps=6, log_every=1, checkpoint_every=3, threads=1),
        )
        return override(run, changes)

    return make


@pytest.fixture
def losses() -> Callable[[Path], dict[int, float]]:
    """Return a function that reads the loss of each step from the folder of a run."""

    def read(output: Path) -> dict[int, float]:
        records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        return {record["step"]: record["loss"] for record in records if "loss" in record}

    return read
