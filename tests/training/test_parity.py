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

        The file's weights were saved after the training step, which had moved the running statistics of every batch
        norm one step (momentum 0.1) towards its batch; the eval-mode numbers come from before. The step is undone:
        the batch's statistics are what a momentum of 1 leaves behind.
        """
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


@pytest.fixture(scope="module", params=["a", "b"])
def golden(request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return Golden(shared_data / "golden" / f"cris_small_{request.param}.npz", tmp_path_factory.mktemp("golden"))


def assert_close(ours: Tensor, theirs: Tensor, name: str) -> None:
    assert ours.shape == theirs.shape, name
    assert (ours - theirs).abs().max() < 1e-4, f"{name}: {(ours - theirs).abs().max():.2e}"


@torch.no_grad()
def test_every_intermediate(golden: Golden) -> None:
    model, image, tokens = golden.model(), golden["image"], golden["tokens"]
    features = model.backbone.encode_image(image)
    for name, feature in zip(("c3", "c4", "c5"), features, strict=True):
        assert_close(feature, golden[name], name)
    words, sentence = model.backbone.encode_text(tokens)
    assert_close(words, golden["words"], "words")
    assert_close(sentence, golden["sentence"], "sentence")

    f3, f4, f5 = model.neck.pyramid(features, sentence)
    for name, feature in (("f3", f3), ("f4", f4), ("f5", f5)):
        assert_close(feature, golden[f"neck/{name}"], name)
    assert_close(model.neck.aggregate(f3, f4, f5), golden["neck/aggregated"], "aggregated")
    fused = model.neck(features, sentence)
    assert_close(fused, golden["fused"], "fused")

    _, channels, height, width = fused.shape
    v_pos, t_pos = image_positions(height, width, channels), word_positions(tokens.shape[1], channels)
    assert_close(v_pos.mT.reshape(1, channels, height, width), golden["decoder/image_positions"], "image positions")
    assert_close(t_pos, golden["decoder/word_positions"], "word positions")
    v = fused.flatten(2).mT
    for number, layer in enumerate(model.decoder.layers):
        v = layer(v, words, v_pos, t_pos, (tokens != 0)[:, None, None, :])
        assert_close(v.mT.reshape(fused.shape), golden[f"decoder/layer{number}"], f"layer {number}")
    decoded = model.decoder(fused, words, tokens == 0)
    assert_close(decoded, golden["decoded"], "decoded")

    assert_close(model.proj.vis(decoded), golden["projector/visual"], "projector, visual")
    assert_close(model.proj.txt(sentence), golden["projector/kernel"], "projector, kernel")
    assert_close(model(image, tokens), golden["logits"], "logits")


def test_training_loss_and_gradients(golden: Golden) -> None:
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
