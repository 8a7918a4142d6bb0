"""A quantized deploy module becomes an ONNX graph in the form that its runtime computes in integers."""

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
SLACK = 2.0  # times what int8 costs in PyTorch: see `QuantizedReference`
REDUCED_SLACK = 4.0  # the same where the rest of the graph is computed in bfloat16 or float16


def trace(
    name: str, module: nn.Module, inputs: Mapping[str, Tensor], output_names: Sequence[str], form: str
) -> onnx.ModelProto:
    """Export a quantized `module`, which is in that form already (`in_form`), as a graph of a runtime's `form`.

    The other arguments are those of `onnx_graph.trace`.

    Raises:
        ExportError: PyTorch cannot export the module, or the form is unknown.
    """
    _require_known(form)
    with _exportable(module, inputs):
        model = onnx_graph.trace(name, module, inputs, output_names)
    return lower(model, form)


def in_form(network: DeployNetwork, form: str) -> DeployNetwork:
    """A copy of a quantized network that computes, in PyTorch, what the graphs of a form compute (`module_in_form`).

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
    """A copy of a quantized `module` that computes in PyTorch what its graph in a runtime's `form` will compute.

    OpenVINO adds in float, so the quantizers that were added for ONNX Runtime are off. ONNX Runtime's integer layers
    hold their biases in int32, so the biases are on that grid. None moves by more than half of the smallest step in
    which a layer can add; left to the runtime alone, this would still send values to the other side of a border
    between two levels, and so on from layer to layer, until masks differ visibly.

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
        raise ExportError(f"There is no int8 form for the runtime {form!r}; choose {' or '.join(FORMS)}.")


@contextmanager
def _exportable(module: nn.Module, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Put weights on their grid (which changes no result) and quantizers into the form that the exporter knows."""
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
        for hook, low, high, learnt in before:
            hook.low, hook.high = low, high
            hook.scale.requires_grad_(learnt)


def weights_of(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, str]:
    """The parameter behind each quantizer of a weight, by the quantizer's place."""
    bare = copy.deepcopy(module)
    storage = hook_storage(bare)
    for hooks in (storage.pre_hooks, storage.post_hooks):  # a weight that passes a hook is no parameter any more
        hooks.clear()
    found = calls(bare, tuple(inputs.values()))
    return {f"pre_hooks.{name}__1.0": call.parameter for name, call in found.items() if call.parameter}


class QuantizedReference(Reference):
    """A quantized network that runtimes are compared with; its modules carry quantizers.

    Where one sum is rounded otherwise, a value falls on the other side of a border between two levels, and so do some
    of those computed from it: no small number bounds the difference. The measure is what quantization itself costs:
    how far the network is from itself with its quantizers off, on the same probes. A runtime may be `SLACK` times as
    far from PyTorch, on the worst value of each tensor; how well the masks agree says the rest.
    """

    def tolerances(self, precision: str, cost: Differences | None = None) -> dict[tuple[str, str], float]:
        """What each tensor of each graph may differ by, absolute; `precision` is ``int8+float32`` or the like."""
        if "int8" not in precision:
            raise ExportError(
                f"The runtime computes in {precision} where int8 was lowered; it does not run these graphs in integers "
                "on this device: leave it out, or export on another."
            )
        slack = SLACK if "float32" in precision else REDUCED_SLACK
        largest, known = self._largest_values(), cost or self._cost
        # A tensor that hardly feels quantization may still differ by the step of an 8-bit number.
        return {key: slack * max(known.largest[key][0], value / 255) for key, value in largest.items()}

    def state_cost(self, form: str) -> list[dict[str, Any]]:
        """What int8 costs in PyTorch, as `runtimes.parity.state_reduced` does for other arithmetic."""
        worst, key = self._cost, (CHAIN, "logits")
        common = {
            "runtime": "pytorch",
            "form": form,
            "graph": CHAIN,
            "tensor": "logits",
            "max_abs_diff": worst.largest[key][0],
        }
        return [
            {
                **common,
                "precision": precision,
                "max_abs_diff": worst.largest[key][0],
                "tolerance": self.tolerances(precision)[key],
                "mask_iou": worst.mask_iou[CHAIN],
            }
            for precision in ("int8+float32", *(f"int8+{name}" for name in REDUCED))
        ]

    @cached_property
    def _cost(self) -> Differences:
        hooks = [hook for module in self.modules for _, hook in quantizers(_module(module))]
        enabled = [hook.enabled for hook in hooks]
        _ = self.decoded  # computed with the quantizers on, and kept, as are the features
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
