"""Fake quantizers, int8 rounding in float arithmetic, and the function calls of a module that they are attached to.

NNCF decides where quantizers belong and attaches them to the calls of a module (its function hooks). These classes
replace its own: they compute ONNX's QuantizeLinear and DequantizeLinear, so that a checkpoint holds the numbers of the
exported graph, and they need no compiler on the training machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cris_edge.errors import CheckpointError
from quantization.hooks import hook_storage, wrap

KINDS = ("quantizer", "multiplier")


class FakeQuantizer(nn.Module):
    """``(clip(round(x / scale) + zero_point, low, high) - zero_point) * scale``.

    Attributes:
        scale: () or, one per slice along `axis`, (C,) float32; learned in fine-tuning (Esser et al., arXiv 1902.08153).
        zero_point: Same shape, int32.
        low: Lowest quantized value.
        high: Highest quantized value.
        axis: Dimension with one scale per slice; None for a single scale.
        weight: Whether it quantizes a constant.
        added: Whether only runtimes whose convolutions output integers need it (see `quantization.layout`).
        enabled: False makes it the identity.
    """

    scale: nn.Parameter
    zero_point: Tensor

    def __init__(
        self,
        scale: Tensor,
        zero_point: Tensor,
        low: int,
        high: int,
        axis: int | None,
        *,
        weight: bool,
        added: bool = False,
    ) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.detach().clone().float())
        self.register_buffer("zero_point", zero_point.detach().clone().to(torch.int32))
        self.low, self.high, self.axis, self.weight, self.added = low, high, axis, weight, added
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """Any float tensor -> the same shape."""
        if not self.enabled:
            return x
        if torch.is_grad_enabled() and self.scale.requires_grad:
            return self._learn(x)
        scale = self.scale.detach()
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, scale, self.zero_point, self.low, self.high)
        return torch.fake_quantize_per_channel_affine(x, scale, self.zero_point, self.axis, self.low, self.high)

    def _learn(self, x: Tensor) -> Tensor:
        """The same function with gradients: straight-through for the rounding, LSQ's for the scale."""
        shape = [1] * x.dim()
        if self.axis is not None:
            shape[self.axis] = -1
        slices = 1 if self.axis is None else x.shape[self.axis]
        # LSQ's gradient scale: without it the scale's step would grow with the number of values that share it.
        balance = (x.numel() / slices * self.high) ** -0.5
        scale = (self.scale - self.scale.detach()) * balance + self.scale.detach()
        scale = scale.abs().clamp(min=1e-8).reshape(shape)
        zero_point = self.zero_point.reshape(shape)
        level = torch.clamp(x / scale + zero_point, self.low, self.high)
        level = level + (torch.round(level) - level).detach()
        quantized: Tensor = (level - zero_point) * scale
        return quantized

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors, in plain containers."""
        return {
            "kind": "quantizer",
            "channels": self.scale.numel() if self.axis is not None else None,
            **{name: getattr(self, name) for name in ("low", "high", "axis", "weight", "added", "enabled")},
        }


class Multiplier(nn.Module):
    """SmoothQuant's factors (Xiao et al., arXiv 2211.10438): activations are multiplied, weights divided by them."""

    factors: Tensor

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", factors.detach().clone().float())

    def forward(self, x: Tensor) -> Tensor:
        """Any float tensor -> the same shape."""
        return torch.mul(x, self.factors)  # not `*`: the names of hooks on the product contain the function's name

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors, in plain containers."""
        return {"kind": "multiplier", "shape": list(self.factors.shape)}


Hook = FakeQuantizer | Multiplier


def hooks(module: nn.Module) -> Iterator[tuple[str, Hook]]:
    """Every hook of a quantized module with its name, each once."""
    for name, hook in hook_storage(module).named_hooks():
        if isinstance(hook, (FakeQuantizer, Multiplier)):
            yield name, hook


def quantizers(module: nn.Module) -> Iterator[tuple[str, FakeQuantizer]]:
    """The quantizers among `hooks`."""
    for name, hook in hooks(module):
        if isinstance(hook, FakeQuantizer):
            yield name, hook


def describe(module: nn.Module) -> list[dict[str, Any]]:
    """Describe the hooks of `module` and their names in plain containers; the inverse of `place`."""
    names: dict[Hook, list[str]] = {}
    for name, hook in hook_storage(module).named_hooks(remove_duplicate=False):
        names.setdefault(hook, []).append(name)
    return [{"places": found, **hook.describe()} for hook, found in names.items()]


def place(module: nn.Module, description: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Attach the hooks that `describe` described to `module`; ``load_state_dict`` loads their tensors.

    Raises:
        CheckpointError: The description is damaged.
    """
    wrap(module)
    storage = hook_storage(module)
    for entry in description:
        try:
            hook = _build(entry)
            for name in entry["places"]:
                storage.insert_hook_by_name(name, hook)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"The checkpoint's quantizers cannot be placed ({error}); quantize again.") from error
    return module


def _build(entry: Mapping[str, Any]) -> Hook:
    if entry["kind"] == "multiplier":
        return Multiplier(torch.ones(entry["shape"]))
    if entry["kind"] != "quantizer":
        raise ValueError(f"unknown kind {entry['kind']!r}, expected {' or '.join(KINDS)}")
    shape = () if entry["channels"] is None else (entry["channels"],)
    hook = FakeQuantizer(
        torch.ones(shape),
        torch.zeros(shape),
        entry["low"],
        entry["high"],
        entry["axis"],
        weight=entry["weight"],
        added=entry["added"],
    )
    hook.enabled = entry["enabled"]
    return hook


def signed_quantizer(high: float) -> FakeQuantizer:
    """A symmetric 8-bit quantizer for values from `-high` to `high`, the kind that right operands of products need."""
    return FakeQuantizer(torch.tensor(max(high, 127e-8) / 127), torch.tensor(0), -128, 127, None, weight=False)


def activation_quantizer(low: float, high: float, *, added: bool = False) -> FakeQuantizer:
    """An unsigned 8-bit quantizer for values from `low` to `high`; the range is widened to contain 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, 1e-8)
    return FakeQuantizer(
        torch.tensor(scale), torch.tensor(round(-low / scale)), 0, 255, None, weight=False, added=added
    )
