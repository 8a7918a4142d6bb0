"""Quantizers beyond those that NNCF places, and the layers that quantizers belong to.

ONNX Runtime's integer convolution outputs integers, so every convolution needs a quantizer after it; OpenVINO adds in
float before it quantizes. Quantizers that only ONNX Runtime needs are marked as added, and left out for OpenVINO.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantization.hooks import hook_storage, wrap
from quantization.quantizers import FakeQuantizer, activation_quantizer, signed_quantizer

LAYERS = ("conv2d", "linear", "embedding")  # calls with weights
INTEGER = ("conv2d", "avg_pool2d", "cat")  # calls that OpenVINO computes on integers too
# calls that only move values
PASSING = ("leaky_relu", "relu", "cat", "max_pool2d", "avg_pool2d")  # calls that map integers to integers
MOVES = ("flatten", "unflatten", "transpose", "reshape", "permute", "cat", "stack", "__getitem__", "unsqueeze")


@dataclass(frozen=True)
class Call:
    """One function call in the forward pass of a module.

    Attributes:
        name: Its name in hooks: module path, function, and index among the calls of that function there.
        function: Name of the function.
        parameter: Name of its weight, if any.
        consumers: Names of the calls that take its result, with the argument's index.
    """

    name: str
    function: str
    parameter: str | None
    consumers: tuple[tuple[str, int], ...]


def calls(module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Call]:
    """The calls of `module` for `inputs`, by name, in order."""
    from nncf.torch.function_hook import build_graph

    bare = copy.deepcopy(module)
    wrap(bare)
    graph = build_graph(bare, *inputs)
    data = dict(graph.nodes(data="meta"))
    found = {}
    for number, meta in data.items():
        if not hasattr(meta, "op_name"):
            continue
        weights = [
            data[source].name_in_model
            for source in graph.predecessors(number)
            if hasattr(data[source], "name_in_model")
        ]
        weights = [name for name in weights if name.endswith("weight")]
        function = meta.op_name.split("/")[-2]
        consumers = tuple(
            (data[target].op_name, edge.input_port)
            for _, target, edge in graph.out_edges(number, data="meta")
            if hasattr(data[target], "op_name")
        )
        parameter = weights[0] if weights and function in LAYERS else None
        found[meta.op_name] = Call(meta.op_name, function, parameter, consumers)
    return found


@torch.no_grad()
def complete(quantized: nn.Module, bare: nn.Module, samples: Sequence[Sequence[Tensor]]) -> None:
    """Give every quantized convolution of `quantized` an integer output.

    A quantizer before one consumer of a ReLU moves behind the ReLU, where all consumers share it; a convolution (with
    the ReLU after it) that has no quantizer behind it gets one, with the range seen in `samples`. A convolution whose
    result is the right operand of a product outputs integers for every runtime. The sums of that product go into a
    ReLU, so the range is that of the positive values; the negative ones may reach ten times as far.

    Args:
        quantized: The module from NNCF, with our hooks.
        bare: The module before quantization.
        samples: Calibration inputs.
    """
    storage = hook_storage(quantized)
    found = calls(bare, samples[0])
    _hoist(storage, found)
    missing: dict[str, tuple[_Recorder, Call]] = {}
    for call in found.values():
        if call.function != "conv2d" or f"{call.name}__1" not in storage.pre_hooks:
            continue
        last = _after_relu(call, found)
        if f"{last.name}__0" in storage.post_hooks:
            continue
        recorder = _Recorder()
        storage.register_post_function_hook(last.name, 0, recorder)
        missing[last.name] = recorder, last
    if not missing:
        return
    for sample in samples:
        quantized(*sample)
    for name, (recorder, last) in missing.items():
        if _is_multiplied(last, found):
            quantizer = signed_quantizer(recorder.high)
        else:
            joined = not any(found[taker].function in INTEGER for taker, _ in last.consumers)
            quantizer = activation_quantizer(recorder.low, recorder.high, added=joined)
        storage.post_hooks[f"{name}__0"]["0"] = quantizer


def _hoist(storage: Any, found: dict[str, Call]) -> None:
    for call in found.values():
        if call.function != "relu" or len(call.consumers) < 2 or f"{call.name}__0" in storage.post_hooks:
            continue
        keys = [key for name, port in call.consumers if (key := f"{name}__{port}") in storage.pre_hooks]
        if keys and isinstance(hook := storage.pre_hooks[keys[0]]["0"], FakeQuantizer):
            for key in keys:
                del storage.pre_hooks[key]
            storage.register_post_function_hook(call.name, 0, hook)


def _after_relu(call: Call, found: dict[str, Call]) -> Call:
    """The ReLU that is the only consumer of `call`, or the call itself."""
    if len(call.consumers) == 1 and found[call.consumers[0][0]].function == "relu":
        return found[call.consumers[0][0]]
    return call


def _is_multiplied(call: Call, found: dict[str, Call]) -> bool:
    """Whether the result of `call`, unchanged but for its layout, is the right operand of a product."""
    takers = [(found[name], port) for name, port in call.consumers]
    return any(
        (taker.function == "matmul" and port == 1) or (taker.function in MOVES and _is_multiplied(taker, found))
        for taker, port in takers
    )


class _Recorder(nn.Module):
    """Records the range of the values that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = 0.0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        return x


def kept_in_float(found: dict[str, Call]) -> list[str]:
    """Names of calls that cost next to nothing and would lose accuracy in 8 bits.

    These are the prompt's constants of the projector (ten numbers), the presence head, and the last product, which
    gives the logits. The products with constant matrices beside them are exact; `complete` quantizes their operands.
    """
    products = [call.name for call in found.values() if call.function == "matmul"]
    small = [call.name for call in found.values() if call.parameter in ("bias.weight", "tap_bias.weight")]
    small += [call.name for call in found.values() if (call.parameter or "").startswith("presence")]
    attention = [call.name for call in found.values() if call.function == "softmax"]
    # Attention multiplies twice around each softmax, in order; the products after those are the projector's.
    return small + products[2 * len(attention) :]


def all_but(found: dict[str, Call], layers: Sequence[str]) -> list[str]:
    """Names of all calls but those of `layers`, named by their weights, and those that integers pass through."""
    return [name for name, call in found.items() if call.parameter not in layers and call.function not in PASSING]


def groups(module: nn.Module, bare: nn.Module, inputs: Sequence[Tensor]) -> dict[str, list[FakeQuantizer]]:
    """Group the quantizers of a quantized module by block; each belongs to one group.

    A weight's quantizer belongs to its layer's block, an activation's to the first block that consumes it.

    Args:
        module: Quantized.
        bare: The same module without hooks.
        inputs: Example inputs.
    """
    storage, found = hook_storage(module), calls(bare, inputs)
    result: dict[str, list[FakeQuantizer]] = {}
    seen: set[nn.Module] = set()
    for name, hook in storage.named_hooks(remove_duplicate=False):
        if isinstance(hook, FakeQuantizer) and hook not in seen:
            seen.add(hook)
            result.setdefault(_group_of(name, found), []).append(hook)
    return result


def _group_of(hook: str, found: dict[str, Call]) -> str:
    kind, key, _ = hook.split(".")
    name = key.rpartition("__")[0]
    if name not in found:
        return "input"
    call = found[name]
    if kind == "post_hooks":
        call = next(_takers(call, found), call)
    return block(call.parameter) if call.parameter else block(_owner(call, found))


def _takers(call: Call, found: dict[str, Call], depth: int = 8) -> Iterator[Call]:
    """The layers that consume the result of `call`, directly or through calls without weights."""
    for name, _ in call.consumers:
        taker = found[name]
        if taker.parameter:
            yield taker
        elif depth and taker.function in (*MOVES, "interpolate", "avg_pool2d", "add", "relu"):
            yield from _takers(taker, found, depth - 1)


def _owner(call: Call, found: dict[str, Call]) -> str:
    """The parameter of the last layer before `call`."""
    nearest = "input"
    for other in found.values():
        if other.parameter:
            nearest = other.parameter
        if other is call:
            break
    return nearest


def block(parameter: str) -> str:
    """The block of a parameter: ``layers.1.q_proj.weight`` -> ``layers.1``, ``vis1.weight`` -> ``vis1``."""
    parts = parameter.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]
