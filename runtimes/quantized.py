"""Trace quantized deploy modules to ONNX, in the form that a runtime computes in integers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from cris_edge.bundle.manifest import GRAPHS
from cris_edge.errors import ExportError
from quantization.deploy_network import DeployNetwork
from quantization.hooks import hook_storage
from quantization.layout import calls
from quantization.quantizers import quantizers
from runtimes import onnx_graph
from runtimes.integer_graph import lower
from runtimes.network import DeployModule, example_inputs, of_modules
from runtimes.parity import CHAIN, REDUCED, Differences, Reference

FORMS = ("onnxruntime", "openvino")
SLACK = 2.0  # times the cost of int8 in PyTorch: see `QuantizedReference`
REDUCED_SLACK = 4.0  # the same if the rest of the graph computes in bfloat16 or float16


def trace(
    name: str, module: nn.Module, inputs: Mapping[str, Tensor], output_names: Sequence[str], form: str
) -> onnx.ModelProto:
    """Export a quantized `module` that is in `form` (see `in_form`); other arguments as in `onnx_graph.trace`.

    Raises:
        ExportError: PyTorch cannot export the module, or the form is unknown.
    """
    _require_known(form)
    with _exportable(module, inputs):
        model = onnx_graph.trace(name, module, inputs, output_names)
    return lower(model, form)


def in_form(network: DeployNetwork, form: str) -> DeployNetwork:
    """Return a copy of a quantized network that computes in PyTorch what the graphs of a form compute.

    Raises:
        ExportError: The form is unknown.
    """
    size, length = network.architecture.input_size, network.architecture.word_len
    modules = modules_of(network)
    examples = example_inputs(modules, np.zeros((1, 3, size, size), np.float32), np.ones((1, length), np.int64))
    formed = [
        module_in_form(name, network.graphs[name], examples[name], module.output_names, form)
        for name, module in zip(GRAPHS, modules, strict=True)
    ]
    return DeployNetwork(network.architecture, formed).eval()


def modules_of(network: DeployNetwork) -> tuple[DeployModule, ...]:
    """Return the three modules in the order of `GRAPHS`."""
    modules: tuple[Any, ...] = tuple(network.graphs[name] for name in GRAPHS)
    return modules


def module_in_form(
    name: str, module: nn.Module, inputs: Mapping[str, Tensor], output_names: Sequence[str], form: str
) -> nn.Module:
    """Return a copy of a quantized `module` that computes in PyTorch what its graph in `form` computes.

    OpenVINO adds in float, so the quantizers added for ONNX Runtime are disabled. ONNX Runtime's integer layers hold
    biases in int32, so the biases are rounded to that grid. No bias moves by more than half a step, but without this
    values would round to neighbouring levels, layer after layer, until masks differ visibly.

    Raises:
        ExportError: The form is unknown.
    """
    _require_known(form)
    module = copy.deepcopy(module)
    if form == "openvino":
        for _, hook in quantizers(module):
            hook.enabled = hook.enabled and not hook.added
        return module
    biases: dict[str, Any] = {}
    with _exportable(module, inputs):
        lower(onnx_graph.trace(name, module, inputs, output_names), form, biases)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for key in biases.keys() & parameters.keys():
            parameters[key].copy_(torch.from_numpy(biases[key]))
    return module


def _require_known(form: str) -> None:
    if form not in FORMS:
        raise ExportError(f"Unknown int8 form {form!r}. Available: {', '.join(FORMS)}.")


@contextmanager
def _exportable(module: nn.Module, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Round weights to their grid (which changes no result) and put quantizers into a form the exporter supports."""
    before = [(hook, hook.low, hook.high, hook.scale.requires_grad) for _, hook in quantizers(module)]
    state = dict(module.named_parameters())
    weights = weights_of(module, inputs)
    try:
        for place, hook in quantizers(module):
            hook.scale.requires_grad_(False)
            if hook.weight and hook.enabled and place in weights:
                with torch.no_grad():
                    state[weights[place]].copy_(hook(state[weights[place]]))
                hook.low, hook.high = -128, 127
        yield
    finally:
        for hook, low, high, trained in before:
            hook.low, hook.high = low, high
            hook.scale.requires_grad_(trained)


def weights_of(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the parameter behind each weight quantizer, by the quantizer's name."""
    bare = copy.deepcopy(module)
    storage = hook_storage(bare)
    for hooks in (storage.pre_hooks, storage.post_hooks):  # a weight that passes a hook is no longer a parameter
        hooks.clear()
    found = calls(bare, tuple(inputs.values()))
    return {f"pre_hooks.{name}__1.0": call.parameter for name, call in found.items() if call.parameter}


class QuantizedReference(Reference):
    """Outputs of a quantized network, whose modules carry quantizers.

    A sum that rounds differently moves a value to a neighbouring level, and with it values computed from it, so no
    small number bounds the difference. The measure is the cost of quantization itself: the difference between the
    network with its quantizers on and off, on the same probes. A runtime may differ from PyTorch `SLACK` times as much.
    """

    def tolerances(self, precision: str, cost: Differences | None = None) -> dict[tuple[str, str], float]:
        """Return the absolute tolerance of each tensor of each graph; `precision` is ``int8+float32`` or the like."""
        if "int8" not in precision:
            raise ExportError(
                f"The runtime computes in {precision}: it does not run these graphs in integers on this device. Leave "
                "it out, or export on another device."
            )
        slack = SLACK if "float32" in precision else REDUCED_SLACK
        largest, known = self._largest_values(), cost or self._cost
        # A tensor that quantization hardly changes may still differ by one 8-bit step.
        found = {key: slack * max(known.largest[key][0], value / 255) for key, value in largest.items()}
        return {**found, **self._of_choices(GRAPHS if "float32" not in precision else GRAPHS[:1])}

    def state_cost(self, form: str) -> list[dict[str, Any]]:
        """Return the cost of int8 in PyTorch, as `runtimes.parity.state_reduced` does for reduced precision."""
        key = (CHAIN, "logits")
        return [
            {
                "runtime": "pytorch",
                "form": form,
                "graph": CHAIN,
                "tensor": "logits",
                "precision": precision,
                "max_abs_diff": self._cost.largest[key][0],
                "tolerance": self.tolerances(precision)[key],
                "mask_iou": self._cost.mask_iou[CHAIN],
            }
            for precision in ("int8+float32", *(f"int8+{name}" for name in REDUCED))
        ]

    @cached_property
    def _cost(self) -> Differences:
        hooks = [hook for module in self.modules for _, hook in quantizers(_module(module))]
        enabled = [hook.enabled for hook in hooks]
        _ = self.decoded  # cached with the quantizers on, as are the features
        try:
            for hook in hooks:
                hook.enabled = False
            return self.differences(of_modules(self.modules))
        finally:
            for hook, was in zip(hooks, enabled, strict=True):
                hook.enabled = was


def _module(module: Any) -> nn.Module:
    assert isinstance(module, nn.Module)
    return module
