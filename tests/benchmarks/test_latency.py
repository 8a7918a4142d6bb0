"""Bundles and peers compute the same function, and ratios are of the same rounds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.latency import PEERS, Comparison, Entry, against, compare, main, to_text
from benchmarks.peers import Exporter, plain, pytorch
from cris_edge.benchmark.rounds import LatencySamples
from cris_edge.benchmark.runner import PROMPT, synthetic_image
from cris_edge.errors import OptionError
from training.checkpoint import save_model
from training.model import CRIS, Architecture

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module")
def checkpoint(folder) -> Path:
    torch.manual_seed(0)
    sizes = {"input_size": 64, "image_resolution": 64, "vision_layers": (1, 1, 1, 1), "vision_width": 8}
    sizes |= {"embed_dim": 32, "text_width": 32, "text_layers": 1, "decoder_layers": 1, "decoder_heads": 2}
    path = folder / "model.pth"
    save_model(path, CRIS(Architecture(**sizes, ffn_dim=32)))
    return path


@pytest.fixture(scope="module")
def image(folder) -> str:
    return str(synthetic_image(folder))


def samples(*blocks: tuple[float, float], stages: dict[str, float] | None = None) -> LatencySamples:
    made = LatencySamples()
    made.blocks = [[{"whole": whole, "next": following, **(stages or {})}] * 3 for whole, following in blocks]
    return made


def entry(name: str, label: str, made: LatencySamples, *, runtime: str = "PyTorch", peak: int = 100) -> Entry:
    info = {"runtime": runtime, "precision": "float32", "threads": 2}
    return Entry(name, label, info, made, memory={"peak": peak, "now": peak}, path=None)


def test_plain_exports_compute_what_pytorch_computes(checkpoint, image, folder):
    expected = np.array(pytorch(str(checkpoint), image, PROMPT, 1).logits())
    exporter = Exporter(str(checkpoint))
    found = {form: exporter.export(str(folder / f"{form}.onnx"), form) for form in ("convolution", "product")}
    # The same sum in two forms.
    assert found["convolution"] == found["product"]
    assert found["product"]["input_size"] == 64
    assert found["product"]["macs"] > 1e6
    sizes = {"input_size": 64, "word_len": 17}
    for runtime, form in (("onnxruntime", "convolution"), ("onnxruntime", "product"), ("openvino", "product")):
        pytest.importorskip(runtime)
        peer = plain(str(folder / f"{form}.onnx"), runtime, "float32", image, PROMPT, 1, **sizes)
        np.testing.assert_allclose(peer.logits(), expected, atol=1e-4)
        assert peer.info["precision"] == "float32"


@pytest.mark.parametrize(("form", "precision", "tolerance"), [("channels last", "float32", 1e-4)])
def test_forms_of_pytorch_compute_the_same(checkpoint, image, form, precision, tolerance):
    expected = pytorch(str(checkpoint), image, PROMPT, 1).logits()
    other = pytorch(str(checkpoint), image, PROMPT, 1, form=form, precision=precision)
    np.testing.assert_allclose(other.logits(), expected, atol=tolerance)


def test_a_peer_does_the_whole_job(checkpoint, image):
    peer = pytorch(str(checkpoint), image, PROMPT, 1)
    found = peer.measure(2)
    assert len(found) == 2
    for sample in found:
        stages = sample["preprocess"] + sample["tokenize"] + sample["network"] + sample["postprocess"]
        assert stages <= sample["whole"]
        assert sample["next"] == pytest.approx(sample["whole"] - sample["preprocess"])
    assert peer.info == {
        "runtime": "PyTorch eager, contiguous",
        "version": torch.__version__,
        "device": "CPU",
        "precision": "float32",
        "threads": 1,
    }


def test_ratios_are_against_the_better_memory_format():
    slow = entry("pytorch", "contiguous", samples((2.0, 1.9), (4.0, 3.8)))
    fast = entry("pytorch-channels-last", "channels last", samples((1.0, 0.9), (2.0, 1.9)), peak=200)
    ours = entry("bundle", "ours", samples((0.1, 0.05), (0.2, 0.1)), runtime="openvino", peak=50)
    assert Comparison([slow, fast, ours]).base is fast
    ratios = against(fast, ours)
    assert ratios["whole"]["ratio"] == pytest.approx(10)
    # The next prompt is compared with all of PyTorch's work: it reuses nothing of the image.
    assert ratios["next"]["ratio"] == pytest.approx(20)
    assert ratios["memory"] == 0.25


def test_bundles_are_compared_with_the_plain_export_in_the_same_runtime_and_precision():
    ours = entry("bundle", "ours", samples((1.0, 0.5)), runtime="openvino")
    other = entry("onnxruntime-plain", "plain", samples((9.0, 9.0)), runtime="onnxruntime, plain export")
    same = entry("openvino-plain", "plain", samples((1.5, 1.5)), runtime="openvino, plain export")
    rows = Comparison([other, same, ours]).to_dict()["entries"]
    assert rows[2]["against_plain"]["whole"]["ratio"] == pytest.approx(1.5)
    assert rows[0]["against_plain"] is None


def test_share_outside_the_network():
    stages = {"preprocess": 0.1, "image_encoder": 0.5, "text_encoder": 0.1, "mask_decoder": 0.3}
    assert entry("bundle", "ours", samples((1.0, 0.5), stages=stages)).overhead == pytest.approx(0.1)


def test_peers_are_measured_together(checkpoint):
    found = compare(checkpoint, [], peers=("pytorch", "pytorch-channels-last"), threads=1, runs=2, seconds=0)
    assert not found.document["failures"]
    assert [len(entry.samples.blocks) for entry in found.entries] == [2, 2]
    assert found.entries[1].difference is not None
    assert found.entries[1].difference < 1e-4
    assert found.base in found.entries


@pytest.mark.slow
def test_one_run_of_all(checkpoint, folder):
    from runtimes.export import Options, export

    bundle = export(checkpoint, folder / "bundle", Options(runtimes=("onnxruntime",)))
    output = folder / "found.json"
    arguments = ["--checkpoint", checkpoint, "--bundle", bundle, "--runs", 3, "--seconds", 0, "--threads", 1]
    arguments += ["--peer", "pytorch", "--peer", "onnxruntime-plain", "--output", output, "--markdown"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    found = json.loads(output.read_text())
    assert not found["failures"]
    assert [row["name"] for row in found["entries"]] == ["pytorch", "onnxruntime-plain", "bundle"]
    for row in found["entries"]:
        assert row["largest_difference_of_a_logit"] < 1e-3  # all of them compute the same
        assert row["info"]["threads"] == 1
        assert row["memory"]["peak"] > 20e6
    torch_peak, plain_peak = (row["memory"]["peak"] for row in found["entries"][:2])
    assert plain_peak < 0.8 * torch_peak  # torch is not in the process of an export
    assert found["entries"][2]["against_plain"]["whole"]["ratio"] > 0
    assert found["bundles"][0]["digest"] and not found["bundles"][0]["default"] and found["checkpoint"]["sha256"]
    assert found["entries"][0]["against_pytorch"]["whole"]["ratio"] == 1
    assert "| bundle, onnxruntime float32" in result.stdout


def test_failures_are_reported(tmp_path):
    found = compare(tmp_path / "absent.pth", [], peers=("pytorch",), threads=1)
    assert not found.entries
    assert found.base is None
    assert [failure["case"] for failure in found.document["failures"]] == ["PyTorch eager, contiguous, float32"]
    assert "absent.pth" in found.document["failures"][0]["error"]
    assert "failed: PyTorch eager" in to_text(found.to_dict())


def test_unknown_peer():
    with pytest.raises(OptionError, match="choose from pytorch"):
        compare(Path("model.pth"), [], peers=("tensorflow",))
    assert "pytorch" in PEERS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "precision", "tolerance"), [("compiled", "float32", 1e-3), ("contiguous", "bfloat16", 0.5)]
)
def test_slow_forms_of_pytorch(checkpoint, folder, form, precision, tolerance):
    name = "pytorch-compiled" if form == "compiled" else "pytorch-bfloat16"
    found = compare(checkpoint, [], peers=("pytorch", name), threads=1, runs=3, seconds=0)
    assert not found.document["failures"]
    assert found.entries[1].difference is not None
    assert found.entries[1].difference < tolerance
