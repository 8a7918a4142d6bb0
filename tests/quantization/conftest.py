"""A network as small as they get, labelled synthetic images, and the network quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

if TYPE_CHECKING:
    from quantization.calibration import Calibration
    from quantization.deploy_network import DeployNetwork


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float checkpoint with random weights whose outputs differ between inputs."""
    import torch

    from training.checkpoint import save_model
    from training.model import CRIS, Architecture

    torch.manual_seed(0)
    model = CRIS(
        Architecture(
            input_size=32,
            word_len=6,
            vision_layers=(1, 1, 1, 1),
            vision_width=8,
            image_resolution=32,
            embed_dim=16,
            vocab_size=49408,
            context_length=8,
            text_width=16,
            text_layers=1,
            decoder_layers=1,
            decoder_heads=2,
            ffn_dim=32,
        )
    )
    with torch.no_grad():
        for parameter in model.proj.parameters():
            parameter.mul_(4)
    path = tmp_path_factory.mktemp("float") / "float.pt"
    save_model(path, model, recipe="test", description="Random weights.", mask_target="area")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of one disc each."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    lines = []
    for index in range(12):
        image = np.full((40, 48, 3), generator.integers(0, 120, 3), np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        centre = tuple(int(side) for side in generator.integers(12, 28, 2))
        cv2.circle(mask, centre, 9, 255, -1)
        image[mask > 0] = (220, 200, 40)
        cv2.imwrite(str(folder / f"{index}.png"), image)
        cv2.imwrite(str(folder / f"{index}_mask.png"), mask)
        lines.append({"image": f"{index}.png", "sentences": ["the disc", "a disc"], "mask": f"{index}_mask.png"})
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def bare(checkpoint: Path) -> DeployNetwork:
    """The float network; not to be changed."""
    from quantization.quantized_checkpoint import load_float

    return load_float(checkpoint)[0]


@pytest.fixture(scope="session")
def calibration(bare: DeployNetwork, data: Path) -> Calibration:
    """Samples of the data."""
    from quantization.calibration import Calibration
    from training.data.samples import open_source

    return Calibration(bare, open_source(str(data), by_image=True), 8, 0)


@pytest.fixture(scope="session")
def int8_file(bare: DeployNetwork, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network after post-training quantization, with SmoothQuant, as a file."""
    from quantization.deploy_network import GRAPHS, DeployNetwork
    from quantization.post_training import Scheme, quantize_module
    from quantization.quantized_checkpoint import save_quantized

    modules = [quantize_module(bare.graphs[name], calibration.samples[name], Scheme(smooth=True)) for name in GRAPHS]
    path = tmp_path_factory.mktemp("int8") / "int8.pt"
    save_quantized(path, DeployNetwork(bare.architecture, modules), report={"rung": "post-training"})
    return path


@pytest.fixture
def int8(int8_file: Path) -> DeployNetwork:
    """The same, rebuilt from the file for each test."""
    from quantization.quantized_checkpoint import load_quantized

    return load_quantized(int8_file)[0]
