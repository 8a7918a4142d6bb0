"""The three deploy modules as one network, in float or quantized, for one image and its prompts or for batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from quantization.quantizers import FakeQuantizer, quantizers
from training.model import Architecture, CandidateArchitecture

GRAPHS = ("image_encoder", "text_encoder", "mask_decoder")

Features = dict[str, Tensor]


class DeployNetwork(nn.Module):
    """The function that the exported graphs compute together, in PyTorch.

    Attributes:
        architecture: Architecture of the network that was deployed.
    """

    image_encoder: Any
    text_encoder: Any
    mask_decoder: Any

    def __init__(self, architecture: Architecture | CandidateArchitecture, modules: Sequence[nn.Module]) -> None:
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
        return self.decode_with_presence(image, text)[0]

    def decode_with_presence(self, image: Features, text: Features) -> tuple[Tensor, Tensor | None]:
        """As `decode`, and the presence logits (B k, 1), None for a network without that head."""
        count = next(iter(text.values())).shape[0]
        known = dict(text)
        for name, tensor in image.items():
            known[name] = tensor.repeat_interleave(count // tensor.shape[0], dim=0)
        found = self.mask_decoder(*(known[name] for name in self.mask_decoder.input_names))
        return found if isinstance(found, tuple) else (found, None)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """(B, 3, S, S), (B k, L) -> (B k, 1, S/4, S/4)."""
        return self.decode(self.encode_image(image), self.encode_text(tokens))

    def quantizers(self) -> Iterator[FakeQuantizer]:
        """Every quantizer of the three modules; none where the network is in float."""
        for module in self.graphs.values():
            if any(isinstance(part, FakeQuantizer) for part in module.modules()):
                yield from (quantizer for _, quantizer in quantizers(module))


class Predictor:
    """A deploy network as a predictor of `training.scoring`."""

    runtime = "pytorch"

    def __init__(self, network: DeployNetwork) -> None:
        self.network = network.eval()
        self.precision = "int8, simulated" if any(network.quantizers()) else "float32"
        self.input_size, self.word_len = network.architecture.input_size, network.architecture.word_len

    def logits(self, pixels: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(1, 3, S, S) and (k, L) -> (k, 1, S/4, S/4)."""
        return self.logits_and_presence(pixels, tokens)[0]

    @torch.no_grad()
    def logits_and_presence(
        self, pixels: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """As `training.scoring.run_predictor`."""
        device, network = next(self.network.parameters()).device, self.network
        image = network.encode_image(torch.from_numpy(pixels).to(device))
        logits, presence = network.decode_with_presence(image, network.encode_text(torch.from_numpy(tokens).to(device)))
        known = None if presence is None else presence.sigmoid().flatten().cpu().numpy()
        return np.asarray(logits.cpu().numpy(), dtype=np.float32), known
