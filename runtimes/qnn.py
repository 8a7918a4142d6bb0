"""The network for Qualcomm's HTP: each graph in integers throughout, its bits chosen by what they cost, compiled.

The bundle receives both forms: ``qnn/NAME.onnx``, which any Qualcomm NPU can compile for itself, and
``qnn/CHIP/NAME.onnx``, compiled for one chip. The provider's emulator runs the latter too, so that what is shipped is
what is checked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from onnx import helper

from cris_edge.backends import ort, qnn
from cris_edge.backends.base import BackendOptions
from cris_edge.bundle.manifest import GRAPHS, GraphSpec, TensorSpec
from cris_edge.errors import ExportError
from cris_edge.image import preprocess
from cris_edge.metrics import logits_agreement
from cris_edge.tokenizer import Tokenizer
from quantization.quantizers import FakeQuantizer
from runtimes import onnx_graph, qdq
from runtimes.cost import multiply_accumulates
from runtimes.htp import Compiler
from runtimes.network import Array, Graph, Network, Tensors, example_inputs, of_modules
from runtimes.parity import CHAIN, largest_difference
from runtimes.probes import Probes
from training.data.samples import SceneSource, Source
from training.model import Architecture

logger = logging.getLogger("cris_edge.runtimes")

NAME = qnn.NAME
CALIBRATED_ON = 48  # pairs of an image and a sentence that give the ranges of activations
CHOSEN_ON = 16  # further pairs, on which the bits are chosen
TOLERATED = 0.01  # what fewer bits in one graph may cost of the masks' mean IoU with those of float32
BUDGET = 120.0  # seconds of emulation after the first pair; a large network takes minutes for one
SLACK = 4.0  # times what integers cost on the CPU: the HTP rounds at other places, and a step early on grows
SEED = 6

# What is computed around the graphs, and where; the same for every bundle.
SPLIT = {
    "npu": list(GRAPHS),
    "cpu": ["letterbox", "tokenizer", "sigmoid and resizing of the mask"],
}


@dataclass
class Lowered:
    """What a lowering adds to a bundle.

    Attributes:
        graphs: The tensors of each graph.
        files: The compiled file of each graph.
        parity: Entries of the manifest.
        record: What the manifest says about the NPU.
        simulated: The network in integers, computed by ONNX Runtime on the CPU.
        precision: Of it.
    """

    graphs: dict[str, GraphSpec] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    parity: list[dict[str, Any]] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    simulated: Network = field(default_factory=lambda: Network({}))
    precision: str = "int8"

    @property
    def simulation(self) -> str:
        """What `simulated` computes in, for reports."""
        return f"{self.precision}, simulated on the CPU"


@dataclass(frozen=True)
class Pair:
    """An image and a sentence with what float32 makes of them."""

    inputs: Tensors
    features: Tensors
    logits: Array


def lower(
    modules: Sequence[Any],
    architecture: Architecture,
    source: Source | None,
    probes: Probes,
    threshold: float,
    folder: Path,
    compiler: Compiler,
    step: Callable[[str], None] = lambda _: None,
) -> Lowered:
    """Write both forms of the three deploy modules into `folder`, and compare them on the golden pairs.

    Args:
        modules: In float, or quantized; the quantizers of the latter are left out, ranges are learnt anew.
        architecture: Of the CRIS that they came from.
        source: Where images and sentences are taken from; drawn scenes where it is None.
        probes: With the golden pairs.
        threshold: On the sigmoid of logits, for masks.
        folder: Of the bundle.
        compiler: For the chip.
        step: Told what begins.

    Raises:
        ExportError: A graph cannot be quantized or compiled, or the emulator differs from the graphs in integers.
    """
    lowered = Lowered()
    with _in_float(modules):
        step("calibrate qnn")
        network = of_modules(modules)
        pairs = list(_pairs(network, source, architecture))
        examples = example_inputs(modules, probes.images[0][1], probes.sentences[0][1])
        chosen: dict[str, str] = {}
        simulated: dict[str, Graph] = {}
        for name, module in zip(GRAPHS, modules, strict=True):
            step(f"quantize {name}")
            traced = onnx_graph.trace(name, module, examples.pop(name), module.output_names)
            lowered.graphs[name] = _spec(traced)
            chosen[name], model = _choose(name, traced, network, pairs, threshold)
            del traced
            path = folder / NAME / f"{name}.onnx"
            helper.set_model_props(model, {qnn.ACTIVATIONS: chosen[name]})
            onnx_graph.write(model, path)
            del model
            step(f"compile {name}")
            lowered.files[name] = path.parent / compiler.soc.name / path.name
            compiler.compile(path, lowered.files[name])
            simulated[name] = OnCpu(path)
        golden = probes.golden()
        float_logits = [_run(network, golden, pair)[-1] for pair in golden.pairs]
    lowered.simulated = Network(simulated)
    lowered.precision = "int8+int16" if any("int16" in bits for bits in chosen.values()) else "int8"
    step("emulate qnn")
    lowered.parity = _compare(lowered, golden, float_logits, threshold)
    lowered.record = {
        "soc": compiler.soc.name,
        "htp_arch": f"v{compiler.soc.arch}",
        "compiler": f"onnxruntime-qnn {compiler.version}",
        "weights": "int8",
        "activations": chosen,
        "sources": {name: f"{NAME}/{name}.onnx" for name in GRAPHS},
        "split": SPLIT,
    }
    return lowered


def golden_logits(lowered: Lowered, probes: Probes) -> Array:
    """What the graphs in integers give for the golden pairs."""
    golden = probes.golden()
    return np.concatenate([_run(lowered.simulated, golden, pair)[-1] for pair in golden.pairs])


@contextmanager
def _in_float(modules: Sequence[Any]) -> Iterator[None]:
    """Switch the quantizers of PyTorch off, where there are any."""
    hooks = [part for module in modules for part in module.modules() if isinstance(part, FakeQuantizer)]
    before = [hook.enabled for hook in hooks]
    for hook in hooks:
        hook.enabled = False
    try:
        yield
    finally:
        for hook, was in zip(hooks, before, strict=True):
            hook.enabled = was


def _pairs(network: Network, source: Source | None, architecture: Architecture) -> Iterator[Pair]:
    """Images with a sentence each, and what float32 makes of them; every sentence where there are few images."""
    wanted = CALIBRATED_ON + CHOSEN_ON
    source = source or SceneSource("train", wanted, SEED)
    generator, tokenizer = np.random.default_rng(SEED), Tokenizer()
    count = 0
    for index in generator.permutation(min(len(source), 1 << 24)):
        example = source.load(int(index), architecture.input_size)
        pixels = preprocess(example.image, architecture.input_size)[0]
        seen = network.encode_image(pixels)
        texts = example.sentences
        for text in texts if len(source) < wanted else [texts[int(generator.integers(len(texts)))]]:
            tokens = tokenizer([text], length=architecture.word_len)
            features = {**seen, **network.encode_text(tokens)}
            inputs = {"image": pixels, "tokens": tokens}
            yield Pair(inputs, features, network.decode(seen, features))
            count += 1
            if count == wanted:
                return
    if count < wanted:
        logger.warning(
            "%s has %d pairs of image and sentence to calibrate with; %d are asked for", source.name, count, wanted
        )


def _choose(
    name: str, model: onnx.ModelProto, network: Network, pairs: Sequence[Pair], threshold: float
) -> tuple[str, onnx.ModelProto]:
    """The fewest bits that cost no more than `TOLERATED` against 16 everywhere, and the graph with them."""
    inputs = [value.name for value in model.graph.input]
    known = [{**pair.features, **pair.inputs} for pair in pairs]
    judged = slice(CALIBRATED_ON, None) if len(pairs) > CALIBRATED_ON else slice(None)
    ranges = qdq.Ranges(model, [{key: row[key] for key in inputs} for row in known[:CALIBRATED_ON]])
    widest = qdq.ACTIVATIONS[-1]
    best = qdq.quantize(ranges, widest)
    most = _agreement(name, best, network, pairs[judged], threshold)
    logger.info("%s, activations of %s: mean IoU of masks with float32 %.4f", name, widest, most)
    for bits in qdq.ACTIVATIONS[:-1]:
        if "convolutions" in bits and not any(node.op_type == "Conv" for node in model.graph.node):
            continue
        narrower = qdq.quantize(ranges, bits)
        agreement = _agreement(name, narrower, network, pairs[judged], threshold)
        logger.info("%s, activations of %s: mean IoU of masks with float32 %.4f", name, bits, agreement)
        if agreement >= most - TOLERATED:
            return bits, narrower
    return widest, best


def _agreement(name: str, model: onnx.ModelProto, network: Network, pairs: Sequence[Pair], threshold: float) -> float:
    """Mean IoU of the masks of float32 with those of a network of which one graph is in integers."""
    graph = OnCpu(model.SerializeToString())
    found = []
    for pair in pairs:
        known = {**pair.inputs, **pair.features}
        made = graph(known)
        logits = made["logits"] if name == "mask_decoder" else network.decode(known, made)
        found.append(logits_agreement(logits, pair.logits, threshold))
    return float(np.mean(found))


class OnCpu:
    """A quantized graph, computed by ONNX Runtime on the CPU: the reference for what an NPU makes of it.

    Args:
        model: A file, or its content.
    """

    def __init__(self, model: Path | bytes) -> None:
        runtime = ort.load()
        settings = runtime.SessionOptions()
        settings.log_severity_level = 4
        content = str(model) if isinstance(model, Path) else model
        try:
            self._session = runtime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # exceptions of ONNX Runtime have no base of their own
            raise ExportError(f"ONNX Runtime cannot run a graph in integers on the CPU: {error}.") from error
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Array]) -> Tensors:
        """Compute the outputs by name."""
        taken = qdq.in_reach({name: inputs[name] for name in self._inputs})
        return dict(zip(self._outputs, self._session.run(self._outputs, taken), strict=True))


def _run(network: Network, probes: Probes, pair: tuple[int, int]) -> tuple[Tensors, Tensors, Array]:
    seen, text = network.encode_image(probes.images[pair[0]][1]), network.encode_text(probes.sentences[pair[1]][1])
    return seen, text, network.decode(seen, text)


def _compare(lowered: Lowered, golden: Probes, float_logits: Sequence[Array], threshold: float) -> list[dict[str, Any]]:
    """Run the golden pairs through the compiled graphs, and hold them against the same integers on the CPU.

    Two machines that round integers at different places differ by single steps, and a step early on by more later: the
    measure is what the integers themselves cost, as in `runtimes.quantized`.
    """
    from cris_edge.backends import registry

    runtime, _ = qnn.load()
    found = qnn.devices(runtime)
    device = qnn.EMULATOR if qnn.EMULATOR in found else qnn.NPU
    backend = registry.create(NAME, BackendOptions(device=device))
    compiled = Network({name: backend.compile(path, lowered.graphs[name]) for name, path in lowered.files.items()})
    worst: dict[str, dict[str, Any]] = {}
    began, pairs = perf_counter(), 0
    try:
        for pair, exact in zip(golden.pairs, float_logits, strict=True):
            if pairs and perf_counter() - began > BUDGET:
                break
            theirs = _run(lowered.simulated, golden, pair)
            ours = _run(compiled, golden, pair)
            pairs += 1
            for graph, mine, reference in zip(GRAPHS, ours[:2], theirs[:2], strict=False):
                for tensor, values in reference.items():
                    _keep_worst(worst, graph, tensor, mine[tensor], values, threshold)
            if perf_counter() - began <= BUDGET:
                fed = compiled.decode(*theirs[:2])  # without what the encoders' differences make of it
                _keep_worst(worst, "mask_decoder", "logits", fed, theirs[2], threshold)
            row = _keep_worst(worst, CHAIN, "logits", ours[2], theirs[2], threshold)
            cost = max(largest_difference(theirs[2], exact), float(np.abs(exact).max()) / 255)
            row["tolerance"] = max(row.get("tolerance", 0.0), SLACK * cost)
            row["mask_iou_float32"] = min(logits_agreement(ours[2], exact, threshold), row.get("mask_iou_float32", 1.0))
            row["foreground"] = max(row.get("foreground", 0.0), float((exact > _level(threshold)).mean()))
    finally:
        compiled.close()
        backend.close()
    if not worst[CHAIN]["max_abs_diff"] <= worst[CHAIN]["tolerance"]:
        raise ExportError(
            f"The {device} does not compute what the graphs in integers give on the CPU: logits differ by "
            f"{worst[CHAIN]['max_abs_diff']:.3g}, where {worst[CHAIN]['tolerance']:.3g} is allowed."
        )
    common = {"runtime": NAME, "device": device, "precision": lowered.precision, "pairs": pairs}
    return [{**common, **row} for row in worst.values()]


def _keep_worst(
    worst: dict[str, dict[str, Any]], graph: str, tensor: str, ours: Array, theirs: Array, threshold: float
) -> dict[str, Any]:
    """The entry of a graph, for the tensor that differs most in relation to its values."""
    difference = largest_difference(ours, theirs)
    relative = difference / (float(np.abs(theirs).max()) or 1.0)
    row = worst.setdefault(graph, {"graph": graph, "relative_diff": -1.0})
    if not relative <= row["relative_diff"]:
        row |= {"tensor": tensor, "max_abs_diff": difference, "relative_diff": relative}
    if tensor == "logits":
        row["mask_iou"] = min(logits_agreement(ours, theirs, threshold), row.get("mask_iou", 1.0))
    return row


def _level(threshold: float) -> float:
    return float(np.log(threshold / (1 - threshold)))


def _spec(graph: onnx.ModelProto) -> GraphSpec:
    inputs, outputs = (
        tuple(TensorSpec(*tensor) for tensor in onnx_graph.tensors(values))
        for values in (graph.graph.input, graph.graph.output)
    )
    return GraphSpec(inputs, outputs, multiply_accumulates(graph))
