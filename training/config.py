"""Configuration of a training run: every field with its default, its documentation and its check.

A :class:`RunConfig` is the architecture plus four groups. Field names are unique across the groups, so that each is one
option of ``python -m training.train`` (``--learning-rate 3e-4``). Unknown names are errors.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cris_edge.errors import OptionError
from cris_edge.image import THRESHOLD
from training.model import Architecture

Check = tuple[Callable[[Any], bool], str]

positive: Check = (lambda value: value > 0, "above 0")
not_negative: Check = (lambda value: value >= 0, "0 or more")
share: Check = (lambda value: 0 <= value <= 1, "between 0 and 1")
inside: Check = (lambda value: 0 < value < 1, "above 0 and below 1")
below_one: Check = (lambda value: 0 <= value < 1, "0 or more and below 1")


def one_of(*choices: str) -> Check:
    """Return a check that a value is one of ``choices``."""
    return (lambda value: value in choices, "one of " + ", ".join(choices))


def setting(default: Any, doc: str, check: Check | None = None) -> Any:
    """Return a dataclass field with documentation and a check."""
    return field(default=default, metadata={"doc": doc, "check": check})


class _Checked:
    """Runs the checks of all fields on construction."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            check = item.metadata.get("check")
            if check is not None and value is not None and not check[0](value):
                raise OptionError(f"{option(item.name)} is {value!r}, but it must be {check[1]}.")


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Checked):
    """Data and augmentation."""

    train: str | None = setting(
        None, "training data: a JSON Lines file, or scenes[:SPLIT[:LENGTH[:SEED]]] for synthetic scenes"
    )
    val: str | None = setting(None, "validation data, in the same forms; none: no validation")
    sentences_per_image: int = setting(
        1, "prompts per image and step; the image is encoded once for all of them", positive
    )
    flip: float = setting(
        0.0, "share of samples that are mirrored, with left and right swapped in the prompt where that is safe", share
    )
    jitter: float = setting(
        0.0, "largest relative change of brightness and contrast; hue stays, since prompts name colours", below_one
    )
    mask_target: str = setting(
        "nearest",
        "target of a logit: nearest (the paper) is the mask's pixel at four times its position; area is the share of "
        "the object in the logit's cell, and one half is learned as the threshold",
        one_of("nearest", "area"),
    )
    negatives: float = setting(
        0.0, "share of prompts replaced by ones that match nothing in the image, where available", share
    )
    workers: int = setting(2, "loader processes; 0: load in the training process", not_negative)
    prefetch: int = setting(4, "batches that each loader process prepares in advance", positive)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(_Checked):
    """Optimizer, learning rate and loss."""

    optimizer: str = setting("adam", "adam (the paper) or adamw (decoupled weight decay)", one_of("adam", "adamw"))
    learning_rate: float = setting(1e-4, "learning rate of all parameters except the backbone's", positive)
    backbone_scale: float = setting(
        0.1, "relative learning rate of the CLIP encoders; 1 when they are trained from scratch", positive
    )
    weight_decay: float = setting(0.0, "weight decay of matrices and kernels, not of biases and norms", not_negative)
    beta2: float = setting(0.999, "decay of the second moment in Adam", below_one)
    schedule: str = setting("multistep", "multistep (the paper) or cosine", one_of("multistep", "cosine"))
    milestones: tuple[float, ...] = setting(
        (35.0,), "multistep: epochs at which the learning rate is multiplied by decay"
    )
    decay: float = setting(0.1, "multistep: factor at each milestone", positive)
    final_scale: float = setting(0.01, "cosine: learning rate at the last step relative to the first", share)
    warmup_steps: int = setting(0, "steps of linear warm-up, at the start and after each restart", not_negative)
    restarts: tuple[int, ...] = setting((), "cosine: steps at which it restarts (Loshchilov and Hutter, 2017)")
    restart_scale: float = setting(0.7, "highest learning rate after a restart, relative to the first", positive)
    clip_norm: float = setting(0.0, "largest norm of the gradient; 0: no clipping", not_negative)
    ema_decay: float = setting(
        0.0, "decay of averaged weights, which are then the ones that are validated and saved; 0: no average", below_one
    )
    foreground_weight: float = setting(1.0, "weight of foreground pixels in the loss; 1 is the paper's loss", positive)
    dice_weight: float = setting(
        0.0, "weight of a soft Dice term added to the loss; 0 is the paper's loss", not_negative
    )
    presence_weight: float = setting(1.0, "weight of the cross-entropy of the presence head", not_negative)
    train_only: str | None = setting(
        None, "freeze all parameters except those whose names start with this, such as presence"
    )


@dataclass(frozen=True, kw_only=True)
class LoopConfig(_Checked):
    """Length, batch size, precision, and intervals of the training loop."""

    epochs: float = setting(50.0, "passes over the training data", positive)
    steps: int | None = setting(None, "optimizer steps; overrides epochs", positive)
    batch_size: int = setting(64, "images per optimizer step, over all processes and micro-batches", positive)
    accumulation: int = setting(1, "micro-batches per optimizer step: less memory, same batch", positive)
    sizes: tuple[int, ...] = setting((), "progressive input sizes in pixels; empty: always the architecture's size")
    size_shares: tuple[float, ...] = setting((), "share of the steps at each of the sizes; empty: equal shares")
    precision: str = setting(
        "float32", "float32, or autocast to bfloat16 or float16 (CUDA only)", one_of("float32", "bfloat16", "float16")
    )
    channels_last: bool = setting(False, "channels-last memory format: faster convolutions on most devices")
    compile: bool = setting(False, "torch.compile the network")
    gradient_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, about a third more time"
    )
    freeze_batch_norm: bool = setting(False, "keep batch norm in eval mode, for small batches and fine-tuning")
    seed: int = setting(0, "seed of weights, order, augmentation and dropout", not_negative)
    threads: int = setting(0, "CPU threads of the training process; 0: PyTorch's choice", not_negative)
    log_every: int = setting(20, "steps between lines in metrics.jsonl", positive)
    checkpoint_every: int = setting(500, "steps between checkpoints", positive)
    validate_every: int = setting(2000, "steps between validations", positive)
    threshold: float = setting(THRESHOLD, "mask threshold on the probability, for validation", inside)


@dataclass(frozen=True, kw_only=True)
class StartConfig(_Checked):
    """Initial weights and teacher."""

    clip: str | None = setting(
        None, "CLIP weights for the backbone: OpenAI's RN50.pt, RN101.pt, ... or their state dict"
    )
    init: str | None = setting(None, "CRIS checkpoint to fine-tune, of this project or of the public code")
    teacher: str | None = setting(None, "checkpoint of a larger CRIS to distill from")
    teacher_logits: float = setting(
        1.0, "distillation: weight of the cross-entropy with the teacher's probabilities", not_negative
    )
    teacher_features: float = setting(
        1.0, "distillation: weight of the distance between decoded features", not_negative
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run: its name, architecture, and the groups above."""

    name: str = "custom"
    architecture: Architecture = field(default_factory=Architecture)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    start: StartConfig = field(default_factory=StartConfig)

    def __post_init__(self) -> None:
        loop = self.loop
        if loop.batch_size % loop.accumulation:
            raise OptionError(
                f"--batch-size {loop.batch_size} is not divisible by --accumulation {loop.accumulation}; change one."
            )
        if loop.size_shares and len(loop.size_shares) != len(loop.sizes):
            count = len(loop.size_shares)
            raise OptionError(f"--size-shares has {count} values for {len(loop.sizes)} --sizes; give one each or none.")
        if self.optimizer.restarts and self.optimizer.schedule != "cosine":
            raise OptionError("--restarts needs --schedule cosine; multistep has --milestones.")
        if any(step < 1 for step in self.optimizer.restarts):
            raise OptionError(
                f"--restarts has {min(self.optimizer.restarts)}; expected steps after the first, such as 9000."
            )
        for size in loop.sizes:
            if size <= 0 or size % 32:
                raise OptionError(f"--sizes has {size}, but an input side must be a positive multiple of 32.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON and checkpoints."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Build a run from the result of :meth:`to_dict`.

        Raises:
            OptionError: A name is unknown, or a value is invalid.
        """
        _known(values, [item.name for item in dataclasses.fields(cls)], "run")
        parts: dict[str, Any] = {"name": str(values.get("name", "custom"))}
        for group, kind in GROUPS.items():
            given = dict(values.get(group, {}))
            hints = typing.get_type_hints(kind)
            _known(given, hints, group)
            parts[group] = kind(**{name: _coerce(name, value, hints[name]) for name, value in given.items()})
        return cls(**parts)

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Read a ``config.json``.

        Raises:
            OptionError: The file cannot be read, or is not a valid run configuration.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OptionError(
                f"{path} is not a readable run configuration ({error}); expected the name of a recipe or a JSON file."
            ) from error
        if not isinstance(values, dict):
            raise OptionError(
                f"{path} contains a JSON {type(values).__name__}; expected an object of configuration groups."
            )
        return cls.from_dict(values)


GROUPS: dict[str, type] = {
    "architecture": Architecture,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "loop": LoopConfig,
    "start": StartConfig,
}


def option(name: str) -> str:
    """Return the command-line option of a field."""
    return "--" + name.replace("_", "-")


def override(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return ``config`` with fields of any group replaced, given by name, as values or text.

    Raises:
        OptionError: A name is unknown, or a value is invalid.
    """
    owners = {item.name: group for group, kind in GROUPS.items() for item in dataclasses.fields(kind)}
    _known(changes, owners, "run")
    by_group: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        hints = typing.get_type_hints(GROUPS[owners[name]])
        by_group.setdefault(owners[name], {})[name] = _coerce(name, value, hints[name])
    groups = {group: dataclasses.replace(getattr(config, group), **values) for group, values in by_group.items()}
    return dataclasses.replace(config, **groups)


def _known(given: Mapping[str, Any], names: typing.Iterable[str], where: str) -> None:
    names = list(names)
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(sorted(names))}."
            raise OptionError(f"{name!r} is not a field of the {where} configuration; {hint}")


_BOOLEANS = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """Convert text or a JSON value to the type of a field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "")):
            return None
        return _coerce(name, value, next(kind for kind in arguments if kind is not type(None)))
    try:
        if origin is tuple:
            parts = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
            return tuple(_coerce(name, part, arguments[0]) for part in parts)
        if hint is bool:
            if isinstance(value, bool):
                return value
            return _BOOLEANS[str(value).lower()]
        if hint is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        if hint in (int, float, str):
            return hint(value)
    except (KeyError, TypeError, ValueError):
        expected = (
            getattr(hint, "__name__", str(hint)) if origin is None else "comma-separated " + arguments[0].__name__ + "s"
        )
        raise OptionError(f"{option(name)} is {value!r}, but it takes {expected}.") from None
    return value
