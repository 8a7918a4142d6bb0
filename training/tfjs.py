"""Weights of a TensorFlow.js graph model, read without TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import CheckpointError


@dataclass(frozen=True)
class Convolution:
    """One ``Conv2D`` node and the addition that follows it.

    Attributes:
        name: Of the node.
        weight: (O, I, H, W) float32, as PyTorch stores it.
        bias: (O,) float32.
    """

    name: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def read_weights(path: Path) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """Read a graph model.

    Args:
        path: The ``.json`` file; the binary files that it names lie beside it.

    Returns:
        The graph's nodes, and its tensors by name, dequantized to float32 where they are stored in fewer bits.

    Raises:
        CheckpointError: The file is no graph model, or its weights are incomplete.
    """
    try:
        model = json.loads(path.read_text())
        nodes = model["modelTopology"]["node"]
        groups = model["weightsManifest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a TensorFlow.js graph model; expected its .json file.") from error
    tensors: dict[str, NDArray[Any]] = {}
    for group in groups:
        try:
            data = b"".join((path.parent / name).read_bytes() for name in group["paths"])
        except OSError as error:
            raise CheckpointError(f"{path} needs {', '.join(group['paths'])} beside it.") from error
        offset = 0
        for entry in group["weights"]:
            tensor, offset = _tensor(entry, data, offset, path)
            tensors[entry["name"]] = tensor
        if offset != len(data):
            raise CheckpointError(f"{path} describes {offset} bytes of weights, and its binary files have {len(data)}.")
    return nodes, tensors


def _tensor(entry: Mapping[str, Any], data: bytes, offset: int, path: Path) -> tuple[NDArray[Any], int]:
    quantization = entry.get("quantization") or {}
    stored = np.dtype(quantization.get("dtype", entry["dtype"]))
    count = int(np.prod(entry["shape"], dtype=np.int64))
    end = offset + count * stored.itemsize
    if end > len(data):
        raise CheckpointError(f"{path} has no complete tensor {entry['name']}: download its binary files again.")
    values = np.frombuffer(data, stored, count, offset).reshape(entry["shape"])
    if "scale" in quantization:
        values = values * quantization["scale"] + quantization.get("min", 0)
    return values.astype(np.float32) if entry["dtype"] == "float32" else values, end


def convolutions(path: Path) -> list[Convolution]:
    """All convolutions of a graph model, in the order of the numbers that the converter put into their names.

    Raises:
        CheckpointError: As `read_weights`, or a convolution has no constant kernel and bias.
    """
    nodes, tensors = read_weights(path)
    biases: dict[str, NDArray[Any]] = {}
    for node in nodes:
        if node["op"] in ("Add", "AddV2", "BiasAdd"):
            constants = [tensors[name] for name in node["input"] if name in tensors]
            biases |= {name: constants[0] for name in node["input"] if constants and name not in tensors}
    found = []
    for node in nodes:
        if node["op"] != "Conv2D":
            continue
        kernel, bias = tensors.get(node["input"][1]), biases.get(node["name"])
        if kernel is None or bias is None:
            raise CheckpointError(f"The convolution {node['name']} of {path} has no constant kernel and bias.")
        weight = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        found.append(Convolution(node["name"], weight, bias.reshape(-1)))
    return sorted(found, key=lambda convolution: _number(convolution.name))


def _number(name: str) -> int:
    """The number at the end of a name such as ``PartitionedCall/convolution_12``; the first has none."""
    last = name.rpartition("_")[2]
    return int(last) if last.isdigit() else 0
