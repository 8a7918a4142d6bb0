"""The default model: the bundle inside the package."""

from __future__ import annotations

from pathlib import Path


def default_model() -> Path:
    """The folder of the bundle that comes with the package."""
    return Path(__file__).resolve().parents[1] / "models" / "default"
