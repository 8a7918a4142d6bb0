"""The training loop of the selector: resumable, one thread is enough."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.candidates import Candidates
from training.model.selector import Selector
from training.selection.examples import Batch, Sampler

Evaluate = Callable[[Selector], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class SelectorOptions:
    """Options of a training run.

    Attributes:
        steps: optimizer steps.
        learning_rate: the largest, after the warm-up; it falls to a two-hundredth along a cosine.
        warmup: steps until the learning rate is reached.
        weight_decay: of weights; biases and normalization have none.
        contrast: weight of the second loss, which compares the target with the candidates of its own class only.
        decay: of the average of weights that is kept.
        save_every: seconds between checkpoints.
        evaluate_every: steps between evaluations.
        bfloat16: whether products are computed in bfloat16, twice as fast on CPUs that have AVX-512 BF16 or AMX.
    """

    steps: int = 3000
    learning_rate: float = 1.2e-3
    warmup: int = 100
    weight_decay: float = 0.07
    contrast: float = 0.5
    decay: float = 0.998
    save_every: float = 60.0
    evaluate_every: int = 500
    bfloat16: bool = True


def selection_loss(scores: Tensor, none: Tensor, targets: Tensor, candidates: Candidates, contrast: float) -> Tensor:
    """Return the cross-entropy over candidates and "none", plus that among candidates of the target's class.

    Args:
        scores: (B, N).
        none: (B, 1).
        targets: (B, N + 1), each sums to one.
        candidates: whose class probabilities say which are alike.
        contrast: weight of the second term.
    """
    loss = -(targets * F.log_softmax(torch.cat([scores, none], 1), 1)).sum(1).mean()
    if not contrast:
        return loss
    own = targets[:, :-1]
    unit = F.normalize(candidates.probabilities, dim=-1)
    best = own.argmax(1)
    alike = torch.matmul(unit, unit.gather(1, best[:, None, None].expand(-1, 1, unit.shape[-1])).transpose(1, 2))[
        ..., 0
    ]
    rivals = ((alike > 0.5) | (own > 0)) & candidates.valid
    shares = own / own.sum(1, keepdim=True).clamp(min=1e-6)
    among = F.log_softmax(scores.masked_fill(~rivals, -1e4), 1)
    present = (own.sum(1) > 0).float()
    return loss + contrast * (-(shares * among).sum(1) * present).mean()


class SelectorTraining:
    """Trains a selector, and continues where a run stopped.

    Args:
        selector: to be trained in place.
        sampler: gives the batches.
        options: of the run.
        folder: for ``state.pt``, ``selector.pt`` (averaged weights) and ``log.jsonl``.
        evaluate: returns metrics of a selector in eval mode.
        progress: called with a line per evaluation.
    """

    def __init__(
        self,
        selector: Selector,
        sampler: Sampler,
        options: SelectorOptions,
        folder: Path,
        *,
        evaluate: Evaluate | None = None,
        progress: Callable[[str], None] = print,
    ) -> None:
        self.selector, self.options = selector, options
        self._sampler, self._folder = sampler, folder
        self._evaluate, self._progress = evaluate, progress
        weights = [p for p in selector.parameters() if p.requires_grad and p.ndim >= 2]
        others = [p for p in selector.parameters() if p.requires_grad and p.ndim < 2]
        groups = [{"params": weights, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98))
        self._average = {name: value.detach().clone() for name, value in selector.state_dict().items()}
        self._trained = [name for name, value in selector.named_parameters() if value.requires_grad]
        self.step = 0
        self.seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.pt").exists():
            self._load(torch.load(folder / "state.pt", weights_only=True))

    def run(self, until: int | None = None) -> Mapping[str, float]:
        """Train up to the last step, or up to step ``until``, and return the last metrics of the averaged weights."""
        end = self.options.steps if until is None else min(until, self.options.steps)
        metrics: Mapping[str, float] = {}
        started = saved = time.monotonic()
        losses: list[float] = []
        self.selector.train()
        while self.step < end:
            losses.append(self._one_step(self._sampler.draw()))
            self.step += 1
            now = time.monotonic()
            self.seconds, started = self.seconds + now - started, now
            if self.step % self.options.evaluate_every == 0 or self.step == end:
                metrics = self._report(losses)
                losses = []
                self.selector.train()
            if now - saved > self.options.save_every or self.step == end:
                self._save()
                saved = time.monotonic()
            started = time.monotonic() if self.step % self.options.evaluate_every == 0 else started
        return metrics

    def averaged(self) -> Selector:
        """Return a selector in eval mode with the averaged weights."""
        selector = Selector(self.selector.sizes)
        selector.load_state_dict(self._average)
        return selector.eval()

    def _one_step(self, batch: Batch) -> float:
        options = self.options
        rise = min(1.0, (self.step + 1) / options.warmup)
        fall = 0.005 + 0.995 * (0.5 + 0.5 * math.cos(math.pi * self.step / options.steps))
        for group in self._optimizer.param_groups:
            group["lr"] = options.learning_rate * rise * fall
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            scores, none = self.selector(batch.candidates, batch.tokens)
        loss = selection_loss(scores.float(), none.float(), batch.targets, batch.candidates, options.contrast)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.selector.parameters(), 2.0)
        self._optimizer.step()
        decay = min(options.decay, (self.step + 1) / (self.step + 15))
        with torch.no_grad():
            for name, value in self.selector.named_parameters():
                if value.requires_grad:
                    self._average[name].lerp_(value, 1 - decay)
        return float(loss.detach())

    def _report(self, losses: list[float]) -> Mapping[str, float]:
        found = dict(self._evaluate(self.averaged())) if self._evaluate else {}
        row = {"step": self.step, "seconds": round(self.seconds, 1), "loss": sum(losses) / max(1, len(losses)), **found}
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        self._progress(json.dumps({key: round(value, 4) for key, value in row.items()}))
        return found

    def _save(self) -> None:
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "options": asdict(self.options),
            "selector": self.selector.state_dict(),
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
            "generator": self._sampler.generator.get_state(),
        }
        for name, content in (("state.pt", state), ("selector.pt", self._average)):
            partial = self._folder / f"{name}.partial"
            torch.save(content, partial)
            partial.replace(self._folder / name)

    def _load(self, state: Mapping[str, Any]) -> None:
        self.selector.load_state_dict(state["selector"])
        self._average = dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._sampler.generator.set_state(state["generator"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
