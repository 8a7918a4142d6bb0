"""The three deploy modules as one network, in float or quantized, for one image and its prompts or for batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from quantization.quantizers import FakeQuantizer, quantizers
from training.model import Architecture

GRAPHS = ("image_encoder", "text_encoder", "mask_decoder")

Features = dict[str, Tensor]


class DeployNetwork(nn.Module):
    """The function that the exported graphs compute together, in PyTorch.

    Attributes:
        architecture: Architecture of the CRIS that was deployed.
    """

    image_encoder: Any
    text_encoder: Any
    mask_decoder: Any

    def __init__(self, architecture: Architecture, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.architecture = architecture
        self.image_encoder, self.text_encoder, self.mask_decoder = modules

    @property
    def graphs(self) -> dict[str, nn.Module]:
        """The three modules by name."""
        return {name: getattr(self, name) for name in GRAPHS}

    def encode_image(self, image: Tensor) -> Features:
        """Images (B, 3, S, S) -> features by name."""
        return dict(zip(self.image_encoder.output_names, self.image_encoder(image), strict=True))

    def encode_text(self, tokens: Tensor) -> Features:
        """Tokens (N, L) -> features by name."""
        return dict(zip(self.text_encoder.output_names, self.text_encoder(tokens), strict=True))

    def decode(self, image: Features, text: Features) -> Tensor:
        """Features of B images and B k prompts -> logits (B k, 1, S/4, S/4); prompt j belongs to image j // k."""
        count = next(iter(text.values())).shape[0]
        known = dict(text)
        for name, tensor in image.items():
            known[name] = tensor.repeat_interleave(count // tensor.shape[0], dim=0)
        logits: Tensor = self.mask_decoder(*(known[name] for name in self.mask_decoder.input_names))
        return logits

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """(B, 3, S, S), (B k, L) -> (B k, 1, S/4, S/4)."""
        return self.decode(self.encode_image(image), self.encode_text(tokens))

    def quantizers(self) -> Iterator[FakeQuantizer]:
        """Every quantizer of the three modules; none where the network is in float."""
        for module in self.graphs.values():
            if any(isinstance(part, FakeQuantizer) for part in module.modules()):
                yield from (quantizer for _, quantizer in quantizers(module))


class Predictor:
    """A deploy network as a predictor of `training.evaluate`."""

    runtime = "pytorch"

    def __init__(self, network: DeployNetwork) -> None:
        self.network = network.eval()
        self.precision = "int8, simulated" if any(network.quantizers()) else "float32"
        self.input_size, self.word_len = network.architecture.input_size, network.architecture.word_len

    @torch.no_grad()
    def logits(self, pixels: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(1, 3, S, S) and (k, L) -> (k, 1, S/4, S/4)."""
        device = next(self.network.parameters()).device
        logits = self.network(torch.from_numpy(pixels).to(device), torch.from_numpy(tokens).to(device))
        return np.asarray(logits.cpu().numpy(), dtype=np.float32)
