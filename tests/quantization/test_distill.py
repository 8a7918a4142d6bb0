"""Fine-tuning: the loss falls, and a killed run resumes with the same numbers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from cris_edge.errors import OptionError
from quantization.distill import Distillation, DivergedError, Settings
from quantization.quantized_checkpoint import load_quantized
from training.data.samples import open_source

if TYPE_CHECKING:
    from quantization.deploy_network import DeployNetwork

SETTINGS = Settings(steps=6, batch_size=4, sentences=1, learning_rate=1e-3, workers=0, checkpoint_every=2)


def loss_of(student: DeployNetwork, bare: DeployNetwork, data: Path) -> float:
    """The loss with the float network alone, over all data."""
    settings = Settings(steps=3, batch_size=4, sentences=1, workers=0, mask_weight=0)
    run = Distillation(copy.deepcopy(student), bare, open_source(str(data), by_image=True), settings)
    found = []
    for batch in run._batches():
        with torch.no_grad():
            target = torch.sigmoid(bare(batch.image, batch.tokens))
            found.append(float(run.loss(run.student(batch.image, batch.tokens), target, batch.mask)))
    return sum(found) / len(found)


def test_fine_tuning_approaches_the_float_network(int8_file: Path, bare: DeployNetwork, data: Path) -> None:
    student = load_quantized(int8_file)[0]
    with torch.no_grad():  # ranges that are plainly too narrow
        for quantizer in student.quantizers():
            if not quantizer.weight:
                quantizer.scale.mul_(0.4)
    before = loss_of(student, bare, data)
    settings = Settings(steps=25, batch_size=4, sentences=1, learning_rate=1e-3, workers=0, mask_weight=0)
    assert list(Distillation(student, bare, open_source(str(data), by_image=True), settings).run())[-1] == 25
    assert loss_of(student, bare, data) < 0.7 * before


def test_a_killed_run_resumes_with_the_same_numbers(
    int8_file: Path, bare: DeployNetwork, data: Path, tmp_path: Path
) -> None:
    source = open_source(str(data), by_image=True)

    def start(state: Path | None) -> Distillation:
        return Distillation(
            load_quantized(int8_file)[0], bare, source, SETTINGS, state=state, metrics=tmp_path / "m.jsonl"
        )

    whole = start(None)
    list(whole.run())
    stopped = start(tmp_path / "state.pt")
    for _ in stopped.run():  # 12 images, 4 a step: the first pass ends after step 3, and step 2 was saved
        break
    resumed = start(tmp_path / "state.pt")
    assert resumed.step == 2
    list(resumed.run())
    ours, theirs = whole.student.state_dict(), resumed.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((tmp_path / "m.jsonl").read_text().splitlines()[-1])["step"] == 6


def test_the_token_table_and_zero_points_stay(int8_file: Path, bare: DeployNetwork, data: Path) -> None:
    student = load_quantized(int8_file)[0]
    before = copy.deepcopy(student.state_dict())
    list(Distillation(student, bare, open_source(str(data), by_image=True), SETTINGS).run())
    after = student.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if "token_embedding.weight" in name or name.endswith("zero_point")]
    assert [name for name in moved if name.endswith("conv1.weight")] and [
        name for name in moved if name.endswith("scale")
    ]


def test_divergence_names_the_samples(int8_file: Path, bare: DeployNetwork, data: Path) -> None:
    student = load_quantized(int8_file)[0]
    with torch.no_grad():
        student.mask_decoder.place.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"at step 1, with the samples .*png"):
        list(Distillation(student, bare, open_source(str(data), by_image=True), SETTINGS).run())


def test_settings_are_checked() -> None:
    with pytest.raises(OptionError, match="learning_rate is 0"):
        Settings(learning_rate=0)
