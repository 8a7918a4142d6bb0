"""Checkpoints of every kind: those that load, and those that must be refused with a sentence."""

from __future__ import annotations

import pickle
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cris_edge.errors import CheckpointError
from training.checkpoint import (
    clip_architecture,
    load_clip,
    load_model,
    read_checkpoint,
    read_clip,
    save_model,
    to_public,
    write_atomically,
)
from training.model import CRIS, Architecture

SMALL = Architecture(
    input_size=64,
    word_len=8,
    vision_layers=(1, 2, 1, 1),
    vision_width=16,
    image_resolution=96,
    embed_dim=48,
    vocab_size=60,
    context_length=12,
    text_width=64,
    text_layers=2,
    decoder_layers=1,
    decoder_heads=4,
    ffn_dim=96,
)


@pytest.fixture(scope="module")
def model() -> CRIS:
    torch.manual_seed(0)
    return CRIS(SMALL).eval()


def public(model: CRIS) -> dict[str, Tensor]:
    return to_public(model.state_dict())


def assert_same_weights(ours: CRIS, theirs: CRIS) -> None:
    state, other = ours.state_dict(), theirs.state_dict()
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("prefix", ["", "module."])
def test_public_checkpoint(model: CRIS, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "best_model.pth"
    content = {
        "epoch": 50,
        "best_iou": np.float64(0.7),  # what the public trainer leaves beside the weights
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "state_dict": {prefix + name: tensor for name, tensor in public(model).items()},
    }
    torch.save(content, path)
    loaded = load_model(path, word_len=8, decoder_heads=4, input_size=64)
    assert loaded.architecture == SMALL
    assert not loaded.training
    assert_same_weights(loaded, model)


def test_round_trip_to_public_names_is_exact(model: CRIS, tmp_path: Path) -> None:
    before = public(model)
    assert "decoder.layers.0.self_attn.in_proj_weight" in before
    assert "backbone.visual.attnpool.q_proj.weight" in before
    torch.save({"state_dict": before}, tmp_path / "a.pth")
    after = public(load_model(tmp_path / "a.pth", word_len=8, decoder_heads=4, input_size=64))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_necks_widths_are_inferred(tmp_path: Path) -> None:
    wide = CRIS(replace(SMALL, neck_width3=24, neck_width5=96)).eval()
    torch.save({"state_dict": public(wide)}, tmp_path / "wide.pth")
    loaded = load_model(tmp_path / "wide.pth", word_len=8, decoder_heads=4, input_size=64)
    assert loaded.architecture == wide.architecture
    assert loaded.architecture.neck_widths == (24, 64, 96)
    assert_same_weights(loaded, wide)
    save_model(tmp_path / "own.pth", wide)
    assert load_model(tmp_path / "own.pth").architecture == wide.architecture


def test_an_architecture_without_the_necks_widths_keeps_its_meaning() -> None:
    before = {name: value for name, value in SMALL.to_dict().items() if not name.startswith("neck_")}
    assert Architecture.from_dict(before) == SMALL
    assert SMALL.neck_widths == (32, 64, 48)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("neck.txt_proj.0.weight", (96,)),
        ("neck.f3_v_proj.0.weight", (0, 128, 3, 3)),
        ("backbone.text_projection", (64, 48, 1)),
        ("backbone.token_embedding.weight", (60, 0)),
        ("decoder.layers.0.ffn.0.weight", ()),
        ("decoder.layers.0.self_attn.in_proj_weight", (2, 64)),
    ],
)
def test_a_tensor_of_an_impossible_shape_is_named(
    model: CRIS, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    torch.save({"state_dict": public(model) | {name: torch.zeros(shape)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=re.escape(f"{name} is {shape}, expected")):
        load_model(tmp_path / "a.pth", word_len=8, decoder_heads=4)


def test_own_checkpoint_carries_its_architecture(model: CRIS, tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    save_model(path, model, recipe="test")
    assert read_checkpoint(path)["recipe"] == "test"
    loaded = load_model(path)
    assert loaded.architecture == SMALL
    assert_same_weights(loaded, model)
    assert load_model(path, decoder_heads=4).architecture.decoder_heads == 4
    with pytest.raises(CheckpointError, match="decoder_heads 4, and 8 was requested"):
        load_model(path, decoder_heads=8)


def test_missing_surplus_and_misshapen_tensors_are_named(model: CRIS, tmp_path: Path) -> None:
    state = public(model)
    del state["neck.aggr.0.weight"]
    state["neck.extra"] = torch.zeros(1)
    state["proj.txt.bias"] = torch.zeros(3)
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path / "a.pth", word_len=8, decoder_heads=4)
    for part in ("missing: neck.aggr.0.weight", "surplus: neck.extra", "proj.txt.bias is (3,) instead of"):
        assert part in str(error.value)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemError('code in the checkpoint was run')",))


def test_files_of_another_kind(model: CRIS, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    save_model(whole, model)
    cases = {
        "empty.pth": b"",
        "cut.pth": whole.read_bytes()[:5000],
        "text.pth": b"version https://git-lfs.github.com/spec/v1\n",
        "picture.pth": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "code.pth": pickle.dumps(Harmful(), protocol=2),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    said = {"empty.pth": "an empty file", "cut.pth": "truncated", "text.pth": "another kind", "picture.pth": "an image"}
    for name in cases:
        with pytest.raises(CheckpointError, match=said.get(name, "damaged, cut short, or holds more")):
            load_model(tmp_path / name)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="a folder"):
        load_model(tmp_path)
    torch.save({"weights": 3}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"no state_dict \(it has: weights\)"):
        load_model(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_model(tmp_path / "list.pth")


def test_a_failed_write_leaves_the_old_file(model: CRIS, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_model(path, model)
    before = path.read_bytes()
    with pytest.raises((CheckpointError, pickle.PicklingError, AttributeError, TypeError)):
        write_atomically(path, {"broken": (lambda: None)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Archive(nn.Module):
    """Stands for CLIP's archive: a scripted module whose state dict has CLIP's names, in float16."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            owner: nn.Module = self
            *parents, leaf = name.split(".")
            for parent in parents:
                if parent not in owner._modules:
                    owner.add_module(parent, nn.Module())
                owner = owner.get_submodule(parent)
            owner.register_buffer(leaf, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return x


def clip_state(model: CRIS) -> dict[str, Tensor]:
    state = {n.removeprefix("backbone."): t for n, t in public(model).items() if n.startswith("backbone.")}
    state = {name: t for name, t in state.items() if "connect" not in name and "num_batches" not in name}
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    numbers = {"input_resolution": 96, "context_length": 12, "vocab_size": 60}
    return half | {name: torch.tensor(value) for name, value in numbers.items()}


@pytest.mark.parametrize("archive", [True, False])
def test_clip_weights(model: CRIS, tmp_path: Path, archive: bool) -> None:
    path, state = tmp_path / "RN50.pt", clip_state(model)
    if archive:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(Archive(state)), str(path))
        with pytest.raises(CheckpointError, match="CLIP archive"):
            load_model(path)
    else:
        torch.save(state, path)
    clip = read_clip(path)
    architecture = clip_architecture(clip, path, input_size=64, word_len=8, decoder_heads=4, decoder_layers=1)
    assert architecture.vision_layers == (1, 2, 1, 1) and architecture.image_resolution == 96
    fresh = CRIS(architecture)
    residual = fresh.backbone.visual.attnpool.connect[0].weight.clone()
    load_clip(fresh, clip, path)
    ours, theirs = fresh.state_dict(), model.state_dict()
    for name in ("backbone.visual.layer2.1.conv2.weight", "backbone.transformer.resblocks.1.attn.k_proj.weight"):
        assert torch.equal(ours[name], theirs[name].half().float()), name
    assert torch.equal(ours["backbone.visual.attnpool.connect.0.weight"], residual)


def test_clip_with_a_vision_transformer_is_refused(tmp_path: Path) -> None:
    torch.save({"visual.class_embedding": torch.zeros(4), "token_embedding.weight": torch.zeros(4)}, tmp_path / "v.pt")
    with pytest.raises(CheckpointError, match="vision transformer"):
        read_clip(tmp_path / "v.pt")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("RN101", {"vision_layers": (3, 4, 23, 3), "embed_dim": 512}),
        (
            "RN50x4",
            {
                "vision_layers": (4, 6, 10, 6),
                "vision_width": 80,
                "embed_dim": 640,
                "text_width": 640,
                "image_resolution": 288,
            },
        ),
        (
            "RN50x16",
            {
                "vision_layers": (6, 8, 18, 8),
                "vision_width": 96,
                "embed_dim": 768,
                "text_width": 768,
                "image_resolution": 384,
            },
        ),
        (
            "RN50x64",
            {
                "vision_layers": (3, 15, 36, 10),
                "vision_width": 128,
                "embed_dim": 1024,
                "text_width": 1024,
                "image_resolution": 448,
            },
        ),
    ],
)
def test_every_clip_resnet_is_recognized(name: str, sizes: dict[str, Any]) -> None:
    expected = Architecture(**sizes)
    with torch.device("meta"):
        state = public(CRIS(expected))
    clip = {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}
    assert clip_architecture(clip, name) == expected
