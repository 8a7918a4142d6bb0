"""The network against numbers from the reference implementation: every named intermediate, the loss, the gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from training.checkpoint import load_model, to_public
from training.model import CRIS, text_to_pixel_loss
from training.model.attention import MultiHeadAttention
from training.model.decoder import image_positions, word_positions
from training.model.deploy import Resolution

GRADIENTS = [
    "backbone.visual.conv1.weight",
    "backbone.transformer.resblocks.0.attn.in_proj_weight",
    "decoder.layers.0.self_attn.in_proj_weight",
    "proj.txt.weight",
    "neck.coordconv.0.conv1.0.weight",
]


class Golden:
    """One small reference CRIS: its weights as a public checkpoint, its input, and what it computed."""

    def __init__(self, arrays: Path, folder: Path) -> None:
        with np.load(arrays) as archive:
            self.arrays = {name: archive[name] for name in archive.files if name != "config_json"}
            self.config: dict[str, Any] = json.loads(str(archive["config_json"]))
        self.moved = arrays.stem in ("cris_small_a", "cris_small_b")
        weights = {name[11:]: self[name] for name in self.arrays if name.startswith("state_dict/")}
        self.checkpoint = folder / f"{arrays.stem}.pth"
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, self.checkpoint)

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def trained(self) -> CRIS:
        """The network with the statistics as they stand in the file: after the reference's one training step."""
        return load_model(
            self.checkpoint,
            word_len=self.config["word_len"],
            decoder_heads=self.config["num_head"],
            input_size=self.config["input_size"],
        )

    @torch.no_grad()
    def model(self) -> CRIS:
        """The network that computed the eval-mode numbers.

        In files `a` and `b` the weights were saved after the training step, which had moved the running statistics of
        every batch norm one step (momentum 0.1) towards its batch; the eval-mode numbers come from before. The step is
        undone: the batch's statistics are what a momentum of 1 leaves behind.
        """
        if not self.moved:
            return self.trained()
        model, batch = self.trained(), without_dropout(self.trained()).train()
        for module in batch.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
        batch(self["image"], self["tokens"])
        after = dict(batch.named_buffers())
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_((buffer.double() - 0.1 * after[name].double()) / 0.9)
        return model


def without_dropout(model: CRIS) -> CRIS:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, MultiHeadAttention):
            module.dropout = 0.0
    return model


@pytest.fixture(scope="module", params=["tiny", "small_a", "small_b", "small_c"])
def golden(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """`tiny` and `small_c` have a neck wider than c5, as the reference's R101; `tiny` is part of the checkout."""
    if request.param == "tiny":
        return Golden(root / "tests" / "data" / "cris_tiny.npz", tmp_path_factory.mktemp("golden"))
    shared: Path = request.getfixturevalue("shared_data")
    return Golden(shared / "golden" / f"cris_{request.param}.npz", tmp_path_factory.mktemp("golden"))


def assert_close(ours: Tensor, theirs: Tensor, name: str) -> None:
    assert ours.shape == theirs.shape, name
    assert (ours - theirs).abs().max() < 1e-4, f"{name}: {(ours - theirs).abs().max():.2e}"


@torch.no_grad()
def test_every_intermediate(golden: Golden) -> None:
    model, image, tokens = golden.model(), golden["image"], golden["tokens"]
    features = model.backbone.encode_image(image)
    ours = dict(zip(("c3", "c4", "c5"), features, strict=True))
    ours["words"], ours["sentence"] = words, sentence = model.backbone.encode_text(tokens)
    f3, f4, f5 = model.neck.pyramid(features, sentence)
    ours |= {"neck/f3": f3, "neck/f4": f4, "neck/f5": f5, "neck/aggregated": model.neck.aggregate(f3, f4, f5)}
    ours["fused"] = fused = model.neck(features, sentence)

    _, channels, height, width = fused.shape
    v_pos, t_pos = image_positions(height, width, channels), word_positions(tokens.shape[1], channels)
    ours["decoder/image_positions"] = v_pos.mT.reshape(1, channels, height, width)
    ours["decoder/word_positions"] = t_pos
    v = fused.flatten(2).mT
    for number, layer in enumerate(model.decoder.layers):
        v = layer(v, words, v_pos, t_pos, (tokens != 0)[:, None, None, :])
        ours[f"decoder/layer{number}"] = v.mT.reshape(fused.shape)
    ours["decoded"] = decoded = model.decoder(fused, words, tokens == 0)
    ours["projector/visual"], ours["projector/kernel"] = model.proj.vis(decoded), model.proj.txt(sentence)
    ours["logits"] = model(image, tokens)

    theirs = [name for name in golden.arrays if not name.startswith(("state_dict/", "grad/"))]
    theirs = [name for name in theirs if name not in ("image", "tokens", "mask", "train_loss")]
    assert {"c5", "fused", "logits"} <= set(theirs)
    for name in theirs:
        assert_close(ours[name], golden[name], name)


def test_training_loss_and_gradients(golden: Golden) -> None:
    if "train_loss" not in golden.arrays:
        pytest.skip(f"{golden.checkpoint.stem} holds no training step")
    model = without_dropout(golden.trained()).train()
    loss = text_to_pixel_loss(model(golden["image"], golden["tokens"]), golden["mask"])
    torch.testing.assert_close(loss, golden["train_loss"], rtol=1e-3, atol=0)
    loss.backward()
    gradients = to_public({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name in GRADIENTS:
        theirs = golden[f"grad/{name}"]
        assert (gradients[name] - theirs).norm() < 1e-3 * theirs.norm(), name


@pytest.mark.parametrize("resolution", ["full", "half", "low"])
@torch.no_grad()
def test_deploy_equals_forward(golden: Golden, resolution: Resolution) -> None:
    model = golden.model().at_size(golden["image"].shape[-1])
    image_encoder, text_encoder, mask_decoder = model.deploy(resolution=resolution)
    features = dict(zip(image_encoder.output_names, image_encoder(golden["image"]), strict=True))
    features |= dict(zip(text_encoder.output_names, text_encoder(golden["tokens"]), strict=True))
    logits = mask_decoder(*(features[name] for name in mask_decoder.input_names))
    assert_close(logits, golden["logits"], "deployed logits")
