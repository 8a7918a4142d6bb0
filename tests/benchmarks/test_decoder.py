"""The forms of the mask decoder compute the same, and are timed for a sentence."""

from __future__ import annotations

import pytest

from benchmarks.decoder import measure, to_text
from training.checkpoint import save_model
from training.model import CRIS, Architecture

pytest.importorskip("onnxruntime")


def test_forms_in_all_runtimes(tmp_path):
    sizes = Architecture(
        input_size=64,
        vision_layers=(1, 1, 1, 1),
        vision_width=8,
        image_resolution=64,
        embed_dim=32,
        vocab_size=100,
        text_width=32,
        text_layers=1,
        decoder_layers=1,
        decoder_heads=2,
        ffn_dim=32,
    )
    path = tmp_path / "tiny.pth"
    save_model(path, CRIS(sizes))
    found = measure(path, batches=(1, 2), threads=1, runs=2, seconds=0)
    assert not [failure for failure in found["failures"] if "bfloat16" not in failure["error"]]
    rows = [row for row in found["rows"] if row["runtime"] == "onnxruntime"]
    assert [(row["form"], row["sentences"]) for row in rows] == [
        ("plain", 1),
        ("low-resolution", 1),
        ("low-resolution", 2),
    ]
    assert all(row["difference"] < 1e-4 for row in rows)
    assert rows[1]["macs"] < rows[0]["macs"] and rows[2]["macs"] == rows[1]["macs"]
    assert rows[0]["times_faster_than_plain"]["ratio"] == 1
    assert "tiny.pth" in to_text(found)
