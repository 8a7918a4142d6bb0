"""Provenance of figures: the bundles and checkpoints that a result file was measured with.

A result file about the default model names the digest of its bundle. Once another bundle is in the package, the file is
stale: measure again, or state ``"weights": "previous weights"`` in it, which the pages then show.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, Document
from cris_edge.bundle import Bundle, default_model
from training.checkpoint import sha256

PREVIOUS = "previous weights"


def bundle_record(path: Path) -> dict[str, Any]:
    """What identifies a bundle in a result file: its name, digest, and the checkpoint and versions it was made with."""
    bundle = Bundle.open(path)
    provenance = bundle.manifest.provenance
    return {
        "name": bundle.manifest.name,
        "digest": bundle.digest,
        "default": bundle.path == default_model().resolve(),
        "checkpoint_sha256": provenance.get("checkpoint_sha256"),
        "versions": provenance.get("versions"),
    }


def checkpoint_record(path: Path) -> dict[str, Any]:
    """What identifies a checkpoint in a result file."""
    return {"name": path.name, "sha256": sha256(path)}


def default_digests(found: Document) -> set[str | None]:
    """Digests of the default model's bundle in a result file; empty where its figures are about other networks."""
    bundles = {bundle["digest"] for bundle in found.get("bundles", ()) if bundle["default"]}
    # `cris-edge benchmark` identifies the bundle in each of its cases.
    cases = found.get("cases", ())
    return bundles | {case["digest"] for case in cases if Path(case["path"]).parts[-2:] == ("models", "default")}


def is_previous(found: Document) -> bool:
    """Whether a result file states that it was measured with weights that are no longer the default model's."""
    return found.get("weights") == PREVIOUS


def faults(found: Document, digest: str) -> list[str]:
    """What is wrong with a result file when the bundle in the package has the digest `digest`."""
    known = default_digests(found)
    if not known:
        return ['states "weights", but names no bundle of the default model'] if "weights" in found else []
    if is_previous(found):
        return [f'states "{PREVIOUS}", but was measured with the bundle in the package'] if known == {digest} else []
    return [
        f'was measured with the default model {one}, and the package has {digest}: measure again, or state "{PREVIOUS}"'
        for one in known
        if one != digest
    ]


def results(folder: Path = RESULTS) -> Iterator[tuple[Path, Document]]:
    """Every JSON result file with its content."""
    for path in sorted(folder.glob("*.json")):
        yield path, json.loads(path.read_text(encoding="utf-8"))
