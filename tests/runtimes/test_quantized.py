"""A quantized PyTorch module lowered to both runtimes gives the same numbers, in integers."""

from __future__ import annotations

import copy
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cris_edge.backends import ov
from cris_edge.errors import ExportError
from quantization.post_training import Scheme, quantize_module
from quantization.quantizers import quantizers
from runtimes import onnx_graph
from runtimes.integer_graph import integer_share, lower
from runtimes.quantized import FORMS, _exportable, module_in_form, trace


class Layers(nn.Module):
    """Parts of the deploy modules: added convolutions, pooling, attention, a norm."""

    input_names = ("image",)
    output_names = ("out",)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner, self.outer, self.shortcut = (nn.Conv2d(16, 16, size, padding=size // 2) for size in (3, 1, 1))
        self.norm, self.query, self.key, self.value = nn.LayerNorm(16), *(nn.Linear(16, 16) for _ in range(3))
        self.last = nn.Linear(16, 8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(image))
        x = F.relu(self.outer(F.avg_pool2d(F.relu(self.inner(x)), 2)) + self.shortcut(F.avg_pool2d(x, 2)))
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        weights = torch.softmax(torch.matmul(self.query(tokens), self.key(tokens).transpose(1, 2)), -1)
        return self.last(tokens + torch.matmul(weights, self.value(tokens)))


@pytest.fixture(scope="module")
def samples() -> list[tuple[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(1, 3, 12, 12, generator=generator),) for _ in range(4)]


@pytest.fixture(scope="module")
def quantized(samples: list[tuple[torch.Tensor]]) -> nn.Module:
    torch.manual_seed(0)
    return quantize_module(Layers().eval(), samples, Scheme(smooth=True))


@pytest.fixture(scope="module")
def modules(quantized: nn.Module, samples: list[tuple[torch.Tensor]]) -> dict[str, nn.Module]:
    inputs = {"image": samples[0][0]}
    return {form: module_in_form("image_encoder", quantized, inputs, ("out",), form) for form in FORMS}


@pytest.fixture(scope="module")
def graphs(modules: dict[str, nn.Module], samples: list[tuple[torch.Tensor]]) -> dict[str, onnx.ModelProto]:
    inputs = {"image": samples[0][0]}
    return {form: trace("image_encoder", module, inputs, ("out",), form) for form, module in modules.items()}


def close(found: np.ndarray, expected: np.ndarray) -> None:
    # Sums are rounded in another order, so now and then a value falls on the other side of a border between levels.
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
    assert np.abs(found - expected).mean() < 0.005 * np.abs(expected).max()


def test_onnx_runtime_matches_pytorch_in_integers(
    graphs: dict[str, onnx.ModelProto],
    modules: dict[str, nn.Module],
    samples: list[tuple[torch.Tensor]],
    tmp_path: Path,
) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(
        graphs["onnxruntime"].SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for (image,) in samples:
        with torch.no_grad():
            close(session.run(None, {"image": image.numpy()})[0], modules["onnxruntime"](image).numpy())
    found = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert found["QLinearConv"] == 4 and found["QGemm"] == 4
    assert found["MatMulIntegerToFloat"] >= 1  # queries times keys, at least
    assert found["MatMulIntegerToFloat"] + found["MatMul"] == 2
    assert found["QLinearAveragePool"] == 2
    assert found["Conv"] == found["Gemm"] == found["MatMulNBits"] == found["FusedConv"] == 0


def test_openvino_matches_pytorch_in_integers(
    graphs: dict[str, onnx.ModelProto], modules: dict[str, nn.Module], samples: list[tuple[torch.Tensor]]
) -> None:
    core = ov.shared_core(ov.load())
    read = core.read_model(BytesIO(graphs["openvino"].SerializeToString()))
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for (image,) in samples:
        with torch.no_grad():
            close(compiled({"image": image.numpy()})[0], modules["openvino"](image).numpy())
    infos = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    kinds = Counter((info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos)
    assert kinds["Convolution", "u8"] + kinds["Convolution", "i8"] == 4
    assert kinds["FullyConnected", "u8"] + kinds["FullyConnected", "i8"] == 4


def test_weights_are_integers_and_operators_standard(graphs: dict[str, onnx.ModelProto]) -> None:
    for graph in graphs.values():
        assert integer_share(graph) > 0.99
        assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}


def test_openvino_adds_in_float(graphs: dict[str, onnx.ModelProto]) -> None:
    def activations(graph: Any) -> int:
        return sum(node.op_type == "QuantizeLinear" for node in graph.graph.node)

    assert activations(graphs["openvino"]) == activations(graphs["onnxruntime"]) - 2  # of the two that are added


def test_biases_match_the_integer_graph(
    quantized: nn.Module, modules: dict[str, nn.Module], samples: list[tuple[torch.Tensor]]
) -> None:
    rounded: dict[str, Any] = {}
    inputs = {"image": samples[0][0]}
    with _exportable(modules["onnxruntime"], inputs):
        lower(onnx_graph.trace("image_encoder", modules["onnxruntime"], inputs, ("out",)), "onnxruntime", rounded)
    before, settled = (dict(module.named_parameters()) for module in (quantized, modules["onnxruntime"]))
    assert set(rounded) == {name for name in settled if name.endswith("bias") and not name.startswith("norm")}
    for name, values in rounded.items():
        assert np.allclose(settled[name].detach().numpy(), values, rtol=1e-6)
        assert 0 < (settled[name] - before[name]).abs().max() < 1e-2


def test_export_does_not_change_the_module(quantized: nn.Module, samples: list[tuple[torch.Tensor]]) -> None:
    before = [(hook.low, hook.high, hook.enabled, hook.scale.requires_grad) for _, hook in quantizers(quantized)]
    with torch.no_grad():
        expected = quantized(*samples[1])
        trace("image_encoder", quantized, {"image": samples[0][0]}, ("out",), "openvino")
        assert torch.allclose(quantized(*samples[1]), expected, atol=1e-6)
    after = [(hook.low, hook.high, hook.enabled, hook.scale.requires_grad) for _, hook in quantizers(quantized)]
    assert before == after


def test_excluded_layer_stays_float(quantized: nn.Module, samples: list[tuple[torch.Tensor]]) -> None:
    excluded = copy.deepcopy(quantized)
    for place, hook in quantizers(excluded):
        if "last/linear" in place:
            hook.enabled = False
    graph = trace("image_encoder", excluded, {"image": samples[0][0]}, ("out",), "onnxruntime")
    floats = [tensor for tensor in graph.graph.initializer if list(tensor.dims) in ([8, 16], [16, 8])]
    assert [tensor.data_type for tensor in floats] == [onnx.TensorProto.FLOAT]


@pytest.mark.slow
def test_a_network_in_both_runtimes_against_pytorch(tmp_path: Path) -> None:
    """Lower and compare all three graphs, and refuse float ones."""
    from cris_edge.bundle.manifest import GRAPHS
    from cris_edge.tokenizer import Tokenizer
    from quantization.deploy_network import DeployNetwork
    from quantization.quantized_checkpoint import deploy
    from runtimes import onnx_graph
    from runtimes.network import example_inputs
    from runtimes.parity import check, compiled
    from runtimes.probes import draw
    from runtimes.quantized import QuantizedReference, in_form
    from runtimes.targets import openvino_ir
    from training.model import CRIS, Architecture

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"input_size": 32, "image_resolution": 32, "word_len": 17, "vision_width": 8}
    sizes |= {"vision_layers": (1, 1, 1, 1), "embed_dim": 16, "text_width": 16, "text_layers": 1, "ffn_dim": 32}
    bare = deploy(CRIS(Architecture(**sizes, decoder_layers=1, decoder_heads=2)))
    probes = draw(32, 17, Tokenizer(), {})
    images, texts = ([torch.from_numpy(array) for _, array in group] for group in (probes.images, probes.prompts))
    samples: dict[str, list[Any]] = {"image_encoder": [(x,) for x in images], "text_encoder": [(x,) for x in texts]}
    with torch.no_grad():
        known = [{**bare.encode_image(images[i]), **bare.encode_text(texts[j])} for i, j in probes.pairs]
    samples["mask_decoder"] = [tuple(tensors[name] for name in bare.mask_decoder.input_names) for tensors in known]
    modules = [quantize_module(module, samples[name], Scheme()) for name, module in bare.graphs.items()]
    network = DeployNetwork(bare.architecture, modules).eval()
    examples = example_inputs(modules, images[0].numpy(), texts[0].numpy())
    for runtime in FORMS:
        formed = in_form(network, runtime)
        modules = list(formed.graphs.values())
        with torch.no_grad():
            logits = [formed(images[i], texts[j]).numpy() for i, j in probes.pairs]
        reference = QuantizedReference(probes, modules, logits, 0.35)
        specs, files = {}, {}
        for name, module in zip(GRAPHS, modules, strict=True):
            graph = trace(name, module, examples[name], module.output_names, runtime)
            specs[name], files[name] = (
                onnx_graph.spec(graph),
                tmp_path / f"{name}.{'onnx' if runtime == 'onnxruntime' else 'xml'}",
            )
            (onnx_graph if runtime == "onnxruntime" else openvino_ir).write(graph, files[name])
        with compiled(runtime, files, specs, "float32") as (found, precision):
            assert precision == "int8+float32"
            rows = check(reference, found, runtime, precision)
            assert [row["graph"] for row in rows] == [*GRAPHS, "chain"]
    with pytest.raises(ExportError, match="does not run these graphs in integers"):
        reference.tolerances("float32")


def test_unknown_form_is_refused() -> None:
    with pytest.raises(ExportError, match="tensorrt"):
        trace("image_encoder", nn.Identity(), {}, (), "tensorrt")
