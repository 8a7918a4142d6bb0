"""Parity checks: what passes, what fails, and the messages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cris_edge.errors import ExportError
from runtimes.network import Network, example_inputs, of_modules
from runtimes.parity import (
    CHAIN,
    FLOAT32,
    SATURATED,
    SLACK,
    Reference,
    check,
    check_deploy,
    check_storage,
    largest_difference,
    state_reduced,
)
from runtimes.probes import Probes, full_length

GRAPHS = ("image_encoder", "text_encoder", "mask_decoder", CHAIN)


class Image(nn.Module):
    """One feature map."""

    input_names, output_names = ("image",), ("visual",)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, image):
        return self.conv(image)


class Text(nn.Module):
    """A kernel, and a bias with an infinity, as in attention masks."""

    input_names, output_names = ("tokens",), ("kernel", "mask")

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, tokens):
        kernel = self.table(tokens).mean(1)[:, :, None, None]
        return kernel, torch.where(tokens == 0, -torch.inf, 0.0)


class Mask(nn.Module):
    """Their product."""

    input_names, output_names = ("visual", "kernel"), ("logits",)

    def forward(self, visual, kernel):
        return (visual * kernel).sum(1, keepdim=True)


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    images = tuple((f"image {i}", random.normal(size=(1, 3, 32, 32)).astype(np.float32)) for i in range(2))
    prompts = tuple((f"prompt {i}", np.array([[9, i + 1, 0]])) for i in range(2))
    probes = Probes(
        images,
        prompts,
        ((0, 1), (1, 0), (0, 0)),
        np.zeros((2, 32, 32, 3), np.uint8),
        ("a", "b"),
        np.zeros((2, 32, 32), bool),
    )
    modules = tuple(module.eval() for module in (Image(), Text(), Mask()))
    network = of_modules(modules)
    logits = [network.logits(images[image][1], prompts[text][1]) for image, text in probes.pairs]
    return Reference(probes, modules, logits, 0.35)


def altered(reference: Reference, graph: str, tensor: str, change) -> Network:
    """PyTorch's network with one output of one graph changed."""
    right = of_modules(reference.modules)
    graphs = {name: right._graphs[name] for name in GRAPHS[:3]}

    def wrong(inputs):
        outputs = dict(right._graphs[graph](inputs))
        outputs[tensor] = change(outputs[tensor])
        return outputs

    return Network(graphs | {graph: wrong})


def test_same_network_passes_with_an_entry_per_graph(reference):
    rows = check(reference, of_modules(reference.modules), "onnxruntime", "float32")
    assert [row["graph"] for row in rows] == list(GRAPHS)
    assert all(row["max_abs_diff"] == 0 and row["tolerance"] > 0 for row in rows)
    assert [row["mask_iou"] for row in rows] == [None, None, 1.0, 1.0]


@pytest.mark.parametrize(
    ("graph", "tensor"), [("image_encoder", "visual"), ("text_encoder", "kernel"), ("mask_decoder", "logits")]
)
def test_difference_beyond_the_tolerance_names_graph_runtime_and_tensor(reference, graph, tensor):
    network = altered(reference, graph, tensor, lambda array: array + 3e-3 * max(1.0, float(np.abs(array).max())))
    with pytest.raises(ExportError, match=rf"{graph} .* openvino .* float32: {tensor} differs by 0\.00\d+ for "):
        check(reference, network, "openvino", "float32")


def test_difference_within_the_tolerance_is_recorded(reference):
    network = altered(reference, "mask_decoder", "logits", lambda array: array + np.float32(5e-4))
    rows = {row["graph"]: row for row in check(reference, network, "openvino", "float32")}
    for graph in ("mask_decoder", CHAIN):
        assert rows[graph]["max_abs_diff"] == pytest.approx(5e-4, rel=1e-2)
        assert rows[graph]["tolerance"] == FLOAT32
    assert rows["image_encoder"]["max_abs_diff"] == 0


def test_errors_that_add_up_only_in_the_chain_are_found(reference):
    # Within the tolerance of the feature, not within that of the logits: this network receives a larger kernel.
    scaled = [logits + np.float32(2e-3) for logits in reference.logits]
    other = Reference(reference.probes, reference.modules, scaled, reference.threshold)
    with pytest.raises(ExportError, match="chain of the three graphs"):
        check(other, of_modules(reference.modules), "onnxruntime", "float32")


def test_not_a_number_is_a_mismatch(reference):
    def poison(array):
        array = array.copy()
        array.flat[5] = np.nan
        return array

    with pytest.raises(ExportError, match="differs by nan"):
        check(reference, altered(reference, "mask_decoder", "logits", poison), "onnxruntime", "float32")


def test_output_of_another_shape_is_a_mismatch(reference):
    network = altered(reference, "image_encoder", "visual", lambda array: array[:, :3])
    with pytest.raises(ExportError, match="visual"):
        check(reference, network, "onnxruntime", "float32")


def test_bfloat16_tolerance_follows_pytorch_in_bfloat16(reference):
    rows = check(reference, of_modules(reference.modules, "bfloat16"), "openvino", "bfloat16")
    chain = rows[-1]
    assert FLOAT32 < chain["max_abs_diff"] < chain["tolerance"] < 1
    largest = max(float(np.abs(logits).max()) for logits in reference.logits)
    with pytest.raises(ExportError, match="bfloat16"):
        check(
            reference,
            altered(reference, "mask_decoder", "logits", lambda array: array + np.float32(0.2 * largest)),
            "openvino",
            "bfloat16",
        )


def test_precision_without_a_tolerance_is_refused(reference):
    with pytest.raises(ExportError, match="int4"):
        check(reference, of_modules(reference.modules), "openvino", "int4")


def test_rounded_weights_are_compared_with_the_original_network(reference):
    row = check_storage(reference, [logits + np.float32(1e-4) for logits in reference.logits])
    assert row["max_abs_diff"] == pytest.approx(1e-4, rel=1e-2) and row["mask_iou"] > 0.9
    with pytest.raises(ExportError, match="float16"):
        check_storage(reference, [logits * 1.2 for logits in reference.logits])


def test_rounding_in_pytorch_widens_only_the_tolerance_of_the_chain(reference):
    assert reference.tolerances("float32")[CHAIN, "logits"] == FLOAT32
    loose = replace(reference, rounding=1e-3).tolerances("float32")
    assert loose[CHAIN, "logits"] == SLACK * 1e-3 and loose["mask_decoder", "logits"] == FLOAT32


def test_logits_far_beyond_saturation_are_compared_relative_to_it(reference):
    large = replace(reference, logits=[logits * 1000 for logits in reference.logits])
    largest = max(float(np.abs(logits).max()) for logits in large.logits)
    assert large.tolerances("float32")[CHAIN, "logits"] == pytest.approx(FLOAT32 * largest / SATURATED)


def test_deploy_form_is_compared_with_the_trained_network(reference):
    row = check_deploy(reference)
    assert row["max_abs_diff"] == 0 and row["mask_iou"] == 1
    with pytest.raises(ExportError, match="deploy form"):
        check_deploy(replace(reference, logits=[logits + np.float32(0.1) for logits in reference.logits]))


def test_costs_of_precisions_that_this_machine_lacks_are_stated(reference):
    bfloat16, float16 = state_reduced(reference)
    assert (bfloat16["precision"], float16["precision"]) == ("bfloat16", "float16")
    assert 0 < float16["max_abs_diff"] < bfloat16["max_abs_diff"] < 0.1  # eleven bits and eight
    assert all(row["tolerance"] >= SLACK * row["max_abs_diff"] for row in (bfloat16, float16))


def test_golden_probes_are_the_first_pairs(reference):
    golden = reference.probes.golden()
    assert [golden.name(pair) for pair in golden.pairs] == ["image 0 and prompt 1", "image 1 and prompt 0"]


def test_reduced_precision_rounds_operands_and_results(reference):
    exact, rounded = (of_modules(reference.modules, precision) for precision in ("float32", "bfloat16"))
    image = reference.probes.images[0][1]
    once = torch.from_numpy(rounded.encode_image(image)["visual"])
    assert torch.equal(once, once.bfloat16().float())
    assert 0 < largest_difference(once.numpy(), exact.encode_image(image)["visual"]) < 0.1
    tokens = reference.probes.prompts[0][1]
    assert set(np.unique(rounded.encode_text(tokens)["mask"])) == {-np.inf, 0}


def test_example_inputs_follow_the_names(reference):
    inputs = example_inputs(reference.modules, reference.probes.images[0][1], reference.probes.prompts[0][1])
    assert {name: list(tensors) for name, tensors in inputs.items()} == {
        "image_encoder": ["image"],
        "text_encoder": ["tokens"],
        "mask_decoder": ["visual", "kernel"],
    }


def test_decoder_input_that_no_encoder_returns_is_named(reference):
    decoder = Mask()
    decoder.input_names = ("visual", "depth")
    with pytest.raises(ExportError, match="depth"):
        example_inputs((*reference.modules[:2], decoder), *(group[0][1] for group in _inputs(reference)))


def _inputs(reference):
    return reference.probes.images, reference.probes.prompts


def test_largest_difference_of_infinities_and_nan():
    assert largest_difference(np.array([-np.inf, 1.0]), np.array([-np.inf, 1.5])) == 0.5
    assert largest_difference(np.array([np.inf]), np.array([-np.inf])) == np.inf
    assert np.isnan(largest_difference(np.array([np.nan, 0]), np.array([0, 0])))


@pytest.mark.parametrize("word_len", [3, 17, 22, 77])
def test_full_length_prompt_fills_every_token(word_len):
    from cris_edge.tokenizer import Tokenizer

    tokens = Tokenizer()(full_length(word_len), length=word_len)
    assert tokens.shape == (1, word_len) and tokens[0, -1] == tokens.max() == 49407
