"""A sentence picks out one thing in a photo: CRIS on small CPUs and NPUs, without PyTorch.

>>> from cris_edge import Segmenter
>>> result = Segmenter()("photo.jpg", "the man in the red shirt")

Errors are in `cris_edge.errors`; all of them are a `CrisEdgeError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cris_edge.result import Segmentation
    from cris_edge.segmenter import Segmenter

__all__ = ["Segmentation", "Segmenter", "__version__"]

__version__ = "0.1.0"

_HOMES = {"Segmentation": "cris_edge.result", "Segmenter": "cris_edge.segmenter"}


def __getattr__(name: str) -> object:
    """Load a public name when it is first used: importing the package itself loads nothing, not even numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
