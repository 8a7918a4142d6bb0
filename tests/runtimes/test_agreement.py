"""`runtimes.agreement` on predictors with known differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cris_edge.tokenizer import Tokenizer
from runtimes.agreement import compare, main
from training.data.samples import open_source

SIZE = 128


class Blob:
    """Finds a square of side 16 whose position depends on the prompt, moved right by `moved` logits."""

    def __init__(self, moved: int = 0, louder: float = 0.0, silent: bool = False) -> None:
        self.input_size, self.word_len, self.runtime, self.precision = SIZE, 17, "a fake", "float32"
        self.moved, self.louder, self.silent = moved, louder, silent

    def logits(self, pixels: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        assert pixels.shape == (1, 3, SIZE, SIZE)
        found = np.full((len(tokens), 1, SIZE // 4, SIZE // 4), -4.0, np.float32)
        for row, prompt in zip(found, tokens, strict=True):
            column = int(prompt.sum()) % 8 + self.moved
            if not self.silent:
                row[0, 8:24, column : column + 16] = 4.0 + self.louder
        return found


def test_known_differences() -> None:
    source = open_source("scenes:val:3:1", by_image=True)
    same, louder, moved, silent = compare(
        Blob(), [Blob(), Blob(louder=0.5), Blob(moved=4), Blob(silent=True)], source, threshold=0.35
    )
    assert same.logit_difference == 0 and same.worst_mask_iou == pytest.approx(1)
    assert same.sentences == 12 and same.logit_scale == 4
    assert 0.2 < same.foreground < 0.6
    assert louder.logit_difference == 0.5 and louder.mean_logit_difference == pytest.approx(0.5 / 4)
    assert moved.mask_iou == pytest.approx(12 / 20, abs=0.05)
    assert silent.mask_iou == 0


def test_two_empty_masks_agree() -> None:
    source = open_source("scenes:val:1:1", by_image=True)
    (row,) = compare(Blob(silent=True), [Blob(silent=True)], source, threshold=0.35, limit=1)
    assert row.mask_iou == 1 and row.foreground == 0


def test_prompts_that_match_nothing_are_judged_apart() -> None:
    """The other answers nothing at all: wrong where something matches, right where nothing does."""

    class Knows(Blob):
        def __init__(self, presence: dict[int, float], **options: bool) -> None:
            super().__init__(**options)
            self.presence = presence

        def logits_and_presence(self, pixels: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            known = [self.presence[int(row.sum())] for row in tokens]
            return self.logits(pixels, tokens), np.array(known, np.float32)

    source = open_source("scenes:val:6:1:generalized", by_image=True)
    tokenizer, truth = Tokenizer(), {}
    for index in range(len(source)):
        example = source.load(index, SIZE)
        for number, sentence in enumerate(example.sentences):
            truth[int(tokenizer(sentence)[0].sum())] = 0.1 if number in example.absent else 0.9
    reference, other = Knows(truth), Knows(dict.fromkeys(truth, 0.2))
    rows = compare(reference, [other], source, threshold=0.35, min_presence=0.5)
    assert [row.prompts for row in rows] == ["all", "matching", "not matching"]
    both, matching, absent = rows
    assert both.sentences == matching.sentences + absent.sentences and absent.sentences >= 3
    assert (matching.same_answer, matching.mask_iou) == (0, 0)
    assert (absent.same_answer, absent.mask_iou, absent.foreground) == (1, 1, 0)
    assert both.same_answer == pytest.approx(absent.sentences / both.sentences)
    assert absent.presence_difference == pytest.approx(0.1) and matching.presence_difference == pytest.approx(0.7)
    assert compare(Blob(), [Blob()], source, threshold=0.35)[0].presence_difference is None


def test_errors_are_one_line(tmp_path: Path) -> None:
    arguments = ["--checkpoint", "none.pt", "--bundle", str(tmp_path / "none"), "--data", "scenes:val:1:1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and len(result.stderr.strip().splitlines()) == 1
