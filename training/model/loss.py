"""The text-to-pixel contrastive loss (paper, equations 11 and 12)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def text_to_pixel_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Pull the pixels of the mask towards the sentence and push all others away.

    `logits` is (B, 1, h, w), a similarity per pixel; `mask` is (B, 1, H, W) in {0, 1} and is resized to the logits by
    nearest neighbour. The paper's -log sigmoid(z) inside and -log(1 - sigmoid(z)) outside, averaged over the pixels,
    is binary cross-entropy; returns a scalar in float32.
    """
    target = mask.float()
    if target.shape[-2:] != logits.shape[-2:]:
        target = F.interpolate(target, size=logits.shape[-2:], mode="nearest")
    return F.binary_cross_entropy_with_logits(logits.float(), target)
