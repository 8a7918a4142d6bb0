"""Cross-channel equalization: one range for all channels that share a scale (Nagel et al., arXiv 1906.04721)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantization.calibration import Calibration
from quantization.deploy_network import DeployNetwork

LEAST = 1e-3  # of the widest channel's range: a channel that is never active must not get an unbounded factor


@torch.no_grad()
def equalize(network: DeployNetwork, calibration: Calibration) -> Tensor | None:
    """Give the projector's last channels the same range, in place, without changing the network's function.

    Their product with the prompt's kernel is the logits, so their rounding errors are those of the mask; their ranges
    differ by a factor of thirty and more, and share one scale. A factor moves through the ReLU from the convolution to
    the kernel: channel c of the convolution is divided by it, the kernel's weights for c are multiplied by it. The
    quantized tensor is the three taps that add up to a channel, so the range is the largest of theirs.

    Args:
        network: In float.
        calibration: Samples of that network; the kernels in them are updated.

    Returns:
        The factors (C/2,), the widest channel's being 1; None where the kernel does not depend on the prompt.
    """
    decoder, text = network.mask_decoder, network.text_encoder
    if not decoder.contrastive:
        return None
    layer = decoder.vis2
    widest = torch.zeros(layer.width)

    def see(_: Any, __: Any, output: Tensor) -> None:
        largest = output.amax(dim=(0, 2, 3)).reshape(3, -1).amax(0)
        torch.maximum(widest, largest, out=widest)

    samples = calibration.samples["mask_decoder"]
    handle = layer.taps.register_forward_hook(see)
    try:
        for sample in samples:
            decoder(*sample)
    finally:
        handle.remove()
    factors = (widest / widest.max().clamp(min=1e-12)).clamp(min=LEAST)
    layer.taps.weight.div_(factors.repeat(3)[:, None, None, None])  # channels are (tap, channel)
    layer.taps.bias.div_(factors.repeat(3))
    text.kernel.weight.mul_(factors.repeat(9)[:, None])  # rows are (tap, channel)
    text.kernel.bias.mul_(factors.repeat(9))
    index = decoder.input_names.index("kernel")
    samples[:] = [(*sample[:index], sample[index] * factors, *sample[index + 1 :]) for sample in samples]
    return factors
