"""The device that PyTorch computes on."""

from __future__ import annotations

import torch

from cris_edge.errors import OptionError


def choose_device(name: str = "auto") -> torch.device:
    """Return a device by name.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto`` for a GPU if available.

    Raises:
        OptionError: The device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, AttributeError, ImportError):  # depends on the kind of device
        raise OptionError(
            f"--device {name!r} is not available to PyTorch {torch.__version__} on this machine; use auto or cpu."
        ) from None
    return device
