"""Builds the network, its optimizer and its wrappers from a run's configuration."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cris_edge.device.processor import usable_cores
from cris_edge.errors import CheckpointError, OptionError
from training.checkpoint import clip_architecture, load_clip, load_public, public_state, read_checkpoint, read_clip
from training.config import RunConfig, option
from training.distributed import Processes
from training.fast_network import Network
from training.model import CRIS
from training.schedule import decayed_groups
from training.shared_norm import share_batch_norm

_FROM_CLIP = ("vision_layers", "vision_width", "embed_dim", "vocab_size", "text_width", "text_layers")

WORKERS = 16
"""Largest number of loader processes per core; more only use up the memory."""


def check_device(config: RunConfig, processes: Processes) -> None:
    """Check a configuration against the processes and their device, before anything is loaded.

    Raises:
        OptionError: The batch cannot be divided among the processes, there are too many loader processes, or the device
            does not support the precision.
    """
    loop = config.loop
    if loop.batch_size % (loop.accumulation * processes.world):
        raise OptionError(
            f"--batch-size {loop.batch_size} cannot be divided among {processes.world} processes with --accumulation "
            f"{loop.accumulation}; change one of them."
        )
    most = WORKERS * usable_cores()
    if config.data.workers > most:
        raise OptionError(
            f"--workers is {config.data.workers}; expected at most {most} processes on {usable_cores()} cores."
        )
    if loop.precision == "float16" and processes.device.type != "cuda":
        raise OptionError("--precision float16 needs a GPU; use bfloat16 or float32 on a CPU.")


def build_model(config: RunConfig, processes: Processes) -> CRIS:
    """Return the network on its device, initialized from CLIP, from a checkpoint, or randomly.

    Raises:
        CheckpointError: The weights do not fit the architecture.
    """
    start = config.start
    model = CRIS(config.architecture)
    if start.clip:
        clip = read_clip(start.clip)
        architecture = clip_architecture(clip, start.clip)
        for name in _FROM_CLIP:
            expected, found = getattr(config.architecture, name), getattr(architecture, name)
            if expected != found:
                raise CheckpointError(
                    f"{start.clip} has {name} {found}, recipe {config.name} has {expected}; choose another recipe or "
                    f"set {option(name)}."
                )
        load_clip(model, clip, start.clip)
    if start.init:
        state = public_state(read_checkpoint(start.init), start.init)
        if model.presence is not None and not any(name.startswith("presence.") for name in state):
            # A checkpoint without presence head: the head keeps its initialization.
            state = {**state, **{f"presence.{name}": tensor for name, tensor in model.presence.state_dict().items()}}
        load_public(model, state, start.init)
    # Unused, only kept in checkpoints: data-parallel training would wait for its gradient.
    model.backbone.logit_scale.requires_grad_(False)
    if prefix := config.optimizer.train_only:
        _freeze_all_but(model, prefix)
    model = model.to(processes.device)
    if config.loop.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if processes.world > 1 and not config.loop.freeze_batch_norm:
        if processes.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        else:
            share_batch_norm(model)
    return model


def _freeze_all_but(model: CRIS, prefix: str) -> None:
    names = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    if not names:
        parts = ", ".join(name for name, child in model.named_children() if child is not None)
        raise OptionError(f"--train-only is {prefix!r}; no parameter starts with it. Available: {parts}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names and parameter.requires_grad)


def build_optimizer(config: RunConfig, model: CRIS, adapter: nn.Module | None) -> torch.optim.Optimizer:
    """Return Adam or AdamW over the parameters of the network and of the distillation adapter."""
    settings = config.optimizer
    groups = model.parameter_groups(settings.learning_rate, settings.backbone_scale)
    if adapter is not None:
        groups.append({"params": list(adapter.parameters()), "lr": settings.learning_rate})
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    betas = (0.9, settings.beta2)
    return kind(decayed_groups(groups, settings.weight_decay), lr=settings.learning_rate, betas=betas, fused=True)


def wrap(config: RunConfig, model: CRIS, adapter: nn.Module | None, processes: Processes) -> nn.Module:
    """Return the network that the loop calls, compiled and data-parallel where configured."""
    network: nn.Module = Network(model, config.loop.gradient_checkpointing, adapter)
    if config.loop.compile:
        network.compile()
    if processes.world > 1:
        ids = [processes.device.index] if processes.device.type == "cuda" else None
        network = DistributedDataParallel(network, device_ids=ids)
    return network
