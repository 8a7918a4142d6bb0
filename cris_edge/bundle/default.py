"""The default model, a bundle inside the package."""

from __future__ import annotations

from pathlib import Path


def default_model() -> Path:
    """Return the folder of the default model."""
    return Path(__file__).resolve().parents[1] / "models" / "default"
