"""Post-training quantization of one deploy module by NNCF, which places quantizers and calibrates their ranges."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cris_edge.errors import ExportError, OptionError, first_line
from quantization.hooks import hook_storage, load
from quantization.layout import Call, all_but, calls, complete, kept_in_float
from quantization.quantizers import FakeQuantizer, Multiplier, quantizers

PRESETS = ("mixed", "performance")
TARGETS = ("vnni", "any")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Settings of NNCF.

    Attributes:
        smooth: Apply SmoothQuant to the matrix products.
        preset: ``mixed``: activations with a zero point; ``performance``: symmetric activations.
        target: ``vnni``: 8-bit weights; ``any``: 7-bit weights, for CPUs that add products of 8 bits in 16 bits (AVX2
            and AVX-512 without VNNI) and would saturate.
    """

    smooth: bool = False
    preset: str = "mixed"
    target: str = "vnni"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.preset not in PRESETS:
            raise OptionError(f"Unknown preset {self.preset!r}; choose {' or '.join(PRESETS)}.")
        if self.target not in TARGETS:
            raise OptionError(f"Unknown target {self.target!r}; choose {' or '.join(TARGETS)}.")

    def __str__(self) -> str:
        return f"{self.preset}, SmoothQuant {'on' if self.smooth else 'off'}, weights for {self.target}"

    def to_dict(self) -> dict[str, Any]:
        """All settings, ready for JSON."""
        return asdict(self)


def quantize_module(
    module: nn.Module, samples: Sequence[Sequence[Tensor]], scheme: Scheme, *, layers: Sequence[str] | None = None
) -> nn.Module:
    """Return a quantized copy of `module`: its weights, smoothed and bias-corrected, and hooks that quantize.

    Args:
        module: A deploy module, in eval mode.
        samples: Calibration inputs, each in the order of ``module.input_names``.
        scheme: Settings of NNCF.
        layers: Weights to quantize, by name, everything else staying in float; None: all that NNCF quantizes.

    Raises:
        ExportError: NNCF cannot quantize the module.
        RuntimeMissingError: NNCF is not installed.
    """
    nncf = load()
    found = calls(module, samples[0])
    if layers is None:
        _require_known(module, found)
    ignored = kept_in_float(found) if layers is None else all_but(found, layers)
    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.DISABLE,  # NNCF's reaches few layers of a PyTorch module; see `_seven_bits`
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=0.95 if scheme.smooth else -1),
    )
    try:
        with _quiet():
            quantized: nn.Module = nncf.quantize(
                module,
                nncf.Dataset(list(samples), tuple),
                preset=nncf.QuantizationPreset(scheme.preset),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(samples),
                ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
                advanced_parameters=advanced,
            )
    except Exception as error:  # NNCF's own errors have no common base, and PyTorch's pass through
        raise _unsupported(f"{type(module).__name__}: {first_line(error)}") from error
    _adopt(quantized, module, samples[0])
    if scheme.target == "any":
        _seven_bits(quantized)
    complete(quantized, module, samples)
    return quantized.eval()


def _require_known(module: nn.Module, found: Mapping[str, Call]) -> None:
    """Refuse weights that no quantizable call takes: NNCF would leave them in float silently."""
    taken = {call.parameter for call in found.values()}
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1 and parameter.shape[1] > 1 and name not in taken:
            owner = module.get_submodule(name.rpartition(".")[0])
            raise _unsupported(f"{type(owner).__name__} ({name})")


def _unsupported(layer: str) -> ExportError:
    return ExportError(f"NNCF cannot quantize {layer}; use layers that it supports, such as nn.Conv2d and nn.Linear.")


def _adopt(module: nn.Module, bare: nn.Module, sample: Sequence[Tensor]) -> None:
    """Replace NNCF's hooks with ours; a hook that several calls share stays shared."""
    storage = hook_storage(module)
    smoothed = _smoothed(module, bare, sample)
    ours: dict[nn.Module, nn.Module] = {}
    for name, hook in list(storage.named_hooks(remove_duplicate=False)):
        group, key, number = name.split(".")
        if hook not in ours:
            ours[hook] = _converted(hook)
        getattr(storage, group)[key][number] = ours[hook]
    # NNCF attaches the quantizer of smoothed activations to the product inside its own hook, which PyTorch's exporter
    # skips; here it follows the product on the same call.
    for key in [key for key in storage.post_hooks if "pre_hook__" in key]:
        del storage.post_hooks[key]
    for key, quantizer in smoothed.items():
        storage.pre_hooks[key]["1"] = ours[quantizer]


def _smoothed(module: nn.Module, bare: nn.Module, sample: Sequence[Tensor]) -> dict[str, nn.Module]:
    """The quantizer that follows each of SmoothQuant's products, by the key of the product's hook."""
    from nncf.torch.quantization.layers import BaseQuantizer, SQMultiply

    storage = hook_storage(module)
    order = [key for name in calls(bare, sample) if (key := f"{name}__0") in storage.pre_hooks]
    order = [key for key in order if isinstance(storage.pre_hooks[key]["0"], SQMultiply)]
    inside: list[list[nn.Module]] = []
    open_products: list[bool] = []

    def begin(product: nn.Module, _: Any) -> None:
        inside.append([])
        open_products.append(True)

    def end(product: nn.Module, _: Any, __: Any) -> None:
        open_products.pop()

    def seen(quantizer: nn.Module, _: Any) -> None:
        if open_products:
            inside[-1].append(quantizer)

    handles = []
    for _, hook in storage.named_hooks():
        if isinstance(hook, SQMultiply):
            handles += [hook.register_forward_pre_hook(begin), hook.register_forward_hook(end)]
        elif isinstance(hook, BaseQuantizer):
            handles.append(hook.register_forward_pre_hook(seen))
    with torch.no_grad():
        module(*sample)
    for handle in handles:
        handle.remove()
    return {key: found[0] for key, found in zip(order, inside, strict=True) if found}


def _converted(hook: nn.Module) -> nn.Module:
    from nncf.torch.quantization.layers import BaseQuantizer, SQMultiply

    if isinstance(hook, SQMultiply):
        return Multiplier(hook.scale)
    if not isinstance(hook, BaseQuantizer):
        raise ExportError(f"NNCF inserted a {type(hook).__name__}, which this version cannot lower.")
    low, high, scale, zero_point = hook.get_parameters_for_torch_fq()
    axis = int(np.argmax(hook.scale_shape)) if hook.per_channel else None
    if axis is None:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    # With this configuration only weights have one scale per channel.
    return FakeQuantizer(scale, zero_point, low, high, axis, weight=axis is not None)


@torch.no_grad()
def _seven_bits(module: nn.Module) -> None:
    """Halve the range of all weights in products: two products of 8 and 7 bits fit into 16 bits."""
    for name, hook in quantizers(module):
        if hook.weight and "/embedding/" not in name:
            hook.scale.mul_(hook.high / 63)
            hook.low, hook.high = -63, 63


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress NNCF's progress bars on stdout, and warnings about its own calls of PyTorch."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
