"""The projector's convolutions at lower resolutions compute what the plain ones do, to the last pixel of the border."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from training.model import CRIS, Architecture
from training.model.deploy import Resolution
from training.model.neck import upsample2
from training.model.upsampled import HalfResolution, LowResolution, convolve_doubled, shift_of_doubled


@pytest.mark.parametrize("side", [3, 4, 13])
@torch.no_grad()
def test_a_layer_is_exact(side: int) -> None:
    torch.manual_seed(side)
    convolution, x = nn.Conv2d(6, 5, 3, padding=1), torch.randn(2, 6, side, side)
    expected = F.relu(convolution(upsample2(x)))
    found = LowResolution(convolution, side)(x.flatten(2).mT)
    assert found.shape == (2, 4 * side * side, 5)
    torch.testing.assert_close(found.mT.unflatten(2, (2 * side, 2 * side)), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(HalfResolution(convolution, side)(x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (4, 7), (14, 14)])
def test_the_trained_form_and_its_gradients_are_exact(height: int, width: int) -> None:
    torch.manual_seed(height)
    x, weight = torch.randn(2, 6, height, width, requires_grad=True), torch.randn(5, 6, 3, 3, requires_grad=True)
    expected = F.conv2d(upsample2(x), weight, padding=1)
    found = convolve_doubled(x, weight)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)
    seen = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, (x, weight), seen), torch.autograd.grad(expected, (x, weight), seen), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-4)


def test_nothing_of_an_inference_is_left_in_the_training_after_it() -> None:
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    with torch.inference_mode():
        convolve_doubled(x, weight)
    convolve_doubled(x.clone(), weight.requires_grad_()).sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_a_doubled_line() -> None:
    middle = shift_of_doubled(3, 1)
    torch.testing.assert_close(middle[:3], torch.tensor([[1.0, 0, 0], [0.75, 0.25, 0], [0.25, 0.75, 0]]))
    assert shift_of_doubled(3, 0)[0].abs().sum() == 0  # zeros before the first pixel
    torch.testing.assert_close(shift_of_doubled(3, 0)[1:], middle[:-1])


@pytest.mark.parametrize("contrastive", [True, False])
@pytest.mark.parametrize("resolution", ["half", "low"])
@torch.no_grad()
def test_the_mask_decoder_is_the_same_function(resolution: Resolution, contrastive: bool, small: Architecture) -> None:
    torch.manual_seed(0)
    model = CRIS(dataclasses.replace(small, contrastive=contrastive))
    image, tokens = torch.randn(2, 3, 64, 64), torch.randint(1, 100, (2, 8))
    with torch.enable_grad():  # a few steps move the batch norms away from the identity
        for _ in range(3):
            model.train()(image * 2 + 1, tokens)
    image_encoder, text_encoder, mask_decoder = model.eval().deploy(resolution=resolution)
    features = dict(zip(image_encoder.output_names, image_encoder(image), strict=True))
    features |= dict(zip(text_encoder.output_names, text_encoder(tokens), strict=True))
    logits = mask_decoder(*(features[name] for name in mask_decoder.input_names))
    torch.testing.assert_close(logits, model(image, tokens), atol=1e-4, rtol=0)


def test_the_plain_form_stays_as_it_is(small: Architecture) -> None:
    plain = CRIS(small).deploy()[2]
    names = [name for name, _ in plain.named_modules()]
    half, low = plain.at_resolution("half"), plain.at_resolution("low")
    assert [name for name, _ in plain.named_modules()] == names
    assert isinstance(plain.vis1, nn.Conv2d) and isinstance(low.vis1, LowResolution)
    assert isinstance(half.vis1, HalfResolution)
    assert half.coordconv1 is low.coordconv1 is plain.coordconv1, "weights are shared, not copied"
    assert plain.at_resolution("full") is plain


def test_the_matrix_of_the_columns_is_whole_quarters() -> None:
    columns = HalfResolution(nn.Conv2d(2, 2, 3, padding=1), 5).columns
    assert set(columns.unique().tolist()) == {0.0, 0.25, 0.75, 1.0}


def test_constants_weigh_little() -> None:
    """In CRIS-R50 at 416 pixels: 162 kB, beside 14 MB of the two layers' weights."""
    layers = [LowResolution(nn.Conv2d(8, 8, 3, padding=1), side) for side in (26, 52)]
    assert sum(buffer.nbytes for layer in layers for buffer in layer.buffers()) == 4 * 12 * (26**2 + 52**2) < 163_000
