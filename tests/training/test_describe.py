from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training.checkpoint import load_model, save_model, to_public
from training.describe import describe, main
from training.model import CRIS, Architecture


@pytest.fixture(scope="module")
def model(small: Architecture) -> CRIS:
    torch.manual_seed(0)
    return CRIS(replace(small, context_length=77)).eval()


def save_as_reference(model: CRIS, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """What the reference's train.py writes: a data-parallel model with its optimizer and scheduler."""
    state = to_public(model.state_dict())
    state = {f"module.{name}": t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], lr=1e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[35], gamma=0.1)
    assert isinstance(scheduler.state_dict()["milestones"], Counter)
    best = {"epoch": 42, "cur_iou": 0.61, "best_iou": 0.62, "state_dict": state}
    torch.save({**best, "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_references_best_model_loads_and_is_described(model: CRIS, tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "best_model.pth"
    save_as_reference(model, path, dtype)
    found = describe(path)
    assert "data-parallel" in found.kind
    assert found.notes == {"epoch": 42, "cur_iou": 0.61, "best_iou": 0.62}
    assert found.problems == ()
    assert found.dtypes == (str(dtype).removeprefix("torch."),)
    assert not found.stored and "--word-len 17" in found.command
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert found.parameters == expected
    loaded = load_model(path, word_len=8, decoder_heads=4, input_size=64)
    for name, tensor in model.state_dict().items():
        theirs = loaded.state_dict()[name]
        assert theirs.dtype == tensor.dtype
        torch.testing.assert_close(theirs, tensor.to(dtype).to(tensor.dtype), rtol=0, atol=0)


def test_safetensors(model: CRIS, tmp_path: Path) -> None:
    path = tmp_path / "cris.safetensors"
    state = {name: tensor.contiguous() for name, tensor in to_public(model.state_dict()).items()}
    save_file(state, path)
    loaded = load_model(path, word_len=8, decoder_heads=4, input_size=64)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert "safetensors" in describe(path).kind
    path.write_bytes(path.read_bytes()[:-10])
    assert main([str(path)]) == 1


def test_a_compiled_models_names(model: CRIS, tmp_path: Path) -> None:
    state = {f"_orig_mod.module.{name}": tensor for name, tensor in to_public(model.state_dict()).items()}
    torch.save({"state_dict": state}, tmp_path / "compiled.pth")
    loaded = load_model(tmp_path / "compiled.pth", word_len=8, decoder_heads=4, input_size=64)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_an_own_checkpoint_and_its_command(model: CRIS, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.pt"
    save_model(path, model, recipe="tiny-scenes")
    assert main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert "tiny-scenes" in printed and "8 tokens\n" in printed and "64 pixels\n" in printed
    assert main([str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["architecture"] == model.architecture.to_dict() and document["stored"] is True
    assert document["command"].endswith("--output own")


def test_what_is_missing_is_listed(model: CRIS, tmp_path: Path) -> None:
    state = to_public(model.state_dict())
    del state["proj.txt.bias"]
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    found = describe(tmp_path / "a.pth")
    assert found.problems == ("missing: proj.txt.bias",)
    assert "runtimes.export" not in found.command


def test_clip_weights_lead_to_training(model: CRIS, tmp_path: Path) -> None:
    state = {n.removeprefix("backbone."): t for n, t in to_public(model.state_dict()).items() if "backbone." in n}
    torch.save({n: t for n, t in state.items() if "connect" not in n}, tmp_path / "clip.pt")
    found = describe(tmp_path / "clip.pt")
    assert "training.train" in found.command and "--clip" in found.command
    assert "projector" in found.problems[0]


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "image.pth").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main([str(tmp_path / "image.pth")]) == 1
    assert "an image; expected a checkpoint" in capsys.readouterr().err
