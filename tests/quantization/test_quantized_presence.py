"""A network with a presence head: the head stays in float, and the graphs compute it in both forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quantization.calibration import Calibration
from quantization.deploy_network import GRAPHS, DeployNetwork, Predictor
from quantization.layout import calls
from quantization.post_training import Scheme, quantize_module
from quantization.quantized_checkpoint import load_float, load_quantized, save_quantized
from quantization.quantizers import quantizers
from training.checkpoint import load_model, save_model
from training.data.samples import open_source
from training.model import CRIS


@pytest.fixture(scope="module")
def networks(
    checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DeployNetwork, DeployNetwork, Calibration]:
    folder = tmp_path_factory.mktemp("presence")
    torch.manual_seed(0)
    model = CRIS(replace(load_model(checkpoint).architecture, presence=True))
    save_model(folder / "float.pt", model)
    bare = load_float(folder / "float.pt")[0]
    calibration = Calibration(bare, open_source(str(data), by_image=True), 8, 0)
    modules = [quantize_module(bare.graphs[name], calibration.samples[name], Scheme()) for name in GRAPHS]
    save_quantized(folder / "int8.pt", DeployNetwork(bare.architecture, modules))
    return bare, load_quantized(folder / "int8.pt")[0], calibration


def test_the_head_stays_in_float(networks: tuple[DeployNetwork, DeployNetwork, Calibration]) -> None:
    bare, int8, calibration = networks
    for name in ("text_encoder", "mask_decoder"):
        found = calls(bare.graphs[name], calibration.samples[name][0])
        heads = {call.name for call in found.values() if (call.parameter or "").startswith("presence")}
        assert len(heads) == (1 if name == "text_encoder" else 3)
        weights = {
            place.split(".")[1].removesuffix("__1") for place, hook in quantizers(int8.graphs[name]) if hook.weight
        }
        assert weights and not weights & heads


def test_presence_is_close_to_the_float_networks(networks: tuple[DeployNetwork, DeployNetwork, Calibration]) -> None:
    bare, int8, _ = networks
    generator = np.random.default_rng(0)
    pixels = generator.normal(size=(1, 3, 32, 32)).astype(np.float32)
    tokens = np.array([[49406, 320, 1929, 49407, 0, 0], [49406, 736, 2368, 3638, 49407, 0]])
    expected = Predictor(bare).logits_and_presence(pixels, tokens)[1]
    found = Predictor(int8).logits_and_presence(pixels, tokens)[1]
    assert expected is not None and found is not None and expected.shape == (2,)
    assert abs(expected[0] - expected[1]) > 1e-3
    np.testing.assert_allclose(found, expected, atol=0.05)
