"""One pair through the three graphs of the model for synthetic scenes, quantized, compiled and run on the emulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from cris_edge.backends import registry
from cris_edge.backends.base import BackendOptions
from cris_edge.bundle import Bundle
from cris_edge.bundle.manifest import GRAPHS
from cris_edge.image import preprocess
from cris_edge.metrics import logits_agreement
from runtimes import qdq, socs
from runtimes.network import Array, Network, Tensors

pytest.importorskip("onnxruntime")
pytest.importorskip(
    "onnxruntime_qnn", reason="Qualcomm's provider is not installed; it exists for Linux on x86-64 and Windows"
)


def in_float(path: Path) -> onnx.ModelProto:
    """Return the graph of an int8 file with float32 weights and without activation quantizers."""
    model = onnx.load(path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    rows: set[str] = set()
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            values, scale, zero = (constants[name].astype(np.float32) for name in node.input)
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
            shape = [-1 if place == axis and scale.ndim else 1 for place in range(values.ndim)]
            constants[node.output[0]] = (values - zero.reshape(shape)) * scale.reshape(shape)
            continue
        if node.op_type == "Gather" and node.input[0] in constants and constants[node.input[0]].dtype == np.int8:
            constants[node.input[0]] = constants[node.input[0]].astype(np.float32)
            rows.add(node.output[0])
        passes = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if passes or (node.op_type == "Cast" and node.input[0] in rows):
            if node.output[0] in outputs:
                kept.append(helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name))
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    needed = {name for node in kept for name in node.input}
    for field, values in (("node", kept), ("initializer", []), ("value_info", [])):
        del getattr(model.graph, field)[:]
        getattr(model.graph, field).extend(values)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array, order="C"), name)
        for name, array in constants.items()
        if name in needed
    )
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def run(network: Network, image: Array, tokens: Array) -> tuple[Tensors, Array]:
    features = {**network.encode_image(image), **network.encode_text(tokens)}
    return features, network.decode(features, {})


def test_one_pair_through_the_emulator(tmp_path: Path, root: Path) -> None:
    from runtimes.htp_calibration import OnCpu
    from runtimes.htp_compiler import Compiler

    scenes = root / "tests" / "data" / "scenes"
    bundle = Bundle.open(scenes, cache_dir=None)
    models = {name: in_float(scenes / "onnx" / f"{name}.onnx") for name in GRAPHS}
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
    assert logits_agreement(logits, expected, bundle.manifest.threshold) > 0.7
    wrong = golden.logits[1:2]
    assert logits_agreement(logits, wrong, bundle.manifest.threshold) < 0.5, "another pair passes too"
