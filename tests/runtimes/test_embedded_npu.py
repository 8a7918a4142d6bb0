"""The embedded model in integers, compiled for a chip, one pair through all three graphs on the emulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cris_edge.backends import registry
from cris_edge.backends.base import BackendOptions
from cris_edge.bundle import Bundle, embedded
from cris_edge.image import preprocess
from cris_edge.manifest import GRAPHS
from runtimes import qdq, socs
from runtimes.network import Array, Network, Tensors
from runtimes.parity import mask_iou

pytest.importorskip("onnxruntime")
pytest.importorskip(
    "onnxruntime_qnn", reason="Qualcomm's provider is not installed; it exists for Linux on x86-64 and Windows"
)


def in_float(path: Path) -> onnx.ModelProto:
    """The graph of a file with weights in float32, however they are stored."""
    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Cast" and node.input[0] in weights:
            to = helper.tensor_dtype_to_np_dtype(next(entry.i for entry in node.attribute if entry.name == "to"))
            values = numpy_helper.to_array(weights[node.input[0]]).astype(to)
            model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
            model.graph.initializer.remove(weights[node.input[0]])
            model.graph.node.remove(node)
    for tensor in model.graph.initializer:  # a table of which rows are looked up before they are cast
        if tensor.data_type == TensorProto.FLOAT16:
            for node in (node for node in model.graph.node if tensor.name in node.input):
                (cast,) = (other for other in model.graph.node if node.output[0] in other.input)
                node.output[0] = cast.output[0]
                model.graph.node.remove(cast)
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    return model


def run(network: Network, image: Array, tokens: Array) -> tuple[Tensors, Array]:
    features = {**network.encode_image(image), **network.encode_text(tokens)}
    return features, network.decode(features, {})


def test_one_pair_through_the_emulator(tmp_path: Path) -> None:
    from runtimes.htp import Compiler
    from runtimes.qnn import OnCpu

    bundle = Bundle.open(embedded(), cache_dir=None)
    models = {name: in_float(embedded() / "onnx" / f"{name}.onnx") for name in GRAPHS}
    exact = Network({name: OnCpu(model.SerializeToString()) for name, model in models.items()})
    golden = bundle.golden()
    pairs = [
        (preprocess(image, bundle.manifest.input_size)[0], row[None])
        for image in golden.images
        for row in golden.tokens
    ]
    samples = [{**run(exact, image, tokens)[0], "image": image, "tokens": tokens} for image, tokens in pairs[:4]]
    compiler = Compiler(socs.find("SM8650"))
    backend = registry.create("qnn", BackendOptions(device="emulator"))
    compiled = {}
    for name, model in models.items():
        taken = [value.name for value in model.graph.input]
        ranges = qdq.Ranges(model, [{key: sample[key] for key in taken} for sample in samples])
        source = tmp_path / f"{name}.onnx"
        source.write_bytes(qdq.quantize(ranges, "int16" if name == "mask_decoder" else "int8").SerializeToString())
        compiler.compile(source, tmp_path / "SM8650" / source.name)
        compiled[name] = backend.compile(tmp_path / "SM8650" / source.name, bundle.manifest.graphs[name])
    _, logits = run(Network(compiled), *pairs[0])
    expected = golden.logits[:1]
    assert np.isfinite(logits).all()
    assert mask_iou(logits, expected, bundle.manifest.threshold) > 0.7
    wrong = golden.logits[1:2]
    assert mask_iou(logits, wrong, bundle.manifest.threshold) < 0.5, "the other pair's mask would have passed too"
