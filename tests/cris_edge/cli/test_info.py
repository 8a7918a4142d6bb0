from __future__ import annotations

import json
from pathlib import Path

from tests.cris_edge.cli.program_runs import run


def test_info_describes_a_bundle(tiny: Path) -> None:
    text = run("info", tiny).stdout
    for part in ("tiny", "Finds red, green and blue", "128 x 128 pixels, 17 tokens", "onnxruntime, openvino", "logits"):
        assert part in text
    document = json.loads(run("info", tiny, "--json").stdout)
    assert document["name"] == "tiny"
    assert document["graphs"]["text_encoder"]["inputs"] == [{"name": "tokens", "shape": [1, 17], "dtype": "int64"}]
    assert len(document["digest"]) == 64
