"""The reader of TensorFlow.js weights, on made-up graph models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cris_edge.errors import CheckpointError
from training.tfjs import convolutions, read_weights


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Two convolutions, the second one listed first; a kernel in float16, one in float32."""
    random = np.random.default_rng(0)
    tensors = {
        "first/kernel": random.standard_normal((3, 3, 2, 4)).astype(np.float16),
        "first/bias": random.standard_normal((1, 1, 1, 4)).astype(np.float32),
        "second/kernel": random.standard_normal((1, 1, 4, 5)).astype(np.float32),
        "second/bias": random.standard_normal((5,)).astype(np.float32),
    }
    weights = []
    for name, tensor in tensors.items():
        entry = {"name": name, "shape": list(tensor.shape), "dtype": "float32"}
        if tensor.dtype == np.float16:
            entry["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
        weights.append(entry)
    nodes = [
        {"op": "Conv2D", "name": "net/convolution_1", "input": ["net/Add", "second/kernel"]},
        {"op": "Conv2D", "name": "net/convolution", "input": ["image", "first/kernel"]},
        {"op": "Add", "name": "net/Add", "input": ["net/convolution", "first/bias"]},
        {"op": "AddV2", "name": "net/Add_1", "input": ["second/bias", "net/convolution_1"]},
    ]
    manifest = [{"paths": ["model.bin"], "weights": weights}]
    (tmp_path / "model.json").write_text(json.dumps({"modelTopology": {"node": nodes}, "weightsManifest": manifest}))
    (tmp_path / "model.bin").write_bytes(b"".join(tensor.tobytes() for tensor in tensors.values()))
    np.savez(tmp_path / "expected.npz", **{name.replace("/", "_"): tensor for name, tensor in tensors.items()})
    return tmp_path / "model.json"


def test_convolutions_are_in_the_converters_order_and_in_pytorchs_layout(graph: Path) -> None:
    expected = np.load(graph.parent / "expected.npz")
    first, second = convolutions(graph)
    np.testing.assert_array_equal(first.weight, expected["first_kernel"].astype(np.float32).transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(first.bias, expected["first_bias"].reshape(-1))
    np.testing.assert_array_equal(second.weight, expected["second_kernel"].transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(second.bias, expected["second_bias"])


def test_integers_are_scaled(graph: Path) -> None:
    model = json.loads(graph.read_text())
    model["weightsManifest"] = [
        {
            "paths": ["small.bin"],
            "weights": [
                {
                    "name": "w",
                    "shape": [3],
                    "dtype": "float32",
                    "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1},
                }
            ],
        }
    ]
    graph.write_text(json.dumps(model))
    (graph.parent / "small.bin").write_bytes(bytes((0, 2, 4)))
    np.testing.assert_array_equal(read_weights(graph)[1]["w"], np.array([-1, 0, 1], np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.bin").unlink(), "beside it"),
        (lambda folder: (folder / "model.bin").write_bytes((folder / "model.bin").read_bytes()[:-4]), "second/bias"),
        (lambda folder: (folder / "model.bin").write_bytes((folder / "model.bin").read_bytes() + b"1234"), "describes"),
        (lambda folder: (folder / "model.json").write_text("{}"), "no|not"),
    ],
)
def test_damaged_files_are_refused(graph: Path, change: object, message: str) -> None:
    change(graph.parent)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        convolutions(graph)
