"""CRIS: CLIP-driven referring image segmentation (Wang et al., CVPR 2022, arXiv 2111.15174)."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from torch import Tensor, nn

from cris_edge.errors import InputError
from training.model.architecture import Architecture
from training.model.clip import CLIP
from training.model.decoder import Decoder
from training.model.deploy import DeployImageEncoder, DeployMaskDecoder, DeployTextEncoder, Resolution
from training.model.neck import Neck
from training.model.presence_head import PresenceHead
from training.model.projector import Projector


class CRIS(nn.Module):
    """Maps an image and sentences to one logit per 4x4 pixels (paper, figure 2)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = CLIP(architecture)
        self.neck = Neck(architecture)
        self.decoder = Decoder(architecture)
        self.proj = Projector(architecture)
        self.presence = PresenceHead(architecture) if architecture.presence else None

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Logits (N, 1, S/4, S/4) of N sentences about B images.

        `image` is (B, 3, S, S) float, normalized with CLIP's mean and deviation, S a multiple of 32; `tokens` is
        (N, L) int64, zero-padded, N a multiple of B: sentence j is about image j // (N / B), and each image is encoded
        once, however many sentences ask about it.
        """
        decoded, sentence = self.decode(image, tokens)
        logits: Tensor = self.proj(decoded, sentence)
        return logits

    def forward_with_presence(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits of `forward` and the presence logits (N, 1), None for a network without that head.

        The sigmoid of a presence logit is how likely the sentence's object is in the image.
        """
        decoded, sentence = self.decode(image, tokens)
        return self.proj(decoded, sentence), None if self.presence is None else self.presence(decoded, sentence)

    def decode(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder's features (N, C, S/16, S/16) and the sentences (N, embed); arguments as in `forward`."""
        self._check(image, tokens)
        features = self.backbone.encode_image(image)
        words, sentence = self.backbone.encode_text(tokens)
        fused = self.neck(features, sentence)
        decoded: Tensor = self.decoder(fused, words, padding=tokens == 0)
        return decoded, sentence

    def at_size(self, input_size: int) -> CRIS:
        """Return the same weights for another input size in pixels; parameters are shared, not copied."""
        other = copy.copy(self)
        other.architecture = dataclasses.replace(self.architecture, input_size=input_size)
        return other

    def deploy(
        self, *, resolution: Resolution = "full"
    ) -> tuple[DeployImageEncoder, DeployTextEncoder, DeployMaskDecoder]:
        """Return the same function as three modules arranged for static export; this network is not changed.

        `resolution` is where the products of the projector's 3x3 convolutions are computed, see
        `DeployMaskDecoder.at_resolution`.
        """
        frozen = copy.deepcopy(self).float().eval().requires_grad_(False)
        mask_decoder = DeployMaskDecoder(frozen).at_resolution(resolution)
        return DeployImageEncoder(frozen), DeployTextEncoder(frozen), mask_decoder

    def parameter_groups(self, learning_rate: float, backbone_scale: float = 0.1) -> list[dict[str, Any]]:
        """Return optimizer groups: CLIP's weights, except positional embeddings, have a lower learning rate."""
        slow: list[nn.Parameter] = []
        fast: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                is_slow = name.startswith("backbone.") and "positional_embedding" not in name
                (slow if is_slow else fast).append(parameter)
        return [{"params": slow, "lr": learning_rate * backbone_scale}, {"params": fast, "lr": learning_rate}]

    @staticmethod
    def _check(image: Tensor, tokens: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[-1] % 32 or image.shape[-2] % 32:
            raise InputError(
                f"The image tensor is {tuple(image.shape)}; CRIS takes (batch, 3, height, width) with sides that are "
                "multiples of 32: letterbox it first."
            )
        if tokens.ndim != 2 or len(tokens) == 0 or len(image) == 0 or len(tokens) % len(image):
            raise InputError(
                f"The token tensor is {tuple(tokens.shape)} for {len(image)} images; CRIS takes (sentences, length) "
                "with the same number of sentences for each image."
            )
