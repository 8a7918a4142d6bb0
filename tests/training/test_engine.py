from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cris_edge.errors import CheckpointError, DataError, OptionError
from training.checkpoint import load_model, save_model, to_public
from training.data.loader import Batch, Order
from training.distributed import Processes, join
from training.engine import DivergedError, Trainer
from training.fast_network import Network, project_taps
from training.losses import centred, segmentation_loss
from training.model import CRIS, text_to_pixel_loss


def run(config: Any, output: Path) -> Trainer:
    trainer = Trainer(config, output, join("cpu"))
    trainer.fit()
    return trainer


def test_training_learns_which_side_a_prompt_refers_to(
    tiny_run: Callable[..., Any], discs: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        steps=100,
        learning_rate=5e-3,
        schedule="cosine",
        warmup_steps=10,
        dropout=0.0,
        sentences_per_image=4,
        log_every=50,
        checkpoint_every=100,
        val=str(discs),
        validate_every=50,
    )
    trainer = run(config, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [record["val"]["mIoU"] for record in records if "val" in record]
    assert scores[-1] > 58, scores  # both discs at once would score below 50
    best = load_model(tmp_path / "best.pt")
    assert isinstance(best, CRIS) and best.architecture == trainer.model.architecture
    rates = [record for record in records if "loss" in record]
    assert all(record["loader_images_per_second"] > 0 and record["images_per_second"] > 0 for record in rates)


def test_accumulation_gives_the_same_losses(
    tiny_run: Callable[..., Any], losses: Callable[[Path], dict[int, float]], tmp_path: Path
) -> None:
    settings = {"freeze_batch_norm": True, "dropout": 0.0}
    run(tiny_run(**settings), tmp_path / "one")
    run(tiny_run(**settings, accumulation=4), tmp_path / "four")
    one, four = losses(tmp_path / "one"), losses(tmp_path / "four")
    assert one == pytest.approx(four, rel=1e-4)


def test_gradient_checkpointing_gives_the_same_losses(
    tiny_run: Callable[..., Any], losses: Callable[[Path], dict[int, float]], tmp_path: Path
) -> None:
    kept = run(tiny_run(dropout=0.3, learning_rate=1e-4), tmp_path / "kept").model.state_dict()
    changes = {"dropout": 0.3, "learning_rate": 1e-4, "gradient_checkpointing": True}
    recomputed = run(tiny_run(**changes), tmp_path / "recomputed").model.state_dict()
    for name in kept:
        if "running" in name:  # each batch counts once, although it is computed twice
            torch.testing.assert_close(recomputed[name], kept[name], atol=1e-3, rtol=1e-2)
    assert losses(tmp_path / "kept") == pytest.approx(losses(tmp_path / "recomputed"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside PyTorch
def test_compile_gives_the_same_losses(
    tiny_run: Callable[..., Any], losses: Callable[[Path], dict[int, float]], tmp_path: Path
) -> None:
    run(tiny_run(dropout=0.0, steps=3, learning_rate=1e-4), tmp_path / "eager")
    run(tiny_run(dropout=0.0, steps=3, learning_rate=1e-4, compile=True), tmp_path / "compiled")
    assert losses(tmp_path / "eager") == pytest.approx(losses(tmp_path / "compiled"), rel=1e-3)


def poison(trainer: Trainer, at: int, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Fill the images of step ``at`` (from 0) with NaN; return their ids."""
    seen: list[list[str]] = []
    step = trainer.train_step

    def poisoned(micro: list[Batch]) -> tuple[float, float]:
        if trainer.state.step == at:
            seen.extend(batch.ids for batch in micro)
            for batch in micro:
                batch.image.fill_(torch.nan)
        return step(micro)

    monkeypatch.setattr(trainer, "train_step", poisoned)
    return seen


def test_a_nan_loss_reports_step_samples_and_checkpoint(
    tiny_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tiny_run(checkpoint_every=2), tmp_path, join("cpu"))
    seen = poison(trainer, 4, monkeypatch)
    with pytest.raises(DivergedError) as stopped:
        trainer.fit()
    message = str(stopped.value)
    assert "nan at step 5" in message and str(tmp_path / "last.pt") in message
    assert all(name in message for name in seen[0]) and "--learning-rate" in message
    weights = load_model(tmp_path / "last.pt").state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert Trainer(tiny_run(checkpoint_every=2), tmp_path, join("cpu"), resume="auto").state.step == 4


def test_an_infinite_gradient_stops_before_the_weights_change(
    tiny_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tiny_run(), tmp_path, join("cpu"))
    parameter = next(iter(trainer.model.proj.parameters()))
    parameter.register_hook(lambda gradient: gradient * torch.inf)
    before = [value.detach().clone() for value in trainer.model.parameters()]
    with pytest.raises(DivergedError, match=r"norm of the gradient is .* No checkpoint was saved"):
        trainer.fit()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_project_taps_equals_the_projector(tiny_run: Callable[..., Any]) -> None:
    model = CRIS(tiny_run().architecture).train()  # batch norm uses the statistics of the batch
    decoded, sentence = torch.randn(3, 32, 4, 4), torch.randn(3, 32)
    found, expected = project_taps(model.proj, decoded, sentence), model.proj(decoded, sentence)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    parameters, seen = tuple(model.proj.parameters()), torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, parameters, seen), torch.autograd.grad(expected, parameters, seen), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    model.eval()
    image, tokens = torch.randn(2, 3, 64, 64), torch.tensor([[9, 8, 7, 49407, 0]] * 4)
    torch.testing.assert_close(Network(model)(image, tokens)[0], model(image, tokens), atol=1e-4, rtol=1e-4)


def test_loss_options_extend_the_papers_loss() -> None:
    logits, mask = torch.randn(2, 1, 8, 8), (torch.rand(2, 1, 8, 8) > 0.7).float()
    paper = text_to_pixel_loss(logits, mask)
    assert segmentation_loss(logits, mask) == paper
    heavy = segmentation_loss(logits, mask, foreground_weight=1.0 + 1e-6)
    assert heavy == pytest.approx(float(paper), rel=1e-4)
    dice = [float(segmentation_loss(sign * 20 * (mask - 0.5), mask, dice_weight=1.0)) for sign in (1, -1)]
    assert dice[0] < 1e-3 and dice[1] > 1


def test_half_an_area_is_learned_as_the_threshold() -> None:
    logits = torch.full((1, 1, 4, 4), math.log(0.35 / 0.65), requires_grad=True)
    half = torch.full((1, 1, 4, 4), 0.5)
    segmentation_loss(centred(logits, "area", 0.35), half).backward()
    # The loss has its minimum where inference puts the border.
    assert logits.grad is not None and logits.grad.abs().max() < 1e-6
    assert centred(logits, "nearest", 0.35) is logits


def test_distillation_trains_a_student(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(1)
    teacher = CRIS(tiny_run(text_width=64, input_size=96).architecture)
    save_model(tmp_path / "teacher.pt", teacher)
    config = tiny_run(teacher=str(tmp_path / "teacher.pt"), steps=40, log_every=10, checkpoint_every=20)
    trainer = run(config, tmp_path / "student")
    assert trainer.criterion.adapter is not None
    assert trainer.criterion.adapter.weight.shape == (64, 32, 1, 1)  # type: ignore[union-attr]
    records = [json.loads(line)["loss"] for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1] < records[0]
    assert load_model(tmp_path / "student" / "last.pt").architecture == config.architecture  # without the adapter
    resumed = Trainer(config, tmp_path / "student", join("cpu"), resume="auto")
    assert torch.equal(resumed.criterion.adapter.weight, trainer.criterion.adapter.weight)  # type: ignore[union-attr]


def test_initial_weights_are_loaded_or_rejected(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    first = run(tiny_run(steps=1), tmp_path / "first")
    config = tiny_run(init=str(tmp_path / "first" / "last.pt"))
    second = Trainer(config, tmp_path / "second", join("cpu"))
    for name, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value)
    with pytest.raises(CheckpointError, match="does not fit"):
        other = tiny_run(init=str(tmp_path / "first" / "last.pt"), ffn_dim=64)
        Trainer(other, tmp_path / "third", join("cpu"))


def test_clip_weights_initialize_the_backbone(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    clip = CRIS(tiny_run().architecture).backbone.state_dict()
    public = to_public({name: value for name, value in clip.items() if "connect" not in name})
    torch.save(public, tmp_path / "clip.pt")
    trainer = Trainer(tiny_run(clip=str(tmp_path / "clip.pt")), tmp_path / "run", join("cpu"))
    assert torch.equal(trainer.model.backbone.visual.conv1.weight, clip["visual.conv1.weight"])
    with pytest.raises(CheckpointError, match="--vision-width"):
        other = tiny_run(clip=str(tmp_path / "clip.pt"), vision_width=16)
        Trainer(other, tmp_path / "other", join("cpu"))


def test_finetune_continues_any_checkpoint(
    tiny_run: Callable[..., Any], discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.train import main

    first = run(tiny_run(steps=1), tmp_path / "first")
    public = {f"module.{key}": value for key, value in to_public(first.model.state_dict()).items()}
    torch.save({"state_dict": public}, tmp_path / "public.pth")
    for name, source in (("own", tmp_path / "first" / "last.pt"), ("public", tmp_path / "public.pth")):
        command = [
            "--recipe",
            "finetune",
            "--init",
            str(source),
            "--train",
            str(discs),
            "--output",
            str(tmp_path / name),
        ]
        options = ["--steps", "2", "--workers", "0", "--input-size", "96", "--device", "cpu", "--batch-size", "2"]
        assert main([*command, *options]) == 0
        continued = load_model(tmp_path / name / "last.pt")
        assert continued.architecture.input_size == 96
        assert continued.architecture.vision_layers == first.model.architecture.vision_layers
    assert main(["--recipe", "finetune", "--train", str(discs), "--output", str(tmp_path / "x")]) == 1
    assert "--init is missing" in capsys.readouterr().err


def test_a_full_disk_is_reported_and_the_last_checkpoint_kept(
    tiny_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tiny_run(checkpoint_every=2), tmp_path, join("cpu"))
    sync = os.fsync

    def full(descriptor: int) -> None:
        if trainer.state.step > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*kept"):
        trainer.fit()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "last.pt", "metrics.jsonl"]
    assert Trainer(tiny_run(), tmp_path, join("cpu"), resume="auto").state.step == 2


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_epoch_gives_every_example_to_one_process_once(accumulation: int) -> None:
    def order(rank: int) -> Order:
        return Order(10, 4, 10, 3, lambda step: 64 + 32 * (step > 4), accumulation=accumulation, rank=rank, world=2)

    parts = [list(order(rank).micro_batches(0)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [10 * accumulation] * 2
    keys = [key for first, second in zip(*parts, strict=True) for key in first + second]
    for epoch in range(4):
        assert sorted(index for number, index, _ in keys if number == epoch) == list(range(10))
    assert {size for _, _, size in keys[:20]} == {64} and {size for _, _, size in keys[20:]} == {96}
    assert list(order(1).micro_batches(7)) == parts[1][7 * accumulation :]


def test_a_broken_sample_is_named(tiny_run: Callable[..., Any], discs: Path, tmp_path: Path) -> None:
    import cv2

    from tests.training.conftest import write_scenes

    data = write_scenes(tmp_path / "broken", count=2)
    cv2.imwrite(str(data.parent / "1_left.png"), np.zeros((3, 3), np.uint8))
    with pytest.raises(DataError, match=r"1\.png.*3 x 3 pixels, but the image"):
        run(tiny_run(train=str(data)), tmp_path / "run")
    data.write_text(data.read_text().replace("0.png", "gone.png"))
    with pytest.raises(DataError, match=r"gone\.png"):
        run(tiny_run(train=str(data)), tmp_path / "other")


def test_unsupported_precision_and_batch_sizes_are_rejected(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="float16 needs a GPU"):
        run(tiny_run(precision="float16"), tmp_path)
    with pytest.raises(OptionError, match="cannot be divided among 3 processes"):
        Trainer(tiny_run(), tmp_path, Processes(0, 3, torch.device("cpu")))


@pytest.mark.parametrize("changes", [{"contrastive": False}, {"decoder_layers": 0}])
def test_ablations_train_all_parameters(tiny_run: Callable[..., Any], tmp_path: Path, changes: dict[str, Any]) -> None:
    trainer = run(tiny_run(steps=2, **changes), tmp_path)
    unused = [n for n, p in trainer.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused  # data-parallel training would wait for them
