"""Channels brought to one range before they are quantized with one scale (Nagel et al., arXiv 1906.04721)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quantization.calibration import Calibration
from quantization.network import DeployNetwork

LEAST = 1e-3  # of the widest channel's range: a channel that is never on must not get an endless factor


@torch.no_grad()
def equalize(network: DeployNetwork, calibration: Calibration) -> Tensor | None:
    """Give the projector's last channels the same range, in place; the network computes what it did.

    They meet the sentence's kernel, whose product is the logits, so their rounding errors are those of the mask. Their
    ranges differ by a factor of thirty and more, and one scale serves them all. A factor moves through the ReLU from
    the convolution to the kernel: the convolution's channel c is divided by it, the kernel's weights for c are
    multiplied.

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
    widest = torch.zeros(decoder.vis2.out_channels)

    def see(_: Any, __: Any, output: Tensor) -> None:
        torch.maximum(widest, F.relu(output).amax(dim=(0, 2, 3)), out=widest)

    handle = decoder.vis2.register_forward_hook(see)
    try:
        for sample in calibration.samples["mask_decoder"]:
            decoder(*sample)
    finally:
        handle.remove()
    factors = (widest / widest.max().clamp(min=1e-12)).clamp(min=LEAST)
    decoder.vis2.weight.div_(factors[:, None, None, None])
    decoder.vis2.bias.div_(factors)
    text.kernel.weight.mul_(factors.repeat(9)[:, None])  # rows are (tap, channel)
    text.kernel.bias.mul_(factors.repeat(9))
    place = decoder.input_names.index("kernel")
    samples = calibration.samples["mask_decoder"]
    samples[:] = [(*sample[:place], sample[place] * factors, *sample[place + 1 :]) for sample in samples]
    return factors
