"""The training loss: the paper's, with optional weights, Dice, presence and distillation."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.checkpoint import load_model
from training.config import RunConfig
from training.data.loader import Batch
from training.model import CRIS, text_to_pixel_loss


def centred(logits: Tensor, mask_target: str, threshold: float) -> Tensor:
    """Return the logits for the loss; for the target ``area``, the threshold's logit is subtracted.

    An area of one half is the border of an object, and inference puts the border at the threshold. The network learns
    this offset, so that inference stays the same.
    """
    return logits - math.log(threshold / (1 - threshold)) if mask_target == "area" else logits


def segmentation_loss(logits: Tensor, mask: Tensor, foreground_weight: float = 1.0, dice_weight: float = 0.0) -> Tensor:
    """Return the text-to-pixel loss, or its weighted form.

    Args:
        logits: (N, 1, h, w).
        mask: (N, 1, h, w) in [0, 1].
        foreground_weight: Weight of foreground pixels; 1 is the paper's loss.
        dice_weight: Weight of a soft Dice term (Milletari et al., arXiv 1606.04797), in which small objects count as
            much as large ones.
    """
    if foreground_weight == 1.0:
        loss = text_to_pixel_loss(logits, mask)
    else:
        weight = torch.tensor(foreground_weight, device=logits.device)
        loss = F.binary_cross_entropy_with_logits(logits.float(), mask, pos_weight=weight)
    if dice_weight:
        probability = torch.sigmoid(logits.float()).flatten(1)
        truth = mask.flatten(1)
        overlap = 2 * (probability * truth).sum(1) + 1
        loss = loss + dice_weight * (1 - overlap / (probability.sum(1) + truth.sum(1) + 1)).mean()
    return loss


class Criterion:
    """The loss of a run, with distillation if it has a teacher.

    Args:
        config: The run.
        student: The network that is trained.
        device: Its device.

    Attributes:
        adapter: Projects the student's decoded features to the teacher's width; trained with the student, then dropped.

    Raises:
        CheckpointError: The teacher cannot be read.
    """

    def __init__(self, config: RunConfig, student: CRIS, device: torch.device) -> None:
        self.config, self.device = config, device
        self.adapter: nn.Module | None = None
        self.teacher: CRIS | None = None
        if config.start.teacher:
            self.teacher = load_model(config.start.teacher).to(device).requires_grad_(False)
            widths = (student.architecture.text_width, self.teacher.architecture.text_width)
            if config.start.teacher_features:
                self.adapter = nn.Conv2d(*widths, 1).to(device)

    def __call__(
        self,
        outputs: tuple[Tensor, Tensor, Tensor | None],
        batch: Batch,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> Tensor:
        """Return the loss, a float32 scalar, of the outputs of `training.fast_network.Network`."""
        settings, start = self.config.optimizer, self.config.start
        logits, features, presence = outputs
        own = centred(logits, self.config.data.mask_target, self.config.loop.threshold)
        loss = segmentation_loss(own, batch.mask, settings.foreground_weight, settings.dice_weight)
        if presence is not None and settings.presence_weight:
            known = F.binary_cross_entropy_with_logits(presence.float().flatten(), batch.present)
            loss = loss + settings.presence_weight * known
        if self.teacher is None:
            return loss
        with torch.no_grad(), autocast():
            soft, decoded = self._teach(batch)
        if start.teacher_logits:
            soft = F.interpolate(soft.float(), logits.shape[-2:], mode="bilinear", align_corners=False)
            cross_entropy = F.binary_cross_entropy_with_logits(logits.float(), soft.sigmoid())
            loss = loss + start.teacher_logits * cross_entropy
        if self.adapter is not None:
            decoded = F.interpolate(decoded.float(), features.shape[-2:], mode="bilinear", align_corners=False)
            # Cosine similarity, since the last norm of each decoder has its own scale.
            loss = loss + start.teacher_features * (1 - F.cosine_similarity(features.float(), decoded, dim=1)).mean()
        return loss

    def _teach(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the teacher's logits and decoded features at its own input size."""
        assert self.teacher is not None
        size, image = self.teacher.architecture.input_size, batch.image
        if image.shape[-1] != size:
            image = F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False)
        decoded, sentence = self.teacher.decode(image, batch.tokens)
        logits: Tensor = self.teacher.proj(decoded, sentence)
        return logits, decoded
