"""Post-training quantization of a CandidateNet: which layers are in int8, and what the checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from quantization.calibrate import main, quantize
from quantization.layout import calls
from quantization.post_training import Scheme
from quantization.quantized_checkpoint import load_float, load_quantized
from quantization.quantizers import quantizers
from training.checkpoint import save_model
from training.data.samples import open_source
from training.model import CRIS, Architecture, CandidateArchitecture, CandidateNet

pytest.importorskip("nncf")

SMALL = CandidateArchitecture(
    input_size=128, word_len=20, candidates=4, width=32, layers=1, text_layers=1, heads=2, rows=20
)
SCENES = "scenes:train:8:3"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("float") / "model.pt"
    save_model(path, CandidateNet(SMALL), recipe="a test")
    return path


@pytest.fixture(scope="module")
def quantized(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("int8") / "model.pt"
    arguments = ["--checkpoint", str(checkpoint), "--data", SCENES, "--output", str(output), "--calibration", "8"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return output


def test_only_the_named_layers_are_in_int8(checkpoint: Path) -> None:
    network, _ = load_float(checkpoint)
    int8 = quantize(network, open_source(SCENES, by_image=True), Scheme(), images=8)
    image = torch.randn(1, 3, 128, 128)
    bare = network.image_encoder
    found = calls(bare, (image,))
    places = {place.split(".")[1].rpartition("__")[0] for place, hook in quantizers(int8.image_encoder) if hook.weight}
    layers = {found[place].parameter for place in places}
    assert layers == set(bare.quantized_layers)
    assert "finder.detector.stage4.last.weight" in layers and "finder.detector.outputs.0.weight" not in layers
    assert not list(quantizers(int8.text_encoder))
    weights = [hook for _, hook in quantizers(int8.mask_decoder) if hook.weight]
    assert len(weights) == len(network.mask_decoder.quantized_layers) > 5


def test_what_stays_in_float_is_held_exactly_by_float16(quantized: Path) -> None:
    network, _ = load_quantized(quantized)
    rows = network.text_encoder.rows
    assert torch.equal(rows, rows.half().float())


@torch.no_grad()
def test_the_checkpoint_gives_the_network_back(quantized: Path, checkpoint: Path) -> None:
    network, recorded = load_quantized(quantized)
    again, _ = load_quantized(quantized)
    before, _ = load_float(checkpoint)
    assert network.architecture == SMALL and recorded["recipe"] == "a test"
    assert recorded["report"]["scheme"]["target"] == "vnni"
    image, tokens = torch.randn(1, 3, 128, 128), torch.randint(1, 49408, (1, 20))
    logits = network(image, tokens)
    assert logits.shape == (1, 1, 32, 32)
    assert torch.equal(logits, again(image, tokens))
    features, exact = network.encode_image(image), before.encode_image(image)
    difference = (features["mask_fine"] - exact["mask_fine"]).abs().max()
    assert 0 < difference < 0.2 * exact["mask_fine"].abs().max()


def test_a_cris_is_sent_to_the_other_command(tmp_path: Path) -> None:
    path = tmp_path / "cris.pt"
    sizes = {"vision_layers": (1, 1, 1, 1), "vision_width": 8, "embed_dim": 16, "text_width": 16, "text_layers": 1}
    save_model(
        path,
        CRIS(Architecture(input_size=64, image_resolution=64, decoder_layers=1, decoder_heads=2, ffn_dim=16, **sizes)),
    )
    arguments = ["--checkpoint", str(path), "--data", SCENES, "--output", str(tmp_path / "int8.pt")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "quantization.finetune" in result.output
