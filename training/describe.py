"""``python -m training.describe FILE``: describe a checkpoint, its problems, and the command to run next."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cris_edge.errors import CrisEdgeError
from training.checkpoint import (
    FORMAT,
    clip_architecture,
    differences,
    file_kind,
    from_public,
    infer_architecture,
    is_candidates,
    public_state,
    read_checkpoint,
    read_clip,
    recorded,
)
from training.download import fetch
from training.model import CRIS, Architecture, CandidateArchitecture, CandidateNet

QUANTIZED = "cris-edge-quantized"
_NAMES = {
    ((3, 4, 6, 3), 64): "R50",
    ((3, 4, 23, 3), 64): "R101",
    ((4, 6, 10, 6), 80): "RN50x4",
    ((6, 8, 18, 8), 96): "RN50x16",
    ((3, 15, 36, 10), 128): "RN50x64",
}


@dataclass(frozen=True)
class Description:
    """Description of a checkpoint file.

    Attributes:
        path: The file.
        kind: Format and origin of the file.
        backbone: "R50", "R101", ..., "custom", or "NanoDet-g".
        architecture: Of the network, with defaults for what the file does not store.
        parameters: Number of weights, running statistics not counted.
        dtypes: Floating-point dtypes of the stored tensors.
        stored: Whether the file stores word length, input size and decoder heads; if not, the values are defaults.
        notes: Metadata: recipe, epoch, best score.
        problems: Missing and unexpected tensors, and wrong shapes.
        command: The command to run next.
    """

    path: Path
    kind: str
    backbone: str
    architecture: Architecture | CandidateArchitecture
    parameters: int
    dtypes: tuple[str, ...]
    stored: bool
    notes: Mapping[str, Any]
    problems: tuple[str, ...]
    command: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        plain = {**self.__dict__, "path": str(self.path), "architecture": self.architecture.to_dict()}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    def __str__(self) -> str:
        architecture, default = self.architecture, "" if self.stored else " (not stored; the default)"
        words = "" if self.stored else " (not stored; 17 for RefCOCO and RefCOCO+, 22 for G-Ref)"
        rows = {
            "file": self.path,
            "kind": self.kind,
            **{name.replace("_", " "): value for name, value in self.notes.items()},
            **self._parts(default),
            "parameters": f"{self.parameters / 1e6:.2f} million, stored as {', '.join(self.dtypes)}",
            "word length": f"{architecture.word_len} tokens{words}",
            "input size": f"{architecture.input_size} pixels{default}",
            "problems": "; ".join(self.problems) or "none",
            "next": self.command,
        }
        return "\n".join(f"{name:14}{value}" for name, value in rows.items())

    def _parts(self, default: str) -> dict[str, str]:
        architecture = self.architecture
        if isinstance(architecture, CandidateArchitecture):
            return {
                "backbone": f"{self.backbone}, {architecture.candidates} candidates",
                "text encoder": f"{architecture.text_layers} layers, width {architecture.width}, "
                f"{architecture.rows} known words",
                "selector": f"{architecture.layers} layers, width {architecture.width}, {architecture.heads} heads",
            }
        return {
            "backbone": f"{self.backbone}: blocks {'-'.join(map(str, architecture.vision_layers))}, stem width "
            f"{architecture.vision_width}, embedding {architecture.embed_dim}",
            "text encoder": f"{architecture.text_layers} layers, width {architecture.text_width}",
            "neck": f"widths {', '.join(map(str, architecture.neck_widths))}",
            "decoder": f"{architecture.decoder_layers} layers, {architecture.decoder_heads} heads{default}, "
            f"feed-forward width {architecture.ffn_dim}",
        }


def describe(path: Path) -> Description:
    """Describe a checkpoint file.

    Raises:
        CheckpointError: The file contains neither CRIS nor CLIP weights, or cannot be read.
    """
    if file_kind(path) == "archive":
        return _describe_clip(path, read_clip(path), "CLIP weights: a TorchScript archive as distributed by OpenAI")
    content = read_checkpoint(path)
    if content.get("format") == QUANTIZED:
        return _describe_quantized(path, content)
    state = public_state(content, path)
    if "visual.layer1.0.conv1.weight" in state:
        return _describe_clip(path, read_clip(path), "CLIP weights: a state dict")
    if is_candidates(content):
        return _describe_candidates(path, content)
    ours = content.get("format") == FORMAT
    architecture = (
        Architecture.from_dict(content["architecture"]) if ours else infer_architecture(state, path, given={})
    )
    with torch.device("meta"):
        expected = CRIS(architecture).state_dict()
    problems = differences(from_public(state), expected)
    if ours:
        kind = "CRIS checkpoint of this project"
    elif file_kind(path) == "safetensors":
        kind = "CRIS checkpoint: safetensors"
    else:
        kind = "CRIS checkpoint with the names of the public code"
    names = [str(name) for name in content.get("state_dict", content)]
    if names and all(name.startswith("module.") for name in names):
        kind += ", saved from a data-parallel model"
    return Description(
        **_facts(path, kind, architecture, state),
        stored=ours,
        notes=_notes(content),
        problems=tuple(problems),
        command=_export(path, architecture, ours) if not problems else "none: the checkpoint is incomplete",
    )


def _describe_candidates(path: Path, content: Mapping[str, Any]) -> Description:
    architecture = CandidateArchitecture.from_dict(content["architecture"])
    with torch.device("meta"):
        expected = CandidateNet(architecture).state_dict()
    problems = differences(content["state_dict"], expected)
    return Description(
        **_facts(path, "CandidateNet checkpoint of this project", architecture, content["state_dict"]),
        stored=True,
        notes=_notes(content),
        problems=tuple(problems),
        command=_export(path, architecture, True) if not problems else "none: the checkpoint is incomplete",
    )


def _describe_clip(path: Path, clip: Mapping[str, Tensor], kind: str) -> Description:
    architecture = clip_architecture(dict(clip), path)
    name = _backbone(architecture)
    recipe = {"R50": "r50", "R101": "r101"}.get(name)
    command = ["python", "-m", "training.train", "--recipe", recipe or "r50", "--clip", str(path)]
    if recipe is None:
        for option in ("vision_layers", "vision_width", "image_resolution", "embed_dim", "text_width"):
            value = getattr(architecture, option)
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            command += [f"--{option.replace('_', '-')}", text]
    return Description(
        **_facts(path, kind, architecture, clip),
        stored=False,
        notes={},
        problems=("neck, decoder and projector are missing: train them first",),
        command=shlex.join([*command, "--train", "DATA.jsonl", "--output", "runs/NAME"]),
    )


def _describe_quantized(path: Path, content: Mapping[str, Any]) -> Description:
    architecture = stored_architecture(content)
    states = [graph["state"] for graph in content["graphs"].values()]
    tensors = {f"{number}.{name}": tensor for number, state in enumerate(states) for name, tensor in state.items()}
    return Description(
        **_facts(path, f"quantized {_family(architecture)} checkpoint of this project (int8)", architecture, tensors),
        stored=True,
        notes=_notes(content),
        problems=(),
        command=_export(path, architecture, True, "--precision", "int8"),
    )


def stored_architecture(content: Mapping[str, Any]) -> Architecture | CandidateArchitecture:
    """Return the architecture that a checkpoint of ours stores, of either family."""
    values = content["architecture"]
    if values.get("family") == CandidateArchitecture.family:
        return CandidateArchitecture.from_dict(values)
    return Architecture.from_dict(values)


def _family(architecture: Architecture | CandidateArchitecture) -> str:
    return "CRIS" if isinstance(architecture, Architecture) else "CandidateNet"


def _facts(
    path: Path, kind: str, architecture: Architecture | CandidateArchitecture, state: Mapping[str, Tensor]
) -> dict[str, Any]:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    weights = [tensor for name, tensor in state.items() if not name.endswith(statistics)]
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values() if tensor.is_floating_point()}
    return {
        "path": path,
        "kind": kind,
        "backbone": _backbone(architecture),
        "architecture": architecture,
        "parameters": sum(tensor.numel() for tensor in weights),
        "dtypes": tuple(sorted(dtypes)),
    }


def _backbone(architecture: Architecture | CandidateArchitecture) -> str:
    if isinstance(architecture, CandidateArchitecture):
        return "NanoDet-g"
    return _NAMES.get((architecture.vision_layers, architecture.vision_width), "custom")


def _notes(content: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: content[name] for name in ("epoch", "step", "cur_iou", "best_iou") if name in content}
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in numbers.items()}
    return {**recorded(content), **{name: value for name, value in plain.items() if isinstance(value, (int, float))}}


def _export(path: Path, architecture: Architecture | CandidateArchitecture, stored: bool, *more: str) -> str:
    command = ["python", "-m", "runtimes.export", "--checkpoint", str(path), "--output", path.stem, *more]
    if not stored:
        command += ["--word-len", str(architecture.word_len), "--input-size", str(architecture.input_size)]
    return shlex.join(command)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    result = argparse.ArgumentParser(prog="python -m training.describe", description=__doc__, allow_abbrev=False)
    result.add_argument("file", help="a checkpoint: a path, a URL, or owner/name/file on the Hugging Face hub")
    result.add_argument("--json", action="store_true", help="print one JSON document")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Describe a file; return the exit status, 1 if it is not a checkpoint."""
    options = parser().parse_args(arguments)
    try:
        found = describe(fetch(options.file))
    except CrisEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
