"""NNCF, loaded the way this project needs it: no telemetry, no compiler, no chatter."""

from __future__ import annotations

import logging
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from cris_edge.errors import RuntimeMissingError


class _Arithmetic:
    """What NNCF's quantizers compute, in plain PyTorch: NNCF itself would compile C++ on first use, for a minute."""

    @staticmethod
    def Quantize_forward(x: Tensor, low: Tensor, span: Tensor, levels: int) -> Tensor:
        scale = (levels - 1) / span
        zero_point = torch.round(-low * scale)
        clipped = torch.minimum(torch.maximum(x, low), low + span)
        return (torch.round((clipped - low) * scale - zero_point)) / scale


def load() -> ModuleType:
    """The module `nncf`.

    Raises:
        RuntimeMissingError: It is not installed.
    """
    # It reports its use over the network, except where it believes it is being tested.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
        from nncf.torch.quantization import extensions
    except ModuleNotFoundError as error:
        raise RuntimeMissingError(
            f'NNCF is not installed ({error.name} is missing); install it with pip install -e ".[quantize]".'
        ) from None
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own function would set the level of others' handlers, too
    for name in ("QuantizedFunctionsCPU", "QuantizedFunctionsCUDA"):
        if "_loaded_namespace" in vars(getattr(extensions, name, None) or object):
            getattr(extensions, name)._loaded_namespace = _Arithmetic
    return nncf


def wrap(module: nn.Module) -> nn.Module:
    """Make `module` run its hooks; done twice it is done once."""
    load()
    from nncf.torch.function_hook import wrap_model

    return wrap_model(module)


def hook_storage(module: nn.Module) -> Any:
    """The hooks of a wrapped module."""
    from nncf.torch.function_hook import get_hook_storage

    return get_hook_storage(module)
