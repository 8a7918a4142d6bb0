"""The float weights for fine-tuning belong to the default model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cris_edge.bundle import Bundle
from cris_edge.image import THRESHOLD, preprocess
from cris_edge.metrics import iou
from training.checkpoint import load_model, read_checkpoint, recorded

WEIGHTS = "training/weights/default.pt"
BUNDLE = "cris_edge/models/default"


def test_masks_match_the_default_model(root: Path) -> None:
    model, golden = load_model(root / WEIGHTS), np.load(root / BUNDLE / "golden.npz")
    manifest = Bundle.open(root / BUNDLE).manifest
    assert (model.architecture.input_size, model.architecture.word_len) == (manifest.input_size, manifest.word_len)
    border = np.log(THRESHOLD / (1 - THRESHOLD))
    for image, tokens, simulated in zip(golden["image"], golden["tokens"], golden["logits"], strict=True):
        pixels, _ = preprocess(image, manifest.input_size)
        with torch.no_grad():
            logits = model(torch.from_numpy(pixels), torch.from_numpy(tokens[None]))[0].numpy()
        assert iou(logits > border, simulated > border) > 0.8  # int8 rounding
        assert np.corrcoef(logits.ravel(), simulated.ravel())[0, 1] > 0.95


def test_metadata_and_size(root: Path) -> None:
    assert recorded(read_checkpoint(root / WEIGHTS)) == {"recipe": "tiny-scenes", "mask_target": "area"}
    assert (root / WEIGHTS).stat().st_size < 18e6
