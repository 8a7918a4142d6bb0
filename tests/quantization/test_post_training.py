"""NNCF's quantization of the three modules, with its hooks replaced by ours."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from cris_edge.errors import ExportError, OptionError
from quantization.deploy_network import GRAPHS, DeployNetwork
from quantization.hooks import hook_storage
from quantization.layout import block, calls
from quantization.post_training import Scheme, quantize_module
from quantization.quantizers import FakeQuantizer, Multiplier, hooks, quantizers

if TYPE_CHECKING:
    from quantization.calibration import Calibration


def test_every_layer_is_quantized_but_those_kept_in_float(
    int8: DeployNetwork, calibration: Calibration, bare: DeployNetwork
) -> None:
    for name in GRAPHS:
        found = calls(bare.graphs[name], calibration.samples[name][0])
        layers = {call.name for call in found.values() if call.parameter}
        weights = {
            place.split(".")[1].removesuffix("__1") for place, hook in quantizers(int8.graphs[name]) if hook.weight
        }
        kept = {call.name for call in found.values() if call.parameter in ("bias.weight", "tap_bias.weight")}
        assert weights == layers - kept


def test_weights_have_a_scale_for_each_channel_and_activations_one(int8: DeployNetwork) -> None:
    for module in int8.graphs.values():
        for _, hook in quantizers(module):
            assert (hook.axis is not None) == hook.weight
            assert (hook.scale.numel() > 1) == hook.weight
            assert not hook.weight or not hook.zero_point.any()


def test_taps_are_integers_for_every_runtime_in_the_range_of_their_positive_values(
    int8: DeployNetwork, calibration: Calibration, bare: DeployNetwork
) -> None:
    storage = hook_storage(int8.mask_decoder)
    for layer in ("vis1", "vis2"):
        hook = storage.post_hooks[f"{layer}/taps/conv2d/0__0"]["0"]
        assert isinstance(hook, FakeQuantizer) and not hook.added
        assert (hook.low, hook.high, int(hook.zero_point)) == (-128, 127, 0)
        seen: list[float] = []
        handle = getattr(int8.mask_decoder, layer).taps.register_forward_hook(
            lambda _, __, out, seen=seen: seen.append(float(out.max()))
        )
        with torch.no_grad():
            for sample in calibration.samples["mask_decoder"]:
                int8.mask_decoder(*sample)
        handle.remove()
        assert float(hook.scale.detach()) * 127 == pytest.approx(max(seen), rel=0.02)


def test_every_hook_runs(int8: DeployNetwork, calibration: Calibration) -> None:
    for name, module in int8.graphs.items():
        ran = set()
        handles = [
            hook.register_forward_hook(lambda hook, *_, ran=ran, place=place: ran.add(place))
            for place, hook in hooks(module)
        ]
        with torch.no_grad():
            module(*calibration.samples[name][0])
        for handle in handles:
            handle.remove()
        assert ran == {place for place, _ in hooks(module)}


def test_smooth_quant_multiplies_before_it_quantizes(int8: DeployNetwork) -> None:
    storage = hook_storage(int8.mask_decoder)
    chains = [list(chain.values()) for chain in storage.pre_hooks.values() if isinstance(chain["0"], Multiplier)]
    assert chains
    assert all(isinstance(chain[1], FakeQuantizer) and not chain[1].weight for chain in chains)
    assert not [key for key in storage.post_hooks if "pre_hook__" in key]


def test_convolutions_output_integers(int8: DeployNetwork, bare: DeployNetwork, calibration: Calibration) -> None:
    storage = hook_storage(int8.image_encoder)
    found = calls(bare.image_encoder, calibration.samples["image_encoder"][0])
    for call in found.values():
        if call.function == "conv2d":
            after = {call.name} | {name for name, _ in call.consumers if found[name].function == "relu"}
            assert any(f"{name}__0" in storage.post_hooks for name in after), call.name
    assert any(hook.added for _, hook in quantizers(int8.image_encoder))


def test_logits_stay_close(int8: DeployNetwork, bare: DeployNetwork, calibration: Calibration) -> None:
    for (image,), (tokens,) in zip(
        calibration.samples["image_encoder"], calibration.samples["text_encoder"], strict=True
    ):
        with torch.no_grad():
            expected, found = bare(image, tokens), int8(image, tokens)
        assert torch.corrcoef(torch.stack([expected.flatten(), found.flatten()]))[0, 1] > 0.97


def test_a_batch_equals_its_samples(int8: DeployNetwork, calibration: Calibration) -> None:
    images = torch.cat([sample[0] for sample in calibration.samples["image_encoder"][:2]])
    tokens = torch.cat([sample[0] for sample in calibration.samples["text_encoder"][:4]])
    with torch.no_grad():
        together = int8(images, tokens)
        apart = torch.cat([int8(images[index // 2 : index // 2 + 1], tokens[index : index + 1]) for index in range(4)])
    # A value on the border between two levels may fall either way.
    assert (together - apart).abs().mean() < 0.02 * apart.abs().max()


def test_weights_for_cpus_that_saturate_use_seven_bits(bare: DeployNetwork, calibration: Calibration) -> None:
    module = quantize_module(bare.text_encoder, calibration.samples["text_encoder"], Scheme(target="any"))
    # The token table is looked up, not multiplied: nothing can overflow.
    weights = [hook for place, hook in quantizers(module) if hook.weight and "embedding" not in place]
    assert weights and all((hook.low, hook.high) == (-63, 63) for hook in weights)
    for place, hook in quantizers(module):
        if place.endswith("c_fc/linear/0__1.0"):
            weight = module.blocks[0].mlp.c_fc.weight
            with torch.no_grad():
                assert (hook(weight) - weight).abs().max() <= 0.51 * hook.scale.max()


def test_the_float_module_is_left_alone(bare: DeployNetwork, calibration: Calibration) -> None:
    before = copy.deepcopy(bare.text_encoder.state_dict())
    quantize_module(bare.text_encoder, calibration.samples["text_encoder"][:1], Scheme())
    after = bare.text_encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_unsupported_layer_is_named() -> None:
    class Strange(nn.Module):
        input_names = ("x",)

        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.LSTM(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.memory(x)[0]

    with pytest.raises(ExportError, match=r"NNCF cannot quantize LSTM \(memory.weight_ih_l0\)"):
        quantize_module(Strange().eval(), [(torch.randn(3, 1, 8),)], Scheme())


def test_unknown_presets_and_targets_are_refused() -> None:
    with pytest.raises(OptionError, match="preset"):
        Scheme(preset="fast")
    with pytest.raises(OptionError, match="target"):
        Scheme(target="avx")


def test_nncf_neither_compiles_nor_reports(int8: DeployNetwork) -> None:
    from unittest.mock import MagicMock

    from nncf.telemetry import wrapper

    assert isinstance(wrapper.telemetry, MagicMock)
    assert "quantized_functions_cpu" not in sys.modules


def test_blocks_of_parameters() -> None:
    assert block("layers.1.q_proj.weight") == "layers.1"
    assert block("vis1.weight") == "vis1"
    assert block("layer3.0.shortcut.1.weight") == "layer3.0"
