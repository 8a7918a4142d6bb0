"""Bundles: loading, verifying and writing. A bundle is a folder with three graphs, a tokenizer and a manifest."""

from __future__ import annotations

from cris_edge.bundle.default import default_model
from cris_edge.bundle.folder import MANIFEST, Bundle, Golden
from cris_edge.bundle.manifest import FORMAT, GRAPHS, FileRecord, GraphSpec, Manifest, PresenceSpec, TensorSpec
from cris_edge.bundle.writer import BundleWriter

__all__ = [
    "FORMAT",
    "GRAPHS",
    "MANIFEST",
    "Bundle",
    "BundleWriter",
    "FileRecord",
    "Golden",
    "GraphSpec",
    "Manifest",
    "PresenceSpec",
    "TensorSpec",
    "default_model",
    "embedded",
]

embedded = default_model  # the former public name
