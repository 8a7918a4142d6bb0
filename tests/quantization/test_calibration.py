"""Calibration samples depend on the seed, and unusable data are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from cris_edge.errors import DataError
from quantization.calibration import Calibration, halves
from training.data.samples import open_source

if TYPE_CHECKING:
    from quantization.deploy_network import DeployNetwork


def few(data: Path, count: int) -> Path:
    path = data.with_name(f"few{count}.jsonl")
    path.write_text("".join(line + "\n" for line in data.read_text().splitlines()[:count]))
    return path


def test_the_seed_decides(bare: DeployNetwork, data: Path, calibration: Calibration) -> None:
    source = open_source(str(data), by_image=True)
    again, other = Calibration(bare, source, 8, 0), Calibration(bare, source, 8, 1)
    images = [torch.cat([sample[0] for sample in one.samples["image_encoder"]]) for one in (calibration, again, other)]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    assert len(images[0]) == 8


def test_the_decoder_gets_the_features_of_the_encoders(bare: DeployNetwork, calibration: Calibration) -> None:
    with torch.no_grad():
        features = bare.encode_image(*calibration.samples["image_encoder"][3])
    assert torch.equal(calibration.samples["mask_decoder"][3][0], features["visual5"])


def test_one_image_is_too_few(bare: DeployNetwork, data: Path) -> None:
    with pytest.raises(DataError, match="has 1 image to calibrate with; expected at least 8"):
        Calibration(bare, open_source(str(few(data, 1)), by_image=True), 64, 0)


def test_halves_share_nothing(data: Path) -> None:
    source = open_source(str(data), by_image=True)
    ours, theirs = halves(source)
    names = {part.id(index) for part in (ours, theirs) for index in range(len(part))}
    assert len(ours) + len(theirs) == len(source) == len(names)
    with pytest.raises(DataError, match="one half to choose on"):
        halves(open_source(str(few(data, 1)), by_image=True))


def test_data_without_masks_is_refused(data: Path) -> None:
    path = data.with_name("unlabelled.jsonl")
    path.write_text(json.dumps({"image": "0.png", "sentences": ["the disc"]}) + "\n")
    with pytest.raises(DataError, match="mask"):
        open_source(str(path))
