"""A meaningful bundle of real graphs, small enough to build in every test run.

It is not trained; it finds one of three colours. The text encoder maps "red", "green" and "blue" to weights of three
channels, the image encoder measures how much of each colour a pixel has, and the mask decoder multiplies them. It has
the tensors of every bundle, and each affects the logits, so that a missing one is noticed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from cris_edge.bundle import BundleWriter, default_model
from cris_edge.image import MEAN, STD, preprocess
from cris_edge.tokenizer import Tokenizer

SIZE, LENGTH = 128, 17
COLOURS = ("red", "green", "blue")
RGB = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}
CHANNELS = 8
PROMPTS = ("the red one", "something green", "blue")

_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

FEATURES = {
    "visual5": (1, CHANNELS, SIZE // 32, SIZE // 32),
    "visual4": (1, CHANNELS, SIZE // 16, SIZE // 16),
    "visual3": (1, CHANNELS, SIZE // 16, SIZE // 16),
    "sentence_scale": (1, CHANNELS, 1, 1),
    "word_keys": (1, LENGTH, CHANNELS),
    "word_values": (1, LENGTH, CHANNELS),
    "padding_bias": (1, 1, 1, LENGTH),
}
IMAGE_FEATURES, TEXT_FEATURES = tuple(FEATURES)[:3], tuple(FEATURES)[3:]


def picture(left: str, right: str, height: int = 96, width: int = 160) -> NDArray[np.uint8]:
    """Return (height, width, 3) uint8 with one colour on the left half and another on the right."""
    image = np.empty((height, width, 3), np.uint8)
    image[:, : width // 2] = RGB[left]
    image[:, width // 2 :] = RGB[right]
    return image


def graphs(gain: float = 16.0) -> dict[str, onnx.ModelProto]:
    """Build the three graphs; a different `gain` makes a different model."""
    return {"image_encoder": _image_encoder(), "text_encoder": _text_encoder(), "mask_decoder": _mask_decoder(gain)}


def build(target: Path, *, gain: float = 16.0, name: str = "tiny", **changes: Any) -> Path:
    """Write the bundle; `changes` replace entries of its manifest."""
    models = graphs(gain)
    with BundleWriter(target) as writer:
        _save(writer.path, models)
        shutil.copyfile(default_model() / "tokenizer.json", writer.path / "tokenizer.json")
        _save_golden(writer.path, models)
        files = {graph: f"onnx/{graph}.onnx" for graph in models}
        writer.manifest = {
            "name": name,
            "description": "Finds red, green and blue; for tests.",
            "architecture": {"layers": 0},
            "input_size": SIZE,
            "word_len": LENGTH,
            "mean": list(MEAN),
            "std": list(STD),
            "threshold": 0.35,
            "precision": "fp32",
            "graphs": {graph: _describe(model) for graph, model in models.items()},
            "runtimes": {"onnxruntime": files, "openvino": files},
            "golden": "golden.npz",
            "golden_prompts": list(PROMPTS),
            "parity": [
                {"runtime": runtime, "graph": "chain", "precision": precision, "max_abs_diff": 0.0,
                 "tolerance": tolerance, "mask_iou": 1.0}
                for runtime in ("onnxruntime", "openvino")
                for precision, tolerance in (("float32", 1e-3), ("bfloat16", 0.5), ("float16", 0.1))
            ],
            "metrics": [],
            "provenance": {"recipe": "none"},
            **changes,
        }  # fmt: skip
    return target


def reference(models: dict[str, onnx.ModelProto], pixels: Any, tokens: Any) -> NDArray[np.float32]:
    """Logits by the interpreter of the onnx package, which is neither of the runtimes."""
    image = _interpret(models["image_encoder"], {"image": pixels})
    text = _interpret(models["text_encoder"], {"tokens": tokens})
    return np.asarray(_interpret(models["mask_decoder"], {**image, **text})["logits"], np.float32)


def _interpret(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    names = [output.name for output in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model).run(names, feeds), strict=True))


def _save(folder: Path, models: dict[str, onnx.ModelProto]) -> None:
    (folder / "onnx").mkdir()
    for graph, model in models.items():
        onnx.save(model, folder / "onnx" / f"{graph}.onnx")


def _save_golden(folder: Path, models: dict[str, onnx.ModelProto]) -> None:
    pictures = [
        picture("red", "blue", SIZE, SIZE),
        picture("grey", "green", SIZE, SIZE),
        picture("blue", "red", SIZE, SIZE),
    ]
    tokens = Tokenizer()(list(PROMPTS), LENGTH)
    logits = [
        reference(models, preprocess(image, SIZE)[0], row[None]) for image, row in zip(pictures, tokens, strict=True)
    ]
    np.savez_compressed(folder / "golden.npz", image=np.stack(pictures), tokens=tokens, logits=np.concatenate(logits))


def _describe(model: onnx.ModelProto) -> dict[str, Any]:
    names = {value: key for key, value in _TYPES.items()}

    def tensors(values: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": value.name,
                "shape": [side.dim_value for side in value.type.tensor_type.shape.dim],
                "dtype": names[value.type.tensor_type.elem_type],
            }
            for value in values
        ]

    return {"inputs": tensors(model.graph.input), "outputs": tensors(model.graph.output), "macs": None}


class _Graph:
    """Nodes and constants, gathered in the order of computation."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def model(self, name: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> onnx.ModelProto:
        def values(shapes: dict[str, Any]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(
                    tensor, TensorProto.INT64 if tensor == "tokens" else TensorProto.FLOAT, shape
                )
                for tensor, shape in shapes.items()
            ]

        graph = helper.make_graph(self.nodes, name, values(inputs), values(outputs), self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def _image_encoder() -> onnx.ModelProto:
    graph = _Graph()
    rgb = graph.add(
        "Add",
        graph.add("Mul", "image", graph.constant(np.reshape(STD, (1, 3, 1, 1)))),
        graph.constant(np.reshape(MEAN, (1, 3, 1, 1))),
    )
    # How much a pixel has of a colour and not of the two others, in the first three channels.
    weights = np.zeros((CHANNELS, 3, 1, 1))
    weights[:3, :, 0, 0] = 2 * np.eye(3) - 1
    weights[3:, :, 0, 0] = 0.1
    colour = graph.add("Relu", graph.add("Conv", rgb, graph.constant(weights)))
    fine = graph.add("AveragePool", colour, kernel_shape=[16, 16], strides=[16, 16])
    graph.add("Identity", fine, output="visual3")
    graph.add("Mul", fine, graph.constant(0.5), output="visual4")
    graph.add("AveragePool", colour, kernel_shape=[32, 32], strides=[32, 32], output="visual5")
    return graph.model(
        "image_encoder", {"image": (1, 3, SIZE, SIZE)}, {name: FEATURES[name] for name in IMAGE_FEATURES}
    )


def _text_encoder() -> onnx.ModelProto:
    tokenizer = Tokenizer()
    table = np.zeros((tokenizer.vocabulary, CHANNELS))
    for channel, colour in enumerate(COLOURS):
        table[tokenizer(colour, 3)[0, 1], channel] = 1
    graph = _Graph()
    words = graph.add("Gather", graph.constant(table), "tokens", output="words")
    sentence = graph.add("ReduceSum", words, graph.constant([1], np.int64), keepdims=0)
    graph.add("Reshape", sentence, graph.constant([1, CHANNELS, 1, 1], np.int64), output="sentence_scale")
    graph.add("Mul", words, graph.constant(2.0), output="word_keys")
    graph.add("Mul", words, graph.constant(0.1), output="word_values")
    padding = graph.add("Cast", graph.add("Equal", "tokens", graph.constant(0, np.int64)), to=TensorProto.FLOAT)
    bias = graph.add("Mul", padding, graph.constant(-1e4))
    graph.add("Reshape", bias, graph.constant([1, 1, 1, LENGTH], np.int64), output="padding_bias")
    return graph.model("text_encoder", {"tokens": (1, LENGTH)}, {name: FEATURES[name] for name in TEXT_FEATURES})


def _mask_decoder(gain: float) -> onnx.ModelProto:
    graph = _Graph()
    coarse = graph.add(
        "Resize", "visual5", "", graph.constant([1, 1, 2, 2]), mode="linear",
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    visual = graph.add("Add", graph.add("Mul", coarse, graph.constant(0.1)), graph.add("Add", "visual3", "visual4"))
    chosen = graph.add("Mul", visual, "sentence_scale")
    # A word attends to the others that are no padding: one number for the whole sentence.
    keys = graph.add("Transpose", "word_keys", perm=[0, 2, 1])
    scores = graph.add("MatMul", "word_values", keys)
    bias = graph.add("Reshape", "padding_bias", graph.constant([1, 1, LENGTH], np.int64))
    attention = graph.add("Softmax", graph.add("Add", scores, bias), axis=-1)
    words = graph.add(
        "ReduceSum", graph.add("MatMul", attention, "word_values"), graph.constant([1, 2], np.int64), keepdims=1
    )
    heat = graph.add("ReduceSum", chosen, graph.constant([1], np.int64), keepdims=1)
    sentence = graph.add("Unsqueeze", words, graph.constant([3], np.int64))
    low = graph.add(
        "Add", graph.add("Mul", heat, graph.constant(gain)), graph.add("Add", sentence, graph.constant(-8.0))
    )
    graph.add(
        "Resize", low, "", graph.constant([1, 1, 4, 4]), mode="linear",
        coordinate_transformation_mode="half_pixel", output="logits",
    )  # fmt: skip
    return graph.model("mask_decoder", FEATURES, {"logits": (1, 1, SIZE // 4, SIZE // 4)})
