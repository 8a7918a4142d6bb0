"""Referring image segmentation on a CPU or NPU, without PyTorch.

>>> from cris_edge import Segmenter
>>> result = Segmenter()("photo.jpg", "the man in the red shirt")

All errors derive from `cris_edge.errors.CrisEdgeError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cris_edge.media.sources import open_source
    from cris_edge.result import Segmentation
    from cris_edge.segmenter import Segmenter

__all__ = ["Segmentation", "Segmenter", "__version__", "open_source"]

__version__ = "0.1.0"

_MODULES = {
    "Segmentation": "cris_edge.result",
    "Segmenter": "cris_edge.segmenter",
    "open_source": "cris_edge.media.sources",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that importing the package loads nothing, not even numpy."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
