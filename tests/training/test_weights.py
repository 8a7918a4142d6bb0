"""The float weights in the repository belong to their bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cris_edge import Segmenter
from cris_edge.bundle import Bundle
from cris_edge.image import THRESHOLD, load_image, postprocess, preprocess
from cris_edge.metrics import iou
from training.checkpoint import load_model, load_network, read_checkpoint, recorded
from training.model import CandidateNet

WEIGHTS = "training/weights/scenes.pt"
BUNDLE = "tests/data/scenes"


def test_masks_match_the_bundle(root: Path) -> None:
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


def test_the_default_model_s_weights_give_its_masks(root: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = load_network(root / "training/weights/default.pt")
    assert isinstance(model, CandidateNet)
    with Segmenter(runtime="onnxruntime", cache_dir=None) as segmenter:
        manifest, tokenizer = segmenter.bundle.manifest, segmenter.bundle.tokenizer
        rgb = load_image(root / "examples/cat.jpg")
        pixels, letterbox = preprocess(rgb, manifest.input_size, mean=manifest.mean, std=manifest.std)
        for prompt in ("the white cat", "the bird", "bowl on the left", "bowl on the right"):
            tokens = torch.from_numpy(tokenizer(prompt, length=manifest.word_len))
            with torch.no_grad():
                logits = model(torch.from_numpy(pixels), tokens).numpy()
            expected = postprocess(logits, letterbox) > manifest.threshold
            assert iou(segmenter(rgb, prompt).mask, expected) > 0.8, prompt  # int8 rounding
    assert (root / "training/weights/default.pt").stat().st_size < 20e6
