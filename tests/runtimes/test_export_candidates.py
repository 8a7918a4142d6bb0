"""A CandidateNet is exported like a CRIS: three graphs, in float32 and in int8, with its presence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cris_edge import Segmenter
from cris_edge.image import preprocess
from cris_edge.tokenizer import Tokenizer
from quantization.calibrate import calibrate
from quantization.post_training import Scheme
from runtimes import npu_rules
from runtimes.export import Options, export
from training.checkpoint import save_model
from training.model import CandidateArchitecture, CandidateNet

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

BOTH = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def network() -> CandidateNet:
    torch.manual_seed(0)
    sizes = {"candidates": 4, "width": 32, "layers": 1, "text_layers": 1, "heads": 2, "rows": 20}
    model = CandidateNet(CandidateArchitecture(input_size=128, **sizes)).eval()
    with torch.no_grad():
        model.selector.table.row.copy_(torch.arange(49408) % 20)
        for table in (model.selector.table.vectors, model.selector.table.classes, model.selector.table.colours):
            table.normal_(0, 0.5)
    return model


@pytest.fixture(scope="module")
def checkpoint(network: CandidateNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    save_model(path, network, recipe="random weights")
    return path


def test_the_float32_bundle_computes_what_the_network_computes(
    network: CandidateNet, checkpoint: Path, tmp_path: Path
) -> None:
    bundle = export(checkpoint, tmp_path / "bundle", Options(runtimes=BOTH))
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["architecture"]["family"] == "candidates" and manifest["presence"]["source"] == "head"
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    pixels, tokens = preprocess(image, 128)[0], Tokenizer()(["the red cup"], 20)
    with torch.no_grad():
        logits, presence = network.forward_with_presence(torch.from_numpy(pixels), torch.from_numpy(tokens))
    for runtime in BOTH:
        with Segmenter(bundle, runtime=runtime, precision="float32") as segmenter:
            assert np.abs(segmenter.logits(pixels, tokens) - logits.numpy()).max() < 1e-3
            assert segmenter(image, "the red cup").presence == pytest.approx(presence.sigmoid().item(), abs=1e-3)
    for name, path in manifest["runtimes"]["openvino"].items():
        assert npu_rules.check(name, bundle / path).violations == ()


def test_the_int8_bundle_has_integer_convolutions_and_small_tables(checkpoint: Path, tmp_path: Path) -> None:
    int8 = tmp_path / "int8.pt"
    calibrate(checkpoint, "scenes:train:8:3", int8, Scheme(), images=8)
    bundle = export(int8, tmp_path / "bundle", Options(precision="int8", runtimes=BOTH, settings={"shared_onnx": True}))
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert set(manifest["runtimes"]["openvino"].values()) == set(manifest["runtimes"]["onnxruntime"].values())
    fed = [row for row in manifest["parity"] if row["graph"] == "mask_decoder" and row["precision"] == "int8+float32"]
    assert {row["runtime"] for row in fed} == set(BOTH)
    assert all(row["max_abs_diff"] < 0.5 for row in fed)
    sizes = {name: (bundle / path).stat().st_size for name, path in manifest["runtimes"]["onnxruntime"].items()}
    assert sizes["image_encoder"] < 3.8e6 * 1.6  # detector in bytes, the rest in halves
