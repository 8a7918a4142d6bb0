"""Graphs for Qualcomm's HTP: quantized throughout, compiled as a whole, run by the emulator."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cris_edge.errors import ExportError, OptionError
from runtimes import htp_calibration, qdq, socs
from runtimes.export import Options
from runtimes.htp_calibration import OnCpu
from runtimes.htp_compiler import Compiler, unsupported
from runtimes.targets.target import BackendTarget
from training.model.deploy import UNSEEN

pytest.importorskip("onnxruntime")

SIDE, CHANNELS = 8, 4


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    pytest.importorskip(
        "onnxruntime_qnn", reason="Qualcomm's provider is not installed; it exists for Linux on x86-64 and Windows"
    )
    return Compiler(socs.find("SM8650"))


def network() -> onnx.ModelProto:
    """A convolution, a layer norm with masked attention-like products, and a sum."""
    random = np.random.default_rng(0)
    constants = {
        "weight": random.normal(size=(CHANNELS, 3, 3, 3)).astype(np.float32) / 5,
        "bias": random.normal(size=CHANNELS).astype(np.float32) / 5,
        "shape": np.array([1, SIDE * SIDE, CHANNELS], np.int64),
        "norm": np.linspace(0.5, 1.5, CHANNELS, dtype=np.float32),
        "shift": np.zeros(CHANNELS, np.float32),
        "turn": random.normal(size=(CHANNELS, CHANNELS)).astype(np.float32),
        "penalty": np.array([[[0, UNSEEN, 0, UNSEEN]]], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "weight", "bias"], ["seen"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["seen"], ["kept"], "relu"),
        helper.make_node("Reshape", ["kept", "shape"], ["rows"], "reshape"),
        helper.make_node("LayerNormalization", ["rows", "norm", "shift"], ["normed"], "norm", axis=-1),
        helper.make_node("MatMul", ["normed", "turn"], ["scores"], "scores"),
        helper.make_node("Sub", ["scores", "penalty"], ["masked"], "mask"),
        helper.make_node("Softmax", ["masked"], ["shares"], "softmax", axis=-1),
        helper.make_node("Add", ["shares", "rows"], ["out"], "add"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, SIDE * SIDE, CHANNELS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def images(count: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"image": random.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)} for _ in range(count)]


@pytest.fixture(scope="module")
def ranges() -> qdq.Ranges:
    return qdq.Ranges(network(), images(8))


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return OnCpu(network().SerializeToString())(images(1)[0])["out"]


@pytest.mark.parametrize(("bits", "allowed"), list(zip(qdq.ACTIVATIONS, (0.1, 0.08, 0.03), strict=True)))
def test_quantized_graphs_keep_names_shapes_and_values(ranges, expected, bits, allowed):
    model = qdq.quantize(ranges, bits)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "out"]
    found = OnCpu(model.SerializeToString())(images(1)[0])["out"]
    assert found.shape == expected.shape
    assert 0 < np.abs(found - expected).max() < allowed


def test_all_values_between_operators_are_quantized(ranges):
    model = qdq.quantize(ranges, "int16")
    quantized = {"QuantizeLinear", "DequantizeLinear"}
    made = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in quantized:
            continue
        sources = [made[name].op_type for name in node.input if name in made]
        assert set(sources) <= {"DequantizeLinear"}, f"{node.name} takes floats"


def test_more_bits_are_more_accurate(ranges, expected):
    errors = [
        np.abs(OnCpu(qdq.quantize(ranges, bits).SerializeToString())(images(1)[0])["out"] - expected).mean()
        for bits in qdq.ACTIVATIONS
    ]
    assert errors[2] < errors[1] < errors[0]


def test_attention_penalty_stays_within_range_of_the_scores(ranges):
    penalty = next(tensor for tensor in ranges.model.graph.initializer if tensor.name == "penalty")
    assert numpy_helper.to_array(penalty).max() == qdq.OUT_OF_SIGHT
    tensors = {"a": np.array([0, UNSEEN, 3], np.float32), "tokens": np.array([int(UNSEEN)])}
    moved = qdq.in_reach(tensors)
    assert moved["a"].tolist() == [0, qdq.OUT_OF_SIGHT, 3]
    assert moved["tokens"].tolist() == [int(UNSEEN)], "a token with this id is a word"


def test_quantizer_logs_nothing(caplog, ranges):
    with caplog.at_level(logging.INFO):
        before = logging.getLogger().level
        qdq.quantize(ranges, "int8")
        assert logging.getLogger().level == before
    assert not caplog.records


@pytest.mark.parametrize("bits", qdq.ACTIVATIONS)
def test_whole_graph_is_compiled_and_emulated(compiler, ranges, expected, tmp_path, bits):
    from cris_edge.backends import qnn as backends_qnn
    from cris_edge.backends import registry
    from cris_edge.backends.base import BackendOptions
    from cris_edge.bundle.manifest import GraphSpec, TensorSpec

    model = qdq.quantize(ranges, bits)
    helper.set_model_props(model, {backends_qnn.ACTIVATIONS: bits})
    source, target = tmp_path / "small.onnx", tmp_path / "SM8650" / "small.onnx"
    source.write_bytes(model.SerializeToString())
    compiler.compile(source, target)
    written = onnx.load(target)
    assert [node.op_type for node in written.graph.node] == ["EPContext"], "the binary holds the whole graph"
    assert {entry.key: entry.value for entry in written.metadata_props} == {
        backends_qnn.ACTIVATIONS: bits,
        "soc": "SM8650",
        "htp_arch": "v75",
    }
    spec = GraphSpec(
        (TensorSpec("image", (1, 3, SIDE, SIDE), "float32"),), (TensorSpec("out", expected.shape, "float32"),)
    )
    backend = registry.create("qnn", BackendOptions(device="emulator"))
    found = backend.compile(target, spec)(images(1)[0])["out"]
    assert backend.info.precision == ("int8" if bits == "int8" else "int8+int16")
    assert np.abs(found - expected).max() < 0.1


def test_binaries_of_chips_differ(compiler, ranges, tmp_path):
    source = tmp_path / "small.onnx"
    source.write_bytes(qdq.quantize(ranges, "int8").SerializeToString())
    binaries = []
    for name in ("SM8350", "SM8650"):
        Compiler(socs.find(name)).compile(source, tmp_path / f"{name}.onnx")
        node = onnx.load(tmp_path / f"{name}.onnx").graph.node[0]
        binaries.append(next(entry.s for entry in node.attribute if entry.name == "ep_cache_context"))
    same = np.frombuffer(binaries[0][: min(map(len, binaries))], np.uint8)
    other = np.frombuffer(binaries[1][: len(same)], np.uint8)
    assert (same != other).mean() > 0.01, "an ignored chip gives the default's binary"


def test_unsupported_operator_is_named(compiler, tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"], "determinant")],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    path = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    with pytest.raises(ExportError, match=r"does not support Det determinant of the graph odd"):
        compiler.compile(path, tmp_path / "compiled.onnx")
    assert not (tmp_path / "compiled.onnx").exists()


@pytest.mark.parametrize(
    ("agreements", "chosen"),
    [((0.985, 0.99, 0.993), 0), ((0.97, 0.99, 0.993), 1), ((0.90, 0.97, 0.99), 2), ((0.5, 0.6, 0.4), 0)],
)
def test_fewest_bits_within_the_tolerance_are_chosen(monkeypatch, agreements, chosen):
    known = dict(zip(qdq.ACTIVATIONS, agreements, strict=True))
    monkeypatch.setattr(qdq, "Ranges", lambda model, samples: model)
    monkeypatch.setattr(qdq, "quantize", lambda ranges, bits: bits)
    monkeypatch.setattr(htp_calibration, "_agreement", lambda name, model, *_: known[model])
    found = htp_calibration.choose_bits("mask_decoder", network(), None, [], 0.35)
    assert found == (qdq.ACTIVATIONS[chosen],) * 2


def test_fake_quantizers_are_disabled_during_calibration():
    import torch

    from quantization.quantizers import activation_quantizer

    module = torch.nn.Sequential(activation_quantizer(0.0, 1.0), activation_quantizer(0.0, 1.0))
    module[1].enabled = False
    x = torch.tensor([0.123456])
    assert module(x) != x
    with htp_calibration.in_float([module]):
        assert module(x) == x
    assert [part.enabled for part in module] == [True, False]


def test_long_lists_of_operators_are_cut():
    message = unsupported("image_encoder", [f"Det node{number}" for number in range(9)])
    assert "Det node4 and 4 more of the graph image_encoder" in message
    assert "node5" not in message


@pytest.mark.parametrize("name", ["sm8650", " SM8650 "])
def test_chips_are_found_in_any_case(name):
    assert socs.find(name).settings == {"soc_model": "57", "htp_arch": "75"}


def test_unknown_chips_are_refused_with_a_list():
    with pytest.raises(OptionError) as error:
        socs.find("SM9999")
    for name in socs.SOCS:
        assert name in str(error.value)


def test_chips_have_distinct_numbers():
    assert len({soc.model for soc in socs.SOCS.values()}) == len(socs.SOCS)
    assert all(soc.arch in (68, 69, 73, 75, 79, 81) for soc in socs.SOCS.values())


def test_export_needs_a_known_chip():
    with pytest.raises(OptionError, match=r"name it with --soc: SM8350, "):
        Options(runtimes=("onnxruntime", "qnn"))
    with pytest.raises(OptionError, match=r"Unknown chip 'banana'. Available: SM8350, "):
        Options(runtimes=("qnn",), settings={"soc": "banana"})
    with pytest.raises(OptionError, match=r"--soc 'SM8650' was given, but none of the runtimes \(onnxruntime\)"):
        Options(runtimes=("onnxruntime",), settings={"soc": "SM8650"})
    options = Options(runtimes=("onnxruntime", "qnn"), settings={"soc": "sm8750"})
    assert [target.name for target in options.targets() if isinstance(target, BackendTarget)] == ["onnxruntime"]


@pytest.mark.slow
def test_exported_bundle_runs_on_the_emulator(compiler, tmp_path):
    """Export a network of random weights end to end; about two minutes."""
    import torch

    from cris_edge import Segmenter
    from cris_edge.bundle import Bundle
    from cris_edge.doctor.verification import verify
    from runtimes.export import export
    from training.checkpoint import save_model
    from training.model import CRIS, Architecture

    torch.manual_seed(0)
    sizes = {"vision_layers": (1, 1, 1, 1), "vision_width": 8, "embed_dim": 32, "text_width": 32, "text_layers": 1}
    model = CRIS(
        Architecture(input_size=128, image_resolution=128, decoder_layers=1, decoder_heads=4, ffn_dim=64, **sizes)
    )
    save_model(tmp_path / "model.pt", model, recipe="random weights")
    options = Options(runtimes=("onnxruntime", "qnn"), settings={"soc": "SM8650"})
    path = export(tmp_path / "model.pt", tmp_path / "bundle", options)
    bundle = Bundle.open(path)
    assert bundle.manifest.runtimes["qnn"]["mask_decoder"] == "qnn/SM8650/mask_decoder.onnx"
    assert {row["graph"] for row in bundle.manifest.parity if row["runtime"] == "qnn"} >= {"image_encoder", "chain"}
    assert Path(path / "qnn" / "mask_decoder.onnx").is_file()
    with Segmenter(bundle, runtime="qnn", device="emulator", cache_dir=None) as segmenter:
        assert segmenter.info.device == "emulator"
    assert "qnn" in {check.runtime for check in verify(path).checks if check.outcome == "passed"}
