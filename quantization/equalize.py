"""Channels brought to one range before they are quantized with one scale (Nagel et al., arXiv 1906.04721)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantization.calibration import Calibration
from quantization.deploy_network import DeployNetwork

LEAST = 1e-3  # of the widest channel's range: a channel that is never on must not get an endless factor


@torch.no_grad()
def equalize(network: DeployNetwork, calibration: Calibration) -> Tensor | None:
    """Give the projector's last channels the same range, in place; the network computes what it did.

    They meet the sentence's kernel, whose product is the logits, so their rounding errors are those of the mask. Their
    ranges differ by a factor of thirty and more, and one scale serves them all. A factor moves through the ReLU from
    the convolution to the kernel: the convolution's channel c is divided by it, the kernel's weights for c are
    multiplied. What is quantized is the three taps that add up to a channel, so the range is the largest of theirs.

    Args:
        network: In float.
        calibration: Of that network; what it holds of kernels follows.

    Returns:
        The factors (C/2,), the widest channel's 1; None where the kernel does not depend on the sentence.
    """
    decoder: Any = network.mask_decoder
    text: Any = network.text_encoder
    if not decoder.contrastive:
        return None
    layer = decoder.vis2
    widest = torch.zeros(layer.width)

    def see(_: Any, __: Any, output: Tensor) -> None:
        largest = output.amax(dim=(0, 2, 3)).unflatten(0, (3, -1)).amax(0)
        torch.maximum(widest, largest, out=widest)

    handle = layer.taps.register_forward_hook(see)
    try:
        for sample in calibration.samples["mask_decoder"]:
            decoder(*sample)
    finally:
        handle.remove()
    factors = (widest / widest.max().clamp(min=1e-12)).clamp(min=LEAST)
    layer.taps.weight.div_(factors.repeat(3)[:, None, None, None])  # channels are (tap, channel)
    layer.taps.bias.div_(factors.repeat(3))
    text.kernel.weight.mul_(factors.repeat(9)[:, None])  # rows are (tap, channel)
    text.kernel.bias.mul_(factors.repeat(9))
    place = decoder.input_names.index("kernel")
    samples = calibration.samples["mask_decoder"]
    samples[:] = [(*sample[:place], sample[place] * factors, *sample[place + 1 :]) for sample in samples]
    return factors
