"""The quantized checkpoint rebuilds the network, and is refused where another kind is expected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from cris_edge.errors import CheckpointError
from quantization.quantized_checkpoint import load_float, load_quantized, save_quantized

if TYPE_CHECKING:
    from quantization.calibration import Calibration
    from quantization.deploy_network import DeployNetwork


def test_a_rebuilt_network_computes_the_same_bits(
    int8: DeployNetwork, calibration: Calibration, tmp_path: Path
) -> None:
    next(int8.quantizers()).enabled = False
    save_quantized(tmp_path / "a.pt", int8, report={"drop": 0.1})
    rebuilt, extra = load_quantized(tmp_path / "a.pt")
    assert extra["report"] == {"drop": 0.1}
    assert not next(rebuilt.quantizers()).enabled
    image, tokens = calibration.samples["image_encoder"][0][0], calibration.samples["text_encoder"][0][0]
    with torch.no_grad():
        assert torch.equal(int8(image, tokens), rebuilt(image, tokens))


def test_the_file_holds_no_code(int8_file: Path) -> None:
    content = torch.load(int8_file, weights_only=True)
    assert content["format"] == "cris-edge-quantized"


def test_a_float_checkpoint_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="is not quantized; write a quantized checkpoint"):
        load_quantized(checkpoint)


def test_a_quantized_checkpoint_is_not_quantized_twice(int8_file: Path) -> None:
    with pytest.raises(CheckpointError, match="is quantized already; pass the float checkpoint"):
        load_float(int8_file)


def test_a_newer_or_damaged_file_is_refused(int8_file: Path, tmp_path: Path) -> None:
    content = torch.load(int8_file, weights_only=True)
    torch.save({**content, "version": 99}, tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match="version 99"):
        load_quantized(tmp_path / "newer.pt")
    del content["graphs"]["mask_decoder"]
    torch.save(content, tmp_path / "damaged.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        load_quantized(tmp_path / "damaged.pt")
