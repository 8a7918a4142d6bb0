"""NNCF without telemetry, compilation or progress bars."""

from __future__ import annotations

import logging
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from cris_edge.errors import RuntimeMissingError


class _Arithmetic:
    """The arithmetic of NNCF's quantizers in plain PyTorch: NNCF would compile C++ on first use, for a minute."""

    @staticmethod
    def Quantize_forward(x: Tensor, low: Tensor, span: Tensor, levels: int) -> Tensor:
        scale = (levels - 1) / span
        zero_point = torch.round(-low * scale)
        clipped = torch.minimum(torch.maximum(x, low), low + span)
        return (torch.round((clipped - low) * scale - zero_point)) / scale


def load() -> ModuleType:
    """Import NNCF.

    Raises:
        RuntimeMissingError: It is not installed.
    """
    # NNCF reports usage over the network unless it believes that it is being tested.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
        from nncf.torch.quantization import extensions
    except ModuleNotFoundError as error:
        raise RuntimeMissingError(
            f'NNCF is not installed ({error.name} is missing); install it with pip install -e ".[quantize]".'
        ) from None
    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level would change other loggers' handlers too
    for name in ("QuantizedFunctionsCPU", "QuantizedFunctionsCUDA"):
        if "_loaded_namespace" in vars(getattr(extensions, name, None) or object):
            getattr(extensions, name)._loaded_namespace = _Arithmetic
    module: ModuleType = nncf
    return module


def wrap(module: nn.Module) -> nn.Module:
    """Make `module` run its hooks; wrapping it again changes nothing."""
    load()
    from nncf.torch.function_hook import wrap_model

    wrapped: nn.Module = wrap_model(module)
    return wrapped


def hook_storage(module: nn.Module) -> Any:
    """The hooks of a wrapped module."""
    from nncf.torch.function_hook import get_hook_storage

    return get_hook_storage(module)
