"""Equalized channels: the same function, and the same range for all."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch

from quantization.equalize import equalize

if TYPE_CHECKING:
    from quantization.calibration import Calibration
    from quantization.deploy_network import DeployNetwork


@pytest.fixture
def uneven(bare: DeployNetwork) -> DeployNetwork:
    """A network whose projector has channels of very different ranges."""
    network = copy.deepcopy(bare)
    with torch.no_grad():
        network.mask_decoder.vis2.taps.weight[::2] *= 0.01
        network.mask_decoder.vis2.taps.bias[::2] *= 0.01
    return network


def test_the_function_stays_and_ranges_agree(uneven: DeployNetwork, calibration: Calibration) -> None:
    ours, even = copy.deepcopy(calibration), copy.deepcopy(uneven)
    factors = equalize(even, ours)
    assert factors is not None and factors.max() == 1 and factors.min() < 0.1
    image, tokens = calibration.samples["image_encoder"][0][0], calibration.samples["text_encoder"][0][0]
    with torch.no_grad():
        expected, found = uneven(image, tokens), even(image, tokens)
        assert (expected - found).abs().max() < 1e-4 * expected.abs().max().clamp(min=1)
        seen: list[torch.Tensor] = []
        taps = even.mask_decoder.vis2.taps
        taps.register_forward_hook(lambda _, __, out: seen.append(out.amax((0, 2, 3)).unflatten(0, (3, -1)).amax(0)))
        logits = [even.mask_decoder(*sample) for sample in ours.samples["mask_decoder"]]
        before = [uneven.mask_decoder(*sample) for sample in calibration.samples["mask_decoder"]]
    largest = torch.stack(seen).amax(0)
    live = largest > 0
    assert live.any() and torch.allclose(largest[live], largest.max().expand(int(live.sum())), rtol=1e-3)
    for one, other in zip(logits, before, strict=True):  # the samples follow
        assert (one - other).abs().max() < 1e-4 * other.abs().max().clamp(min=1)


def test_a_fixed_kernel_is_left_alone(bare: DeployNetwork, calibration: Calibration) -> None:
    network = copy.deepcopy(bare)
    network.mask_decoder.contrastive = False
    assert equalize(network, calibration) is None
