"""The device that PyTorch computes on, asked for by name."""

from __future__ import annotations

import torch

from cris_edge.errors import OptionError


def choose_device(name: str = "auto") -> torch.device:
    """Return a device that is there.

    Args:
        name: ``auto`` takes a GPU when there is one; else ``cpu``, ``cuda``, ``cuda:1``, ...

    Raises:
        OptionError: this PyTorch has no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, AttributeError, ImportError):  # each kind of device has its own
        raise OptionError(
            f"--device is {name!r}, and PyTorch {torch.__version__} finds no such device here; give auto or cpu."
        ) from None
    return device
