"""All networks get the same pairs, and the figures are those of the masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.emulator import main, measure, to_text

SIZE = 128


class Constant:
    """A network that finds everything, or nothing."""

    input_size, word_len, precision = SIZE, 17, "float32"

    def __init__(self, runtime: str, logit: float) -> None:
        self.runtime, self._logit, self.pairs = runtime, logit, 0

    def logits(self, pixels: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        assert pixels.shape == (1, 3, SIZE, SIZE)
        self.pairs += len(tokens)
        return np.full((len(tokens), 1, SIZE // 4, SIZE // 4), self._logit, np.float32)


def test_all_get_the_same_pairs_and_are_compared_with_the_first():
    everything, same, nothing = Constant("all", 9), Constant("same", 8), Constant("none", -9)
    rows = measure([everything, same, nothing], "scenes:val:3:1", 2, 0.35)
    assert everything.pairs == same.pairs == nothing.pairs == 6
    assert [row["samples"] for row in rows] == [6, 6, 6]
    assert [row["all"]["mask_iou"] for row in rows] == pytest.approx([1.0, 1.0, 0.0])
    assert [row["all"]["max_logit_difference"] for row in rows] == [0, 1, 18]
    assert [row["foreground"] for row in rows] == [1.0, 1.0, 0.0]
    assert 0 < rows[0]["mIoU"] == rows[1]["mIoU"] < 100
    assert rows[2]["mIoU"] == 0
    assert all(row["seconds_per_pair"] > 0 for row in rows)
    assert "same" in to_text({"rows": rows})


def test_a_missing_bundle_is_reported_in_one_line(tmp_path: Path):
    result = CliRunner().invoke(main, ["--bundle", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and "nowhere" in result.stderr and result.stderr.count("\n") == 1
