from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.checkpoint import load_model, save_model, to_public
from training.fast_network import Network
from training.model import CRIS, Architecture
from training.model.deploy import Resolution


@pytest.fixture(scope="module")
def model(small: Architecture) -> CRIS:
    torch.manual_seed(0)
    return CRIS(replace(small, presence=True)).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    tokens = torch.randint(1, 99, (4, 8))
    tokens[:, 4] = 99  # the end token
    tokens[:, 5:] = 0
    return torch.randn(2, 3, 64, 64), tokens


@torch.no_grad()
def test_forward_returns_logits_alone(model: CRIS, small: Architecture) -> None:
    image, tokens = inputs()
    logits, presence = model.forward_with_presence(image, tokens)
    torch.testing.assert_close(model(image, tokens), logits)
    assert presence is not None and presence.shape == (4, 1) and presence.dtype == torch.float32
    assert len(set(presence.flatten().tolist())) == 4
    assert CRIS(small).eval().forward_with_presence(image, tokens)[1] is None


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("contrastive", [True, False])
@pytest.mark.parametrize("resolution", ["full", "low"])
@torch.no_grad()
def test_the_deploy_modules_give_both(
    small: Architecture, layers: int, contrastive: bool, resolution: Resolution
) -> None:
    torch.manual_seed(0)
    model = CRIS(replace(small, presence=True, decoder_layers=layers, contrastive=contrastive)).eval()
    image, tokens = inputs()
    image = image[:1]
    logits, presence = model.forward_with_presence(image, tokens[:1])
    image_encoder, text_encoder, mask_decoder = model.deploy(resolution=resolution)
    assert mask_decoder.output_names == ("logits", "presence")
    features = dict(zip(image_encoder.output_names, image_encoder(image), strict=True))
    features |= dict(zip(text_encoder.output_names, text_encoder(tokens[:1]), strict=True))
    found = mask_decoder(*(features[name] for name in mask_decoder.input_names))
    torch.testing.assert_close(found[0], logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1], presence, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_training_form_gives_the_same(model: CRIS) -> None:
    image, tokens = inputs()
    _, presence = model.forward_with_presence(image, tokens)
    torch.testing.assert_close(Network(model)(image, tokens)[2], presence)
    torch.testing.assert_close(Network(model, recompute=True)(image, tokens)[2], presence)


def test_checkpoints_carry_the_head(model: CRIS, small: Architecture, tmp_path: Path) -> None:
    save_model(tmp_path / "own.pt", model)
    assert load_model(tmp_path / "own.pt").architecture.presence
    torch.save({"state_dict": to_public(model.state_dict())}, tmp_path / "public.pth")
    public = load_model(tmp_path / "public.pth", word_len=8, decoder_heads=4, input_size=64)
    assert public.architecture == model.architecture
    assert "presence" not in small.to_dict() and model.architecture.to_dict()["presence"] is True
    assert Architecture.from_dict(small.to_dict()) == small
