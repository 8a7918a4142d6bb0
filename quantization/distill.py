"""Quantization-aware fine-tuning of the three modules together, with the float network as teacher and the masks."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cris_edge.errors import CrisEdgeError, OptionError
from cris_edge.files import naming
from cris_edge.image import THRESHOLD
from quantization.deploy_network import DeployNetwork
from quantization.quantized_checkpoint import load_quantized, save_quantized
from training.checkpoint import read_checkpoint
from training.data.loader import Batch, Examples, Order, batches
from training.data.samples import Source
from training.data.transforms import Transform
from training.losses import centred
from training.model import text_to_pixel_loss

logger = logging.getLogger("cris_edge.quantization")


class DivergedError(CrisEdgeError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the fine-tuning.

    Attributes:
        epochs: Passes over the data.
        steps: Optimizer steps; overrides `epochs`.
        batch_size: Images per step.
        sentences: Prompts per image.
        learning_rate: Of the weights at the first step; decays to 0 along a cosine.
        scale_rate: Learning rate of the quantizers' scales, relative to `learning_rate`.
        mask_target: The masks that the float network was trained on; `quantization.finetune` reads it from the
            checkpoint.
        mask_weight: Weight of the loss with the masks; the loss with the teacher's probabilities has weight 1.
        seed: Seed of the order and the choice of prompts.
        workers: Loader processes.
        checkpoint_every: Steps between the checkpoints from which a killed run resumes.
    """

    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 8
    sentences: int = 2
    learning_rate: float = 2e-5
    scale_rate: float = 20.0
    mask_target: str = "nearest"
    mask_weight: float = 0.5
    seed: int = 0
    workers: int = 1
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        """Check the values before a long run depends on them."""
        for name in ("epochs", "batch_size", "sentences", "learning_rate", "checkpoint_every"):
            if getattr(self, name) <= 0:
                raise OptionError(f"{name} is {getattr(self, name)}; expected a value above 0.")

    def to_dict(self) -> dict[str, Any]:
        """All settings, ready for JSON."""
        return asdict(self)


class Distillation:
    """One fine-tuning run of a quantized network.

    Args:
        student: Quantized; changed in place.
        teacher: The float network.
        source: Training data.
        settings: Settings.
        state: File from which a killed run resumes, written as it runs; the caller removes it.
        metrics: JSON Lines file to which metrics are appended.
        device: Device to train on.

    Raises:
        CheckpointError: `state` is damaged.
    """

    def __init__(
        self, student: DeployNetwork, teacher: DeployNetwork, source: Source, settings: Settings, *,
        state: Path | None = None, metrics: Path | None = None, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.device = torch.device(device)
        self.student, self.teacher = student.to(self.device), teacher.to(self.device).eval()
        self.source, self.settings, self.state, self.metrics = source, settings, state, metrics
        self.per_epoch = max(1, len(source) // settings.batch_size)
        self.steps = settings.steps or max(1, round(settings.epochs * self.per_epoch))
        self.step = 0
        self.optimizer = self._optimizer()
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        )
        if state is not None and state.exists():
            self._restore(state)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Adam over the scales and all weights except the token table, of which a short run sees too few rows."""
        scales = [quantizer.scale for quantizer in self.student.quantizers() if quantizer.enabled]
        all_scales = {id(quantizer.scale) for quantizer in self.student.quantizers()}
        weights = []
        for name, parameter in self.student.named_parameters():
            is_weight = parameter.is_floating_point() and id(parameter) not in all_scales
            parameter.requires_grad_(is_weight and "token_embedding" not in name)
            if parameter.requires_grad:
                weights.append(parameter)
        for scale in scales:
            scale.requires_grad_(True)
        rate = self.settings.learning_rate
        groups: list[dict[str, Any]] = [{"params": weights, "lr": rate}]
        # A scale's learning rate is relative to the scale: its largest steps are some thousandths of it.
        groups += [
            {"params": [scale], "lr": rate * self.settings.scale_rate * float(scale.detach().abs().mean())}
            for scale in scales
        ]
        return torch.optim.Adam(groups, betas=(0.9, 0.99))

    def run(self) -> Iterator[int]:
        """Train; yields the step after each pass over the data and at the end.

        Raises:
            DivergedError: The loss is not finite.
            DataError: A sample cannot be used.
        """
        losses: list[float] = []
        began = time.perf_counter()
        bar = tqdm(total=self.steps, initial=self.step, desc="fine-tune", disable=None, unit="step", file=sys.stderr)
        with bar, contextlib.closing(self._batches()) as stream:
            for batch in stream:
                loss = self._train_step(batch)
                losses.append(loss)
                self.step += 1
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}")
                last = self.step == self.steps
                if self.state is not None and (self.step % self.settings.checkpoint_every == 0 or last):
                    self._save(self.state)
                if self.step % 20 == 0 or last:
                    seconds = round(time.perf_counter() - began, 1)
                    self._write({"step": self.step, "loss": sum(losses) / len(losses), "seconds": seconds})
                    losses = []
                if self.step % self.per_epoch == 0 or last:
                    yield self.step

    def _train_step(self, batch: Batch) -> float:
        # Eval mode throughout: batch norm is folded, and dropout plays no part in inference.
        batch = batch.to(self.device, torch.contiguous_format)
        with torch.no_grad():
            target = torch.sigmoid(self.teacher(batch.image, batch.tokens))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.student(batch.image, batch.tokens), target, batch.mask)
        if not torch.isfinite(loss.detach()):
            raise DivergedError(
                f"The fine-tuning's loss is {float(loss.detach())} at step {self.step + 1}, with the samples "
                f"{', '.join(batch.ids)}; try a lower --learning-rate."
            )
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        self.scheduler.step()
        return float(loss.detach())

    def loss(self, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Divergence from the teacher's probabilities (0 at best) plus the paper's loss with the masks."""
        distilled = F.binary_cross_entropy_with_logits(logits, target)
        least = F.binary_cross_entropy(target, target)
        own = centred(logits, self.settings.mask_target, THRESHOLD)
        return distilled - least + self.settings.mask_weight * text_to_pixel_loss(own, mask)

    def _batches(self) -> Generator[Batch, None, None]:
        settings, architecture = self.settings, self.student.architecture
        transform = Transform(architecture.word_len, settings.sentences, mask_target=settings.mask_target)
        size = architecture.input_size
        order = Order(
            length=len(self.source),
            batch_size=settings.batch_size,
            steps=self.steps,
            seed=settings.seed,
            size_at=lambda step: size,
        )
        examples = Examples(self.source, transform, settings.seed)
        return batches(examples, order, self.step, workers=settings.workers, prefetch=2)

    def _save(self, path: Path) -> None:
        save_quantized(
            path, self.student, step=self.step, optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.last_epoch, settings=self.settings.to_dict(),
        )  # fmt: skip

    def _restore(self, path: Path) -> None:
        content = read_checkpoint(path)
        network, _ = load_quantized(path)
        self.student.load_state_dict(network.state_dict())
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = int(content["step"])
        self.scheduler.last_epoch = int(content["scheduler"])
        logger.info("resuming the fine-tuning at step %d", self.step)

    def _write(self, record: dict[str, Any]) -> None:
        if self.metrics is not None:
            with naming(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
