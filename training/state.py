"""The state of a run, and its checkpoints."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cris_edge.errors import CheckpointError, OptionError
from training.checkpoint import load_public, public_state, read_checkpoint, save_model
from training.config import RunConfig
from training.distributed import Processes
from training.ema import Ema
from training.losses import Criterion
from training.model import CRIS

logger = logging.getLogger("cris_edge.training")

LAST = "last.pt"
"""The checkpoint to resume from; loaded as a model, it has the averaged weights."""


@dataclass
class State:
    """Progress of a run.

    Attributes:
        step: Optimizer steps taken. Data order, augmentation, dropout, learning rate and input size follow from it and
            the seed, so that no sampler, schedule or generator has state.
        best: Input size and mIoU of the best validation.
        losses: Losses since the last line of metrics.
        norms: Norms of the gradient since the last line of metrics.
        good: The last checkpoint that was written or read.
    """

    step: int = 0
    best: tuple[int, float] = (0, -1.0)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    good: Path | None = None


class Run(Protocol):
    """The parts of a trainer that a checkpoint holds."""

    config: RunConfig
    processes: Processes
    model: CRIS
    ema: Ema | None
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    state: State

    @property
    def averaged(self) -> CRIS:
        """The network to save."""

    @property
    def recorded(self) -> dict[str, Any]:
        """Metadata to save."""


def find_checkpoint(output: Path, resume: str) -> Path | None:
    """Return the checkpoint to resume from, or None for a new run.

    Args:
        output: Folder of the run.
        resume: ``auto``, ``never`` or a path.

    Raises:
        OptionError: The folder contains a run, and ``resume`` is ``never``.
    """
    last = output / LAST
    if resume == "auto":
        return last if last.exists() else None
    if resume != "never":
        return Path(resume)
    if last.exists():
        raise OptionError(
            f"{output} already contains a run; pass --resume auto to continue it, or choose another --output."
        )
    return None


def save_state(path: Path, run: Run) -> None:
    """Atomically write the checkpoint of a run; its ``state_dict`` holds the (averaged) weights.

    Raises:
        CheckpointError: The file cannot be written; an existing file is kept.
    """
    state, ema, adapter = run.state, run.ema, run.criterion.adapter
    content = {
        "step": state.step,
        "best": list(state.best),
        "window": [state.losses, state.norms],
        "weights": run.model.state_dict() if ema is not None else None,
        "ema_updates": ema.updates if ema is not None else 0,
        "adapter": adapter.state_dict() if adapter is not None else None,
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "config": run.config.to_dict(),
        "world": run.processes.world,
    }
    save_model(path, run.averaged, **run.recorded, training=_plain(content))


def restore(path: Path, run: Run) -> None:
    """Restore a run from a checkpoint; changed settings are logged as warnings.

    Raises:
        CheckpointError: The file has only weights, or another architecture.
    """
    content = read_checkpoint(path)
    saved = content.get("training")
    if not isinstance(saved, dict):
        raise CheckpointError(
            f"{path} has only weights and cannot be resumed; start a new run from it with --init {path}."
        )
    _compare(path, saved["config"], run.config.to_dict())
    ema, model, adapter = run.ema, run.model, run.criterion.adapter
    averaged = public_state(content, path)
    if saved["weights"] is not None:
        model.load_state_dict(saved["weights"])
    else:
        load_public(model, averaged, path)
    if ema is not None:
        load_public(ema.model, averaged, path)
        ema.updates = int(saved["ema_updates"])
    if adapter is not None and saved.get("adapter") is not None:
        adapter.load_state_dict(saved["adapter"])
    base = [group["base_lr"] for group in run.optimizer.param_groups]
    try:
        run.optimizer.load_state_dict(saved["optimizer"])
    except ValueError as error:
        raise CheckpointError(f"{path} has other parameter groups ({error}); resume it with its own recipe.") from error
    for group, rate in zip(run.optimizer.param_groups, base, strict=True):
        group["base_lr"] = rate
    if run.scaler.is_enabled() and saved["scaler"]:
        run.scaler.load_state_dict(saved["scaler"])
    losses, norms = saved["window"]
    best = (int(saved["best"][0]), float(saved["best"][1]))
    run.state = State(int(saved["step"]), best, list(losses), list(norms), path)
    logger.info("Resuming %s at step %d", path, run.state.step)


def _compare(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    before, now = json.loads(json.dumps(before)), json.loads(json.dumps(now))  # tuples become lists
    for group, values in now.items():
        if not isinstance(values, dict):
            continue
        old = before.get(group, {})
        changed = {name: value for name, value in values.items() if name in old and old[name] != value}
        if changed and group == "architecture":
            raise CheckpointError(
                f"{path} has another architecture ({', '.join(changed)}); resume it with its own recipe and options."
            )
        for name, value in changed.items():
            logger.warning("%s is resumed with %s %r; it was %r before.", path, name, value, old[name])


def _plain(value: Any) -> Any:
    """Move tensors to the CPU, in plain containers."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
