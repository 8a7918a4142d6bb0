"""Checkpoints: read every kind that holds CRIS or CLIP weights, and write our own atomically.

In the project's modules attention has separate q, k and v layers. On disk the names are those of the public CRIS
checkpoints, in which they are one ``in_proj_weight``. `to_public` and `from_public` convert between the two.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cris_edge.errors import CheckpointError
from cris_edge.files import naming
from training.model import CRIS, Architecture, CandidateArchitecture, CandidateNet

FORMAT = "cris-edge"
VERSION = 1

State = dict[str, Tensor]

_JOINED = re.compile(r"^(.*(?:\.attn|\.self_attn|\.multihead_attn))\.in_proj_(weight|bias)$")
_SPLIT = re.compile(r"^(.*(?:\.attn|\.self_attn|\.multihead_attn))\.([qkv])_proj\.(weight|bias)$")
# What data-parallel training and torch.compile put before every name, in any order.
_WRAPPER = re.compile(r"^(?:module\.|_orig_mod\.)+")
# CLIP's archives carry three numbers beside the weights, and its logit scale is the only other scalar.
_CLIP_NUMBERS = ("input_resolution", "context_length", "vocab_size")
_TABLE = "backbone.token_embedding.weight"
_NEW_IN_CRIS = "visual.attnpool.connect."
# Trainers store their best score beside the weights as a numpy scalar: data, not code.
_NUMPY_SCALARS: list[Any] = [np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32)), type(np.dtype(np.int64))]
_NUMPY_SCALARS.append(np._core.multiarray.scalar if hasattr(np, "_core") else np.core.multiarray.scalar)  # type: ignore[attr-defined]


def load_model(
    path: str | os.PathLike[str],
    *,
    word_len: int | None = None,
    decoder_heads: int | None = None,
    input_size: int | None = None,
) -> CRIS:
    """Load a CRIS in eval mode, float32, from any CRIS checkpoint: public, safetensors, or our own.

    The architecture is inferred from the tensors. Shapes do not show `word_len` (default 17 tokens), `decoder_heads`
    (8) and `input_size` (416 pixels); pass these. Our own checkpoints store them.

    Raises:
        CheckpointError: The file is of another kind, has missing or surplus tensors, or disagrees with an argument.
    """
    path = Path(path)
    given = {"word_len": word_len, "decoder_heads": decoder_heads, "input_size": input_size}
    given = {name: value for name, value in given.items() if value is not None}
    content = read_checkpoint(path)
    if is_candidates(content):
        raise CheckpointError(f"{path} holds a CandidateNet, expected a CRIS: read it with load_network.")
    state = public_state(content, path)
    if content.get("format") == FORMAT:
        architecture = Architecture.from_dict(content["architecture"])
        for name, value in given.items():
            carried = getattr(architecture, name)
            if value != carried:
                raise CheckpointError(
                    f"{path} was trained with {name} {carried}, and {value} was requested; leave {name} out, or train "
                    f"again with {value}."
                )
    else:
        architecture = infer_architecture(state, path, given)
    model = CRIS(architecture)
    load_public(model, state, path)
    return model.eval()


def load_network(path: str | os.PathLike[str], **given: int | None) -> CRIS | CandidateNet:
    """Load a network of either family in eval mode, float32.

    Args:
        path: What `load_model` reads, or a CandidateNet that `save_model` wrote.
        given: For `load_model`; a CandidateNet takes only ``input_size``, and stores the rest.

    Raises:
        CheckpointError: As `load_model`.
    """
    content = read_checkpoint(path)
    if not is_candidates(content):
        return load_model(path, **given)
    model = CandidateNet(CandidateArchitecture.from_dict(content["architecture"]))
    _require_same(content["state_dict"], model.state_dict(), path)
    model.load_state_dict(content["state_dict"])
    for name in ("word_len", "decoder_heads"):
        stored = getattr(model.architecture, name, None)
        if given.get(name) not in (None, stored):
            raise CheckpointError(f"{path} holds a CandidateNet, whose {name} cannot be chosen: leave {name} out.")
    size = given.get("input_size")
    return (model if size is None else model.at_size(size)).eval()


def is_candidates(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's content is a CandidateNet of ours."""
    architecture = content.get("architecture")
    if content.get("format") != FORMAT or not isinstance(architecture, Mapping):
        return False
    return bool(architecture.get("family") == CandidateArchitecture.family)


def save_model(
    path: str | os.PathLike[str], model: CRIS | CandidateNet, *, compact: bool = False, **extra: Any
) -> None:
    """Write `model` in our own format: public names, its architecture, and `extra` (plain containers and tensors).

    With `compact`, matrices are stored as float16, and only the non-zero rows of the token table are kept, with their
    ids: a quarter of the size where few words are known. Loading is the same, and gives float32.
    """
    state = to_public({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})
    if compact:
        state = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in state.items()}
        if _TABLE in state:
            ids = state[_TABLE].any(dim=1).nonzero().flatten()
            state, extra = {**state, _TABLE: state[_TABLE][ids]}, {**extra, "token_ids": ids}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": model.architecture.to_dict(),
        "state_dict": state,
        **extra,
    }
    write_atomically(path, content)


def recorded(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts stored in a checkpoint: recipe, description, and the training target of its logits."""
    return {key: content[key] for key in ("recipe", "description", "mask_target") if isinstance(content.get(key), str)}


def write_atomically(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Save with ``torch.save`` to a temporary file beside `path`, flush it to disk, and rename it."""
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # the usual permissions, not the temporary file's; some file systems cannot
            mask = os.umask(0)
            os.umask(mask)
            Path(temporary).chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error  # PyTorch hides a full disk
        reason = getattr(cause, "strerror", None) or cause
        raise CheckpointError(f"{path} could not be written ({reason}); an existing file was kept.") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the dictionary in a ``torch.save`` or safetensors file, tensors on the CPU; code in it is never run."""
    path = Path(path)
    kind = file_kind(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "archive":
        raise CheckpointError(
            f"{path} is a CLIP archive (TorchScript), not a CRIS checkpoint; train from it with "
            "`python -m training.train --clip FILE`, then use the checkpoint that this writes."
        )
    if kind != "checkpoint":
        raise CheckpointError(f"{path} is {kind}; expected a checkpoint of CRIS (.pth, .pt or .safetensors).")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds here: damaged zip, truncated data, code in the pickle
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged, cut short, or holds more than tensors and plain "
            f"containers ({first[:160]}); get the file again, or save its state_dict alone."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}; expected a dictionary with a state_dict. Save the model's "
            "state_dict, not the model."
        )
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{path} is a safetensors file; run `pip install safetensors` to read it.") from error
    try:
        return {"state_dict": load_file(path)}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); download it again.") from error


def file_kind(path: Path) -> str:
    """Return what a file is by its first bytes: 'checkpoint', 'archive', 'safetensors', or a phrase for a message."""
    if path.is_dir():
        return "a folder"
    try:
        with Path(path).open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; give the path of a checkpoint file.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened ({error.strerror}); give a file that can be read.") from error
    if not head:
        return "an empty file"
    if head.startswith(b"PK"):
        try:
            names = zipfile.ZipFile(path).namelist()
        except zipfile.BadZipFile:
            return "a damaged or truncated zip file"
        if any(name.endswith("/constants.pkl") for name in names):
            return "archive"
        return "checkpoint" if any(name.endswith("/data.pkl") for name in names) else "a zip file without tensors"
    if head[:1] == b"\x80":
        return "checkpoint"  # the pickle format of PyTorch before 1.6
    if head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x08":
        return "an ONNX file"
    if head[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1"):
        return "an image"
    return "a file of another kind"


def read_clip(path: str | os.PathLike[str]) -> State:
    """Return CLIP's weights in float32 by CLIP's own names, from OpenAI's archive or a state dict.

    Raises:
        CheckpointError: The file is neither, or holds a CLIP with a vision transformer.
    """
    path = Path(path)
    if file_kind(path) == "archive":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch announces the end of TorchScript; CLIP is distributed in it
            try:
                state = torch.jit.load(str(path), map_location="cpu").state_dict()
            except RuntimeError as error:
                raise CheckpointError(f"{path} is a damaged TorchScript archive; get the file again.") from error
    else:
        content = read_checkpoint(path)
        state = content.get("state_dict", content)
    state = {
        _WRAPPER.sub("", name): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }
    state = {name: tensor for name, tensor in state.items() if name not in _CLIP_NUMBERS}
    if "visual.proj" in state or "visual.class_embedding" in state:
        raise CheckpointError(f"{path} is a CLIP with a vision transformer; CRIS needs a ResNet, for example RN50.pt.")
    if "visual.layer1.0.conv1.weight" not in state or "token_embedding.weight" not in state:
        raise CheckpointError(f"{path} does not hold CLIP's weights; give OpenAI's RN50.pt, RN101.pt or RN50x4.pt.")
    return state


def load_clip(model: CRIS, clip: State, path: str | os.PathLike[str] = "The CLIP file") -> None:
    """Load CLIP's weights into the backbone; the residual `connect` and all later layers stay as initialized."""
    state = from_public({f"backbone.{name}": tensor for name, tensor in clip.items()})
    wanted = {name: t for name, t in model.state_dict().items() if name.startswith("backbone.")}
    wanted = {name: t for name, t in wanted.items() if _NEW_IN_CRIS not in name}
    _require_same(state, wanted, path)
    model.load_state_dict(state, strict=False)


def clip_architecture(clip: State, path: str | os.PathLike[str] = "The CLIP file", **given: Any) -> Architecture:
    """Return the architecture for CLIP's weights; `given` sets the rest (input_size, decoder_layers, ...)."""
    return _backbone_architecture({f"backbone.{name}": t for name, t in clip.items()}, path, given)


def infer_architecture(state: State, path: str | os.PathLike[str], given: Mapping[str, Any]) -> Architecture:
    """Infer the architecture of a CRIS state dict with public names; `given` holds what shapes cannot tell."""
    layers = {name.split(".")[2] for name in state if name.startswith("decoder.layers.")}
    sizes: dict[str, Any] = {"decoder_layers": len(layers), "contrastive": "proj.txt.weight" in state}
    sizes["presence"] = any(name.startswith("presence.") for name in state)
    if layers:
        sizes["ffn_dim"] = _shape(state, "decoder.layers.0.ffn.0.weight", 2, path)[0]
    sizes["neck_width3"] = _shape(state, "neck.f3_v_proj.0.weight", 4, path)[0]
    sizes["neck_width5"] = _shape(state, "neck.txt_proj.0.weight", 2, path)[0]
    architecture = _backbone_architecture(state, path, {**given, **sizes})
    # A width that has its default is not written down, so that an inferred and a configured architecture compare equal.
    plain = replace(architecture, neck_width3=None, neck_width5=None)
    return plain if plain.neck_widths == architecture.neck_widths else architecture


def _backbone_architecture(state: State, path: str | os.PathLike[str], others: Mapping[str, Any]) -> Architecture:
    def stage(number: int) -> int:
        prefix = f"backbone.visual.layer{number}."
        return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

    def shape(name: str, dimensions: int) -> torch.Size:
        return _shape(state, f"backbone.{name}", dimensions, path)

    blocks = {name.split(".")[3] for name in state if name.startswith("backbone.transformer.resblocks.")}
    vocab_size, text_width = shape("token_embedding.weight", 2)
    sizes: dict[str, Any] = {
        "vision_layers": (stage(1), stage(2), stage(3), stage(4)),
        "vision_width": shape("visual.layer1.0.conv1.weight", 4)[0],
        "image_resolution": 32 * round((shape("visual.attnpool.positional_embedding", 2)[0] - 1) ** 0.5),
        "embed_dim": shape("text_projection", 2)[1],
        "vocab_size": vocab_size,
        "context_length": shape("positional_embedding", 2)[0],
        "text_width": text_width,
        "text_layers": len(blocks),
    }
    return Architecture(**{**sizes, **others})


def _tensor(state: State, name: str, path: str | os.PathLike[str]) -> Tensor:
    if name not in state:
        raise CheckpointError(
            f"{path} has no tensor {name}, so it is no CRIS checkpoint; expected the names of the public CRIS code."
        )
    return state[name]


def _shape(state: State, name: str, dimensions: int, path: str | os.PathLike[str]) -> torch.Size:
    shape = _tensor(state, name, path).shape
    if len(shape) != dimensions or 0 in shape:
        raise CheckpointError(
            f"{path} does not fit any CRIS: {name} is {tuple(shape)}, expected {dimensions} dimensions, none of them "
            "0. Get the file again."
        )
    return shape


def public_state(content: Mapping[str, Any], path: str | os.PathLike[str]) -> State:
    """Return the state dict of a checkpoint's content, without the prefixes ``module.`` and ``_orig_mod.``.

    Raises:
        CheckpointError: There is none.
    """
    state = content.get("state_dict", content)
    tensors = isinstance(state, Mapping) and {
        _WRAPPER.sub("", str(name)): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)
    }
    if not tensors:
        found = ", ".join(sorted(map(str, content))[:6]) or "nothing"
        raise CheckpointError(f"{path} holds no state_dict (it has: {found}); expected a CRIS checkpoint.")
    ours = content.get("format") == FORMAT and "token_ids" in content
    return _with_whole_table(tensors, content, path) if ours else tensors


def _with_whole_table(state: State, content: Mapping[str, Any], path: str | os.PathLike[str]) -> State:
    """Restore the rows of the token table that the compact form leaves out: they are zero."""
    rows, ids = _tensor(state, _TABLE, path), content["token_ids"]
    count = Architecture.from_dict(content["architecture"]).vocab_size
    fits = isinstance(ids, Tensor) and ids.dtype == torch.int64 and ids.shape == rows.shape[:1] and len(ids) > 0
    if not fits or ids.min() < 0 or ids.max() >= count:
        raise CheckpointError(
            f"{path} has {len(rows)} rows of the token table without the ids that say which of {count} they are; get "
            "the file again."
        )
    return {**state, _TABLE: rows.new_zeros(count, rows.shape[1]).index_copy(0, ids, rows)}


def load_public(model: CRIS, state: State, path: str | os.PathLike[str] = "The checkpoint") -> None:
    """Load a state dict with public names; missing, surplus and misshapen tensors are listed by name."""
    state = from_public(state)
    wanted = model.state_dict()
    for name in wanted:  # very old checkpoints, and CLIP's, come without the batch counters, which nothing reads
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.tensor(0))
    _require_same(state, wanted, path)
    model.load_state_dict(state)


def _require_same(state: State, wanted: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    if problems := differences(state, wanted):
        raise CheckpointError(f"{path} does not fit this CRIS; {'; '.join(problems)}.")


def differences(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Return one phrase each for missing tensors, surplus ones, and those of another shape."""
    problems = []
    missing = sorted(set(wanted) - set(state) - {n for n in wanted if n.endswith("num_batches_tracked")})
    surplus = sorted(set(state) - set(wanted))
    if missing:
        problems.append(f"missing: {_listed(missing)}")
    if surplus:
        problems.append(f"surplus: {_listed(surplus)}")
    misshapen = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(set(state) & set(wanted))
        if state[name].shape != wanted[name].shape
    ]
    if misshapen:
        problems.append(f"misshapen: {_listed(misshapen)}")
    return problems


def _listed(names: list[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def from_public(state: Mapping[str, Tensor]) -> State:
    """Convert public names to ours: each joined q, k, v parameter becomes three.

    Raises:
        CheckpointError: A joined parameter cannot be split into three.
    """
    ours: State = {}
    for name, tensor in state.items():
        if joined := _JOINED.match(name):
            if tensor.ndim == 0 or tensor.shape[0] % 3 or not tensor.shape[0]:
                raise CheckpointError(
                    f"The tensor {name} is {tuple(tensor.shape)}, expected q, k and v joined along its first "
                    "dimension; get the checkpoint again."
                )
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                ours[f"{joined[1]}.{letter}_proj.{joined[2]}"] = part.clone()
        else:
            ours[name] = tensor
    return ours


def to_public(state: Mapping[str, Tensor]) -> State:
    """Convert our names to public ones: q, k and v of an attention are joined into one parameter."""
    public: State = {}
    for name, tensor in state.items():
        if (split := _SPLIT.match(name)) and "attnpool" not in name:
            if split[2] == "q":
                parts = [state[f"{split[1]}.{letter}_proj.{split[3]}"] for letter in "qkv"]
                public[f"{split[1]}.in_proj_{split[3]}"] = torch.cat(parts)
        else:
            public[name] = tensor
    return public
