"""What a run needs to continue, and how it gets to disk and back."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cris_edge.errors import CheckpointError, OptionError
from training.checkpoint import load_public, public_state, read_checkpoint, save_model

if TYPE_CHECKING:
    from training.engine import Trainer

logger = logging.getLogger("cris_edge.training")

LAST = "last.pt"
"""The checkpoint to continue from; as a model it is the averaged weights."""


@dataclass
class State:
    """Where a run is.

    Attributes:
        step: optimizer steps done. Order of the data, augmentation, dropout, learning rate and input size follow from
            it and the seed, so no sampler, schedule or generator has a state of its own.
        best: input size and mIoU of the best validation.
        losses: of the steps since the last line of metrics.
        norms: of their gradients.
        good: the last checkpoint written or read.
    """

    step: int = 0
    best: tuple[int, float] = (0, -1.0)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    good: Path | None = None


def find_checkpoint(output: Path, resume: str) -> Path | None:
    """Return the checkpoint to continue from, or None for a new run.

    Args:
        output: folder of the run.
        resume: ``auto``, ``never`` or a file.

    Raises:
        OptionError: there is a run in the folder, and ``resume`` is ``never``.
    """
    last = output / LAST
    if resume == "auto":
        return last if last.exists() else None
    if resume != "never":
        return Path(resume)
    if last.exists():
        raise OptionError(f"{output} already holds a run; continue it with --resume auto, or choose another --output.")
    return None


def save_state(path: Path, trainer: Trainer) -> None:
    """Write everything of a run to ``path``, whole or not at all; its ``state_dict`` is the averaged weights.

    Raises:
        CheckpointError: it cannot be written; the file that was there stays.
    """
    state, ema, adapter = trainer.state, trainer.ema, trainer.criterion.adapter
    content = {
        "step": state.step,
        "best": list(state.best),
        "window": [state.losses, state.norms],
        "weights": trainer.model.state_dict() if ema is not None else None,
        "ema_updates": ema.updates if ema is not None else 0,
        "adapter": adapter.state_dict() if adapter is not None else None,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "config": trainer.config.to_dict(),
        "world": trainer.processes.world,
    }
    save_model(path, trainer.averaged, **trainer.recorded, training=_plain(content))


def restore(path: Path, trainer: Trainer) -> None:
    """Continue the run that wrote ``path``; settings that differ from its own are named in the log.

    Raises:
        CheckpointError: the file holds weights alone, or another architecture.
    """
    content = read_checkpoint(path)
    saved = content.get("training")
    if not isinstance(saved, dict):
        raise CheckpointError(
            f"{path} holds weights alone and cannot be continued; start a new run from it with --init {path}."
        )
    _compare(path, saved["config"], trainer.config.to_dict())
    ema, model, adapter = trainer.ema, trainer.model, trainer.criterion.adapter
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
    base = [group["base_lr"] for group in trainer.optimizer.param_groups]
    try:
        trainer.optimizer.load_state_dict(saved["optimizer"])
    except ValueError as error:
        raise CheckpointError(
            f"{path} was trained with other groups of parameters ({error}); continue it with its own recipe."
        ) from error
    for group, rate in zip(trainer.optimizer.param_groups, base, strict=True):
        group["base_lr"] = rate
    if trainer.scaler.is_enabled() and saved["scaler"]:
        trainer.scaler.load_state_dict(saved["scaler"])
    losses, norms = saved["window"]
    best = (int(saved["best"][0]), float(saved["best"][1]))
    trainer.state = State(int(saved["step"]), best, list(losses), list(norms), path)
    logger.info("continuing %s at step %d", path, trainer.state.step)


def _compare(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    before, now = json.loads(json.dumps(before)), json.loads(json.dumps(now))  # tuples become lists
    for group, values in now.items():
        if not isinstance(values, dict):
            continue
        old = before.get(group, {})
        changed = {name: value for name, value in values.items() if name in old and old[name] != value}
        if changed and group == "architecture":
            raise CheckpointError(
                f"{path} has another architecture ({', '.join(changed)}); continue it with its own recipe and options."
            )
        for name, value in changed.items():
            logger.warning("%s continues with %s %r; it was %r before.", path, name, value, old[name])


def _plain(value: Any) -> Any:
    """Return tensors on the CPU and plain containers."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
