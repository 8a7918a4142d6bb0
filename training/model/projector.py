"""Image and text projectors: the sentence becomes a convolution kernel over the pixels (paper, section 3.4)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from training.model.architecture import Architecture
from training.model.neck import conv_bn_relu


class Projector(nn.Module):
    """Text-to-pixel: the dot product of a sentence's projection with each 3x3 patch of projected pixels.

    Without contrastive learning (table 4) the kernel is one learned convolution, the same for every sentence.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels, half = architecture.text_width, architecture.text_width // 2
        self.vis = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            conv_bn_relu(channels, channels, 3),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            conv_bn_relu(channels, half, 3),
            nn.Conv2d(half, half, 1),
        )
        if architecture.contrastive:
            self.txt = nn.Linear(architecture.embed_dim, 9 * half + 1)
        else:
            self.kernel = nn.Conv2d(half, 1, 3, padding=1)
        self.contrastive = architecture.contrastive

    def forward(self, decoded: Tensor, sentence: Tensor) -> Tensor:
        """Decoded (B, C, S/16, S/16) and the sentence (B, embed) -> logits (B, 1, S/4, S/4)."""
        x = self.vis(decoded)  # (B, C/2, S/4, S/4)
        if not self.contrastive:
            fixed: Tensor = self.kernel(x)
            return fixed
        batch, half, height, width = x.shape
        projected = self.txt(sentence)  # (B, 9 C/2 + 1): a kernel, channel-major, and a bias
        weight, bias = projected[:, :-1].reshape(batch, half, 3, 3), projected[:, -1]
        # One group per sentence: a batch of different kernels in one convolution.
        logits = F.conv2d(x.reshape(1, batch * half, height, width), weight, bias, padding=1, groups=batch)
        return logits.transpose(0, 1)
