"""Checked types for submodules, which PyTorch's annotations only know as `Tensor | Module`."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def typed(module: object, kind: type[T]) -> T:
    """Return a submodule as the type that it has."""
    assert isinstance(module, kind), f"{type(module).__name__} is not a {kind.__name__}"
    return module
