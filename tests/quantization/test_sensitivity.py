"""Sensitivity of groups of layers."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from quantization.sensitivity import grouped, measure, only, write_chart, write_table
from training.data.samples import open_source

if TYPE_CHECKING:
    from quantization.calibration import Calibration
    from quantization.deploy_network import DeployNetwork
    from quantization.sensitivity import Groups


@pytest.fixture
def every(int8: DeployNetwork, bare: DeployNetwork) -> Groups:
    return grouped(int8, bare)


def test_each_quantizer_is_in_one_group(int8: DeployNetwork, every: Groups) -> None:
    members = [quantizer for group in every.values() for quantizer in group]
    assert len(members) == len(set(members))
    assert set(members) == set(int8.quantizers())
    assert {"image_encoder/layer1.0", "text_encoder/blocks.0", "mask_decoder/layers.0", "mask_decoder/vis1"} <= set(
        every
    )


def test_with_no_group_the_network_is_in_float(
    int8: DeployNetwork, bare: DeployNetwork, every: Groups, calibration: Calibration
) -> None:
    tokens = calibration.samples["text_encoder"][0][0]
    with torch.no_grad():
        with only(every, ()):
            plain = int8.encode_text(tokens)["word_values"]
        quantized, expected = int8.encode_text(tokens)["word_values"], bare.encode_text(tokens)["word_values"]
    # What is left is NNCF's correction of biases.
    assert (plain - expected).abs().max() < 0.5 * (quantized - expected).abs().max()
    assert all(quantizer.enabled for quantizer in int8.quantizers())


def test_a_broken_group_is_found(int8: DeployNetwork, every: Groups, data: Path) -> None:
    with torch.no_grad():
        for quantizer in every["mask_decoder/vis2"]:
            if not quantizer.weight:
                quantizer.scale.mul_(60)
    rows = measure(int8, every, open_source(str(data), by_image=True), limit=4)
    assert rows[0].group == "mask_decoder/vis2"
    assert rows[0].change > 3 * rows[1].change
    assert all(math.isfinite(row.drop) for row in rows)
    (alone,) = measure(int8, {"mask_decoder/vis2": every["mask_decoder/vis2"]}, open_source(str(data)), limit=2)
    assert alone.change > 0


def test_table_and_chart(int8: DeployNetwork, every: Groups, data: Path, tmp_path: Path) -> None:
    some = {name: every[name] for name in list(every)[:3]}
    rows = measure(int8, some, open_source(str(data), by_image=True), limit=2)
    write_table(rows, tmp_path / "a" / "table.csv")
    write_chart(rows, tmp_path / "a" / "chart.png", "test")
    with (tmp_path / "a" / "table.csv").open(newline="") as file:
        assert [line["group"] for line in csv.DictReader(file)] == [row.group for row in rows]
    assert (tmp_path / "a" / "chart.png").read_bytes().startswith(b"\x89PNG")
