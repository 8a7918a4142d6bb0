"""The quantized checkpoint: tensors and plain containers that rebuild the three quantized modules."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cris_edge.errors import CheckpointError, first_line
from quantization.deploy_network import DeployNetwork
from quantization.quantizers import describe, place
from training.checkpoint import load_network, read_checkpoint, recorded, write_atomically
from training.model import CRIS, Architecture, CandidateArchitecture, CandidateNet
from training.model.deploy import Resolution

FORMAT = "cris-edge-quantized"
VERSION = 2  # 1: the projector's convolutions at full resolution
OWN = ("format", "version", "graphs", "resolution")  # keys that `load_quantized` does not return


def save_quantized(path: str | os.PathLike[str], network: DeployNetwork, **extra: Any) -> None:
    """Write a quantized network atomically, with `extra` as plain containers and tensors."""
    graphs = {
        name: {
            "hooks": describe(module),
            "state": {key: tensor.detach().cpu() for key, tensor in module.state_dict().items()},
        }
        for name, module in network.graphs.items()
    }
    head = {"format": FORMAT, "version": VERSION, "architecture": network.architecture.to_dict()}
    write_atomically(
        path, {**head, "resolution": getattr(network.mask_decoder, "resolution", "full"), "graphs": graphs, **extra}
    )


def load_quantized(path: str | os.PathLike[str]) -> tuple[DeployNetwork, dict[str, Any]]:
    """Load the network, in eval mode, and the `extra` that was saved with it.

    Raises:
        CheckpointError: The file is not a quantized checkpoint, is damaged, or has a newer version.
    """
    content = read_checkpoint(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not quantized; write a quantized checkpoint from it with `python -m quantization.finetune`."
        )
    if content.get("version", 0) > VERSION:
        raise CheckpointError(
            f"{path} has version {content['version']}, and this release reads up to {VERSION}; update CRIS Edge."
        )
    try:
        network = _unquantized(content)
        for name, module in network.graphs.items():
            place(module, content["graphs"][name]["hooks"])
            module.load_state_dict(content["graphs"][name]["state"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is damaged or of another build ({first_line(error)}); quantize again."
        ) from error
    return network.eval(), {key: value for key, value in content.items() if key not in OWN}


def is_quantized(content: Mapping[str, Any]) -> bool:
    """Whether the content of a checkpoint is a quantized network."""
    return content.get("format") == FORMAT


def load_float(path: Path, **given: int | None) -> tuple[DeployNetwork, dict[str, Any]]:
    """Load a float checkpoint as a deployed network, with the checkpoint's own description.

    Raises:
        CheckpointError: It is not a CRIS checkpoint, or is quantized already.
    """
    content = read_checkpoint(path)
    if is_quantized(content):
        raise CheckpointError(
            f"{path} is quantized already; pass the float checkpoint that it was made from (--checkpoint)."
        )
    return deploy(load_network(path, **given)), recorded(content)


def _unquantized(content: Mapping[str, Any]) -> DeployNetwork:
    """Return a network of the recorded architecture, without hooks, its weights arbitrary."""
    if content["architecture"].get("family") == CandidateArchitecture.family:
        return deploy(CandidateNet(CandidateArchitecture.from_dict(content["architecture"])))
    return deploy(CRIS(Architecture.from_dict(content["architecture"])), content.get("resolution", "full"))


def deploy(model: CRIS | CandidateNet, resolution: Resolution = "half") -> DeployNetwork:
    """Deploy a network in eval mode; a CRIS by default in the form that is fastest in int8."""
    with torch.no_grad():
        if isinstance(model, CandidateNet):
            return DeployNetwork(model.architecture, model.eval().deploy(with_presence=True)).eval()
        return DeployNetwork(model.architecture, model.eval().deploy(resolution=resolution)).eval()
