"""The network's size, shapes and limits; its numbers are in test_parity.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cris_edge.errors import CheckpointError, InputError
from training.model import CRIS, Architecture, text_to_pixel_loss


@pytest.mark.parametrize(
    ("contrastive", "layers", "millions"),
    [
        (False, 0, 131.86),
        (True, 0, 134.22),
        (False, 1, 136.07),
        (True, 1, 138.43),
        (True, 2, 142.64),
        (True, 3, 146.85),
        (True, 4, 151.06),
    ],
)
def test_parameters_as_in_the_papers_table_4(contrastive: bool, layers: int, millions: float) -> None:
    with torch.device("meta"):
        model = CRIS(Architecture(contrastive=contrastive, decoder_layers=layers))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("contrastive", [True, False])
@torch.no_grad()
def test_deploy_of_every_ablation(layers: int, contrastive: bool, small: Architecture) -> None:
    torch.manual_seed(layers)
    model = CRIS(dataclasses.replace(small, decoder_layers=layers, contrastive=contrastive))
    image, tokens = torch.randn(2, 3, 64, 64), torch.randint(1, 100, (2, 8))
    tokens[0, 5:] = 0
    with torch.enable_grad():  # a few steps move the batch norms away from the identity
        for _ in range(3):
            model.train()(image * 2 + 1, tokens)
    model.eval()
    image_encoder, text_encoder, mask_decoder = model.deploy()
    features = dict(zip(image_encoder.output_names, image_encoder(image), strict=True))
    features |= dict(zip(text_encoder.output_names, text_encoder(tokens), strict=True))
    assert set(mask_decoder.input_names) <= set(features)
    logits = mask_decoder(*(features[name] for name in mask_decoder.input_names))
    torch.testing.assert_close(logits, model(image, tokens), atol=1e-4, rtol=0)


@torch.no_grad()
def test_sentences_of_one_image_are_independent(small: Architecture) -> None:
    model = CRIS(small).eval()
    images, tokens = torch.randn(2, 3, 64, 64), torch.randint(1, 100, (6, 8))
    together = model(images, tokens)
    alone = torch.cat([model(images[i // 3 : i // 3 + 1], tokens[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-4, "the sentence must matter"


@torch.no_grad()
def test_padding_does_not_change_the_mask(small: Architecture) -> None:
    model = CRIS(small).eval()
    image, tokens = torch.randn(1, 3, 64, 64), torch.tensor([[5, 6, 99]])
    padded = torch.nn.functional.pad(tokens, (0, 5))
    torch.testing.assert_close(model(image, tokens), model(image, padded), atol=1e-5, rtol=0)


@torch.no_grad()
def test_another_input_size_shares_the_weights(small: Architecture) -> None:
    model = CRIS(small).eval()
    larger = model.at_size(96)
    assert larger(torch.randn(1, 3, 96, 96), torch.randint(1, 100, (1, 8))).shape == (1, 1, 24, 24)
    assert larger.architecture.input_size == 96 and model.architecture.input_size == 64
    assert larger.proj.txt.weight is model.proj.txt.weight


def test_learning_rates(small: Architecture) -> None:
    slow, fast = CRIS(small).parameter_groups(1.0)
    assert (slow["lr"], fast["lr"]) == (0.1, 1.0)
    model = CRIS(small)
    slow, fast = model.parameter_groups(1.0)
    assert any(parameter is model.backbone.visual.conv1.weight for parameter in slow["params"])
    assert any(parameter is model.backbone.visual.attnpool.positional_embedding for parameter in fast["params"])
    assert any(parameter is model.neck.aggr[0].weight for parameter in fast["params"])
    assert len(slow["params"]) + len(fast["params"]) == len(list(model.parameters()))


def test_loss_is_the_papers() -> None:
    logits = torch.tensor([[[[2.0, -1.0]]]])
    mask = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    expected = -(torch.tensor(2.0).sigmoid().log() + (1 - torch.tensor(-1.0).sigmoid()).log()) / 2
    torch.testing.assert_close(text_to_pixel_loss(logits, mask), expected)


def test_wrong_tensors_are_refused(small: Architecture) -> None:
    model = CRIS(small)
    with pytest.raises(InputError, match="multiples of 32"):
        model(torch.randn(1, 3, 50, 64), torch.ones(1, 8, dtype=torch.int64))
    with pytest.raises(InputError, match="same number of sentences"):
        model(torch.randn(2, 3, 64, 64), torch.ones(3, 8, dtype=torch.int64))


def test_impossible_architectures_are_refused(small: Architecture) -> None:
    with pytest.raises(CheckpointError, match="multiple of 32"):
        dataclasses.replace(small, input_size=100)
    with pytest.raises(CheckpointError, match="decoder_heads"):
        dataclasses.replace(small, decoder_heads=7)
    with pytest.raises(CheckpointError, match="word_len"):
        dataclasses.replace(small, word_len=13)
