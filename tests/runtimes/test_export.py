"""Export writes a complete, verified bundle or nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, numpy_helper

from cris_edge import Segmenter
from cris_edge.bundle import Bundle
from cris_edge.bundle.manifest import GRAPHS
from cris_edge.errors import CheckpointError, ExportError, OptionError, RuntimeMissingError
from cris_edge.image import preprocess
from quantization.deploy_network import DeployNetwork
from runtimes import onnx_graph
from runtimes.accuracy import require
from runtimes.export import Options, export, main
from runtimes.targets.openvino_ir import OpenVinoTarget
from runtimes.targets.ort_onnx import OnnxTarget
from training.checkpoint import load_model, save_model
from training.model import CRIS, Architecture

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

BOTH = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def checkpoint(folder) -> Path:
    """A CRIS with every part of a large one, random weights, and norms that are not the identity."""
    torch.manual_seed(0)
    model = CRIS(architecture())
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    path = folder / "model.pth"
    save_model(path, model, recipe="random weights")
    return path


def architecture(**changes) -> Architecture:
    sizes = {
        "input_size": 128,
        "image_resolution": 128,
        "vision_layers": (1, 1, 1, 1),
        "vision_width": 8,
        "embed_dim": 32,
        "text_width": 32,
        "text_layers": 1,
        "decoder_layers": 1,
        "decoder_heads": 2,
        "ffn_dim": 32,
    }
    return Architecture(**(sizes | changes))


@pytest.fixture(scope="module")
def bundle(folder, checkpoint) -> Bundle:
    return Bundle.open(export(checkpoint, folder / "bundle", Options()), thorough=True)


def test_bundle_has_three_graphs_per_runtime(bundle):
    assert set(bundle.manifest.runtimes) == set(BOTH)
    for runtime, suffix in zip(BOTH, (".onnx", ".xml"), strict=True):
        assert {name: path.name for name, path in bundle.graph_files(runtime).items()} == {
            name: name + suffix for name in GRAPHS
        }


def test_manifest_describes_the_model(bundle, checkpoint):
    manifest = bundle.manifest
    assert (manifest.name, manifest.input_size, manifest.word_len, manifest.precision) == ("bundle", 128, 17, "float32")
    assert manifest.provenance["recipe"] == "random weights"
    assert len(manifest.provenance["checkpoint_sha256"]) == 64
    assert set(manifest.provenance["versions"]) >= {"torch", *BOTH}
    assert Architecture.from_dict(dict(manifest.architecture)) == architecture()
    modules = load_model(checkpoint).deploy()
    for module, (name, graph) in zip(modules, manifest.graphs.items(), strict=True):
        assert tuple(tensor.name for tensor in graph.inputs) == tuple(module.input_names), name
        assert tuple(tensor.name for tensor in graph.outputs) == tuple(module.output_names), name
        assert graph.macs > 10_000


def test_every_graph_and_the_chain_are_compared_in_every_runtime(bundle):
    float32 = {(row["runtime"], row["graph"]) for row in bundle.manifest.parity if row["precision"] == "float32"}
    assert float32 == {(runtime, graph) for runtime in BOTH for graph in (*GRAPHS, "chain")} | {("pytorch", "chain")}
    assert all(row["max_abs_diff"] <= row["tolerance"] for row in bundle.manifest.parity)
    stated = {(row["graph"], row["precision"]) for row in bundle.manifest.parity if row["runtime"] == "pytorch"}
    assert stated == {("chain", precision) for precision in ("float32", "bfloat16", "float16")}
    chains = [row for row in bundle.manifest.parity if row["graph"] == "chain" and row["precision"] == "float32"]
    assert all(row["tolerance"] < 4e-3 and row["mask_iou"] > 0.99 for row in chains)


def test_golden_logits_equal_the_networks(bundle, checkpoint):
    golden = bundle.golden()
    assert len(golden.images) == 2 and len(set(golden.prompts)) == 2
    assert not np.array_equal(golden.images[0], golden.images[1])
    np.testing.assert_array_equal(bundle.tokenizer(golden.prompts, length=17), golden.tokens)
    model = load_model(checkpoint)
    for image, tokens, logits in zip(golden.images, golden.tokens, golden.logits, strict=True):
        with torch.inference_mode():
            expected = model(torch.from_numpy(preprocess(image, 128)[0]), torch.from_numpy(tokens[None]))[0].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert golden.logits.std() > 0.01


def test_onnx_runtime_alone_reproduces_the_golden_logits(bundle):
    import onnxruntime

    golden, files = bundle.golden(), bundle.graph_files("onnxruntime")
    known = {"image": preprocess(golden.images[1], 128)[0], "tokens": golden.tokens[1:]}
    for path in files.values():
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs = session.run(None, {tensor.name: known[tensor.name] for tensor in session.get_inputs()})
        known |= dict(zip((tensor.name for tensor in session.get_outputs()), outputs, strict=True))
    np.testing.assert_allclose(known["logits"], golden.logits[1:], atol=1e-3)


def test_onnx_files_are_pinned_self_contained_and_free_of_local_paths(bundle, root):
    for path in bundle.graph_files("onnxruntime").values():
        model = onnx.load(path, load_external_data=False)
        assert (model.ir_version, [(entry.domain, entry.version) for entry in model.opset_import]) == (8, [("", 18)])
        assert all(not tensor.external_data for tensor in model.graph.initializer)
        assert all(tensor.data_type != TensorProto.FLOAT16 for tensor in model.graph.initializer)
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    for path in bundle.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(root).encode() not in content and str(bundle.path.parent).encode() not in content, path


def test_float16_storage_halves_the_bytes_and_changes_the_logits_little(folder, checkpoint, bundle):
    options = Options(
        precision="fp16", settings={"shared_onnx": True}, data="scenes:val:2:3", max_drop=100, name="half"
    )
    half = Bundle.open(export(checkpoint, folder / "half", options))
    assert half.graph_files("openvino") == half.graph_files("onnxruntime")
    assert not list(half.path.rglob("*.xml"))
    for name, path in half.graph_files("onnxruntime").items():
        assert path.stat().st_size < 0.75 * bundle.graph_files("onnxruntime")[name].stat().st_size
    rows = {(row["runtime"], row["graph"], row["precision"]): row for row in half.manifest.parity}
    assert rows["onnxruntime", "chain", "float32"]["max_abs_diff"] < 1e-3  # from the stored weights nothing is lost
    rounded = rows["pytorch", "chain", "float32, weights stored as float16"]
    assert 0 < rounded["max_abs_diff"] < rounded["tolerance"]
    assert np.abs(half.golden().logits - bundle.golden().logits).max() == pytest.approx(rounded["max_abs_diff"], rel=10)
    metrics = {row["runtime"]: row for row in half.manifest.metrics}
    assert set(metrics) == {"pytorch", *BOTH}
    for row in metrics.values():
        assert (row["dataset"], row["split"], row["samples"]) == ("scenes", "val", 8)
        assert 0 <= row["mIoU"] <= 100 and {"oIoU", "Pr@50", "Pr@90", "precision"} <= set(row)


def test_corrupted_graph_stops_the_export_and_leaves_nothing(tmp_path, checkpoint, monkeypatch):
    lower = OnnxTarget.lower

    def corrupt(target, name, job):
        lowered = lower(target, name, job)
        path = lowered.path
        if name == "mask_decoder":
            model = onnx.load(path)
            # Of an attention: a channel of a convolution may be dead behind its ReLU, and then no one sees it.
            weight = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [32, 32])
            values = numpy_helper.to_array(weight).copy()
            values[16, 16] += 10
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
            onnx_graph.write(model, path)
        return lowered

    monkeypatch.setattr(OnnxTarget, "lower", corrupt)
    options = Options(runtimes=("onnxruntime",))
    with pytest.raises(ExportError, match=r"mask_decoder .* onnxruntime .* float32: logits differs by \d"):
        export(checkpoint, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


def test_failed_lowering_leaves_the_old_bundle(checkpoint, bundle, monkeypatch):
    def fail(target, name, job):
        (job.folder / "half-written").write_text("...")
        raise ExportError("no room")

    before = {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")}
    monkeypatch.setattr(OpenVinoTarget, "lower", fail)
    with pytest.raises(ExportError, match="no room"):
        export(checkpoint, bundle.path, Options(runtimes=("openvino",), overwrite=True))
    assert {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")} == before
    assert not [path for path in bundle.path.parent.iterdir() if path.name.startswith(".")]


def test_module_that_pytorch_cannot_export_is_named():
    class Opaque(torch.nn.Module):
        def forward(self, x):
            return torch.from_numpy(np.sort(x.numpy()))

    with pytest.raises(ExportError, match="PyTorch could not export text_encoder"):
        onnx_graph.trace("text_encoder", Opaque().eval(), {"tokens": torch.zeros(1, 4)}, ["sorted"])


def test_weights_beyond_float16_stay_unchanged():
    layer = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1e6, 1.0], [0.1, 2.0]]))
    before = layer.weight.clone()
    onnx_graph.round_to_float16(layer)
    assert torch.equal(layer.weight, before)
    graph = onnx.helper.make_graph([], "g", [], [], [numpy_helper.from_array(before.detach().numpy(), "w")])
    assert onnx_graph.store_as_float16(onnx.helper.make_model(graph)) == 0


def test_int8_needs_a_quantized_checkpoint(tmp_path, checkpoint):
    with pytest.raises(ExportError, match="quantized checkpoint"):
        export(checkpoint, tmp_path / "out", Options(precision="int8"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_quantized_checkpoint_is_exported_in_the_form_of_each_runtime(tmp_path, shared):
    from quantization.post_training import Scheme, quantize_module
    from quantization.quantized_checkpoint import deploy, save_quantized
    from runtimes.network import example_inputs

    torch.manual_seed(0)
    bare = deploy(CRIS(architecture(input_size=32, image_resolution=32)))
    image = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    examples = example_inputs(tuple(bare.graphs.values()), image, np.array([[49406, 320, 49407] + [0] * 14]))
    modules = [
        quantize_module(module, [tuple(examples[name].values())], Scheme()) for name, module in bare.graphs.items()
    ]
    save_quantized(tmp_path / "int8.pt", DeployNetwork(bare.architecture, modules).eval())
    options = Options(precision="int8", settings={"shared_onnx": True} if shared else {})
    bundle = Bundle.open(export(tmp_path / "int8.pt", tmp_path / "bundle", options), thorough=True)
    manifest = bundle.manifest
    assert manifest.precision == "int8"
    chains = {(row["runtime"], row["precision"]) for row in manifest.parity if row["graph"] == "chain"}
    assert chains >= {(runtime, "int8+float32") for runtime in (*BOTH, "pytorch")}
    forms = {row["form"] for row in manifest.parity if row["runtime"] == "pytorch"}
    own = bundle.golden().own_logits
    if shared:
        assert forms == {"onnxruntime"} and not own
        assert bundle.graph_files("openvino") == bundle.graph_files("onnxruntime")
    else:
        assert forms == set(BOTH) and set(own) == {"openvino"}
        assert set(manifest.runtimes["openvino"].values()) == {f"openvino/{name}.xml" for name in GRAPHS}


def test_other_vocabularies_are_refused(tmp_path):
    path = tmp_path / "words.pth"
    save_model(path, CRIS(architecture(vocab_size=1000)))
    with pytest.raises(ExportError, match="1000 tokens"):
        export(path, tmp_path / "out", Options())
    assert list(tmp_path.iterdir()) == [path]


def test_missing_runtime_is_named_with_its_pip_command(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr("cris_edge.backends.registry.is_available", lambda name: name != "openvino")
    with pytest.raises(RuntimeMissingError, match="pip install openvino"):
        export(checkpoint, tmp_path / "out", Options())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runtimes": ("onnxruntime", "tensorflow")}, "tensorflow"),
        ({"runtimes": ()}, "No runtime"),
        ({"precision": "fp8"}, "fp8"),
        ({"max_drop": 0.5}, "--data"),
        ({"data": "x.jsonl", "max_drop": -1.0}, "-1"),
        ({"settings": {"soc": "SM8550"}}, "SM8550"),
    ],
)
def test_invalid_options_are_refused_before_any_work(given, message):
    with pytest.raises(OptionError, match=message):
        Options(**given)


def test_drop_beyond_the_limit_fails_with_the_metrics():
    before = {"mIoU": 61.0}
    after = {"mIoU": 60.2, "runtime": "openvino", "precision": "bfloat16"}
    require(before, after, "val.jsonl", 0.9)
    require(before, after, "val.jsonl", None)
    with pytest.raises(ExportError, match=r"openvino in bfloat16 .* 60\.20 on val\.jsonl, 0\.80 points below"):
        require(before, after, "val.jsonl", 0.5)
    with pytest.raises(ExportError):
        require(before, {**after, "mIoU": float("nan")}, "val.jsonl", 0.5)


def test_command_line_reports_errors_in_one_line(tmp_path):
    wrong = tmp_path / "notes.txt"
    wrong.write_text("not a checkpoint")
    result = CliRunner().invoke(main, ["--checkpoint", str(wrong), "--output", str(tmp_path / "out")])
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "notes.txt" in result.stderr
    assert list(tmp_path.iterdir()) == [wrong]


@pytest.mark.parametrize(
    "arguments",
    [[], ["--runtimes", "tensorflow"], ["--precision", "fp8"], ["--max-drop", "0.5"], ["--max-drop", "much"]],
)
def test_wrong_usage_exits_with_2(arguments, tmp_path):
    given = ["--checkpoint", "x", "--output", str(tmp_path / "out"), *arguments] if arguments else []
    assert CliRunner().invoke(main, given).exit_code == 2


def test_missing_data_stops_before_any_work(tmp_path, checkpoint):
    arguments = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "out"), "--data", "absent.jsonl"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "absent.jsonl" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_argument_that_contradicts_the_checkpoint_is_an_error(tmp_path, checkpoint):
    with pytest.raises(CheckpointError, match="word_len"):
        export(checkpoint, tmp_path / "out", Options(word_len=22))
    assert list(tmp_path.iterdir()) == []


def test_exporter_restores_logging():
    level = logging.getLogger("torch.onnx").level
    with pytest.raises(ExportError):
        onnx_graph.trace("g", torch.nn.Identity(), {}, ["y"])
    assert logging.getLogger("torch.onnx").level == level


def test_a_presence_head_is_exported_and_compared(folder):
    torch.manual_seed(0)
    path = folder / "presence.pth"
    save_model(path, CRIS(architecture(presence=True)))
    data = "scenes:val:14:3:generalized"
    bundle = Bundle.open(export(path, folder / "presence", Options(precision="fp32", data=data, max_drop=100)))
    manifest = bundle.manifest
    assert [tensor.name for tensor in manifest.graphs["mask_decoder"].outputs] == ["logits", "presence"]
    assert manifest.presence.source == "head" and 0 <= manifest.presence.min_presence <= 0.7
    assert manifest.presence.metrics["not_matching"] >= 10 and manifest.presence.metrics["T-acc"] >= 90
    scored = {row["runtime"]: row["generalized"] for row in manifest.metrics}
    assert set(scored) == {"pytorch", *BOTH}
    for row in scored.values():
        assert row["AUROC"] == pytest.approx(scored["pytorch"]["AUROC"], abs=3)
    model = load_model(path)
    image, tokens = inputs(bundle)
    expected = model.forward_with_presence(torch.from_numpy(image), torch.from_numpy(tokens))[1].sigmoid().item()
    for runtime in BOTH:
        with Segmenter(bundle, runtime=runtime, precision="float32") as segmenter:
            assert segmenter.logits_and_presence(image, tokens)[1] == pytest.approx(expected, abs=1e-4)


def inputs(bundle):
    golden = bundle.golden()
    return preprocess(golden.images[0], bundle.manifest.input_size)[0], golden.tokens[:1]


def test_a_network_without_a_head_is_calibrated_where_there_are_negatives(folder, checkpoint, caplog):
    data = "scenes:val:14:3:generalized"
    bundle = Bundle.open(export(checkpoint, folder / "calibrated", Options(data=data, max_drop=100)))
    presence = bundle.manifest.presence
    assert presence.source == "calibration"
    assert presence.metrics["matching"] + presence.metrics["not_matching"] >= 40
    with Segmenter(bundle, runtime="onnxruntime") as segmenter:
        _, found = segmenter.logits_and_presence(*inputs(bundle))
        assert 0 < found < 1
    with caplog.at_level(logging.INFO, logger="cris_edge.runtimes"):
        plain = Bundle.open(export(checkpoint, folder / "uncalibrated", Options(data="scenes:val:2:3", max_drop=100)))
    assert plain.manifest.presence is None
    assert "presence is not calibrated: the data has 0 prompts that match nothing" in caplog.text
