"""Calibrate a float graph for Qualcomm's HTP, and choose the bits of its activations by what they cost."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from cris_edge.backends import ort
from cris_edge.errors import ExportError, first_line
from cris_edge.image import preprocess
from cris_edge.metrics import logits_agreement
from cris_edge.tokenizer import Tokenizer
from quantization.quantizers import FakeQuantizer
from runtimes import qdq
from runtimes.network import Array, DeployModule, Network, Sizes, Tensors
from training.data.samples import SceneSource, Source

logger = logging.getLogger("cris_edge.runtimes")

CALIBRATED_ON = 48  # pairs of an image and a prompt that give the ranges of activations
CHOSEN_ON = 16  # further pairs, on which the bits are chosen
TOLERATED = 0.01  # loss of the masks' mean IoU with float32 that fewer bits in one graph may cause
SEED = 6


@dataclass(frozen=True)
class Pair:
    """An image and a prompt with their float32 features and logits."""

    inputs: Tensors
    features: Tensors
    logits: Array


@contextmanager
def in_float(modules: Sequence[DeployModule]) -> Iterator[None]:
    """Disable PyTorch's fake quantizers, if there are any."""
    hooks = [part for module in modules for part in module.modules() if isinstance(part, FakeQuantizer)]
    before = [hook.enabled for hook in hooks]
    for hook in hooks:
        hook.enabled = False
    try:
        yield
    finally:
        for hook, was in zip(hooks, before, strict=True):
            hook.enabled = was


def calibration_pairs(network: Network, source: Source | None, sizes: Sizes) -> list[Pair]:
    """Return images with one prompt each, or with every prompt if there are few images; synthetic scenes by default."""
    count = CALIBRATED_ON + CHOSEN_ON
    source = source or SceneSource("train", count, SEED)
    generator, tokenizer = np.random.default_rng(SEED), Tokenizer()
    pairs: list[Pair] = []
    for index in generator.permutation(min(len(source), 1 << 24)):
        example = source.load(int(index), sizes.input_size)
        pixels: Array = preprocess(example.image, sizes.input_size)[0]
        image_features = network.encode_image(pixels)
        prompts = example.sentences
        for prompt in prompts if len(source) < count else [prompts[int(generator.integers(len(prompts)))]]:
            tokens: Array = tokenizer([prompt], length=sizes.word_len)
            features = {**image_features, **network.encode_text(tokens)}
            pairs.append(Pair({"image": pixels, "tokens": tokens}, features, network.decode(image_features, features)))
            if len(pairs) == count:
                return pairs
    logger.warning("%s has %d image-prompt pairs for calibration; %d are recommended", source.label, len(pairs), count)
    return pairs


def choose_bits(
    name: str, model: onnx.ModelProto, network: Network, pairs: Sequence[Pair], threshold: float
) -> tuple[str, onnx.ModelProto]:
    """Quantize a graph with the fewest bits that cost at most `TOLERATED` compared with 16 everywhere.

    Returns:
        One of `qdq.ACTIVATIONS`, and the graph quantized so.
    """
    inputs = [value.name for value in model.graph.input]
    known = [{**pair.features, **pair.inputs} for pair in pairs]
    held_out = slice(CALIBRATED_ON, None) if len(pairs) > CALIBRATED_ON else slice(None)
    ranges = qdq.Ranges(model, [{key: row[key] for key in inputs} for row in known[:CALIBRATED_ON]])
    widest = qdq.ACTIVATIONS[-1]
    best = qdq.quantize(ranges, widest)
    most = _agreement(name, best, network, pairs[held_out], threshold)
    logger.info("%s, activations of %s: mean IoU of masks with float32 %.4f", name, widest, most)
    for bits in qdq.ACTIVATIONS[:-1]:
        if "convolutions" in bits and not any(node.op_type == "Conv" for node in model.graph.node):
            continue
        narrower = qdq.quantize(ranges, bits)
        agreement = _agreement(name, narrower, network, pairs[held_out], threshold)
        logger.info("%s, activations of %s: mean IoU of masks with float32 %.4f", name, bits, agreement)
        if agreement >= most - TOLERATED:
            return bits, narrower
    return widest, best


def _agreement(name: str, model: onnx.ModelProto, network: Network, pairs: Sequence[Pair], threshold: float) -> float:
    """Return the mean IoU with float32's masks when this one graph is quantized."""
    graph = OnCpu(model.SerializeToString())
    found = []
    for pair in pairs:
        known = {**pair.inputs, **pair.features}
        outputs = graph(known)
        logits = outputs["logits"] if name == "mask_decoder" else network.decode(known, outputs)
        found.append(logits_agreement(logits, pair.logits, threshold))
    return float(np.mean(found))


class OnCpu:
    """A quantized graph run by ONNX Runtime on the CPU: the reference for an NPU.

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
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise ExportError(f"ONNX Runtime cannot run a quantized graph on the CPU: {first_line(error)}.") from error
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Array]) -> Tensors:
        """Return the outputs by name."""
        taken = qdq.in_reach({name: inputs[name] for name in self._inputs})
        return dict(zip(self._outputs, self._session.run(self._outputs, taken), strict=True))
