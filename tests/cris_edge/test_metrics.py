from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cris_edge.errors import DataError
from cris_edge.metrics import GeneralizedScores, Scores, agreement, auroc, iou, logits_agreement, overlap


def mask(text: str) -> np.ndarray:
    return np.array([[sign == "#" for sign in row] for row in text.split()])


def test_iou_follows_the_formula() -> None:
    predicted, truth = mask("##.. ##.. ...."), mask(".##. .##. ....")
    assert overlap(predicted, truth) == (2, 6)
    assert iou(predicted, truth) == 2 / (6 + 1e-6)


def test_two_empty_masks_score_zero() -> None:
    nothing = np.zeros((4, 5), bool)
    assert iou(nothing, nothing) == 0.0
    assert iou(~nothing, nothing) == 0.0


def test_agreement_is_exact_and_complete_for_two_empty_masks() -> None:
    nothing, some, more = np.zeros((1, 4), bool), mask("##.."), mask(".##.")
    assert agreement(some, some) == agreement(nothing, nothing) == 1.0
    assert agreement(some, more) == 1 / 3
    assert agreement(some, nothing) == 0.0


def test_agreement_of_logits_is_taken_at_the_threshold() -> None:
    logits = np.array([-1.0, -0.5, 2.0])  # the threshold 0.35 lies at -0.62
    assert logits_agreement(logits, logits, 0.35) == 1
    assert logits_agreement(logits, np.array([-1.0, -0.7, 2.0]), 0.35) == 0.5
    assert logits_agreement(np.full(3, -9.0), np.full(3, -8.0), 0.35) == 1
    assert logits_agreement(logits, -logits, 0.0) == logits_agreement(logits, -logits, 1.0) == 1


def test_whole_numbers_count_as_masks() -> None:
    truth = mask("##.. ##..")
    assert iou(truth, truth.astype(np.uint8) * 255) == pytest.approx(1, abs=1e-6)


def test_golden_iou(golden: Path) -> None:
    arrays = np.load(golden / "pre_post.npz")
    for index in sorted(name.split("/")[0] for name in arrays.files if name.endswith("/iou")):
        assert iou(arrays[f"{index}/mask"], arrays[f"{index}/gt"]) == pytest.approx(float(arrays[f"{index}/iou"]))


@pytest.mark.parametrize("other", [np.zeros((3, 4), bool), np.zeros((4, 5, 1), bool), np.zeros((4, 5), np.float32)])
def test_masks_that_cannot_be_compared_are_refused(other: np.ndarray) -> None:
    with pytest.raises(DataError, match="expected"):
        iou(np.zeros((4, 5), bool), other)


def test_scores_are_the_papers() -> None:
    scores = Scores()
    scores.add(0.5, 10, 20)  # exactly at the level: Pr@50 is strict
    scores.add(0.95, 95, 100)
    scores.add(0.7000001, 70, 100)
    assert scores.mIoU == pytest.approx((0.5 + 0.95 + 0.7000001) / 3)
    assert scores.oIoU == pytest.approx(175 / 220)
    assert scores.precision(0.5) == pytest.approx(2 / 3)
    figures = scores.to_dict()
    assert list(figures) == ["samples", "mIoU", "oIoU", "Pr@50", "Pr@60", "Pr@70", "Pr@80", "Pr@90"]
    assert figures["samples"] == 3
    assert figures["Pr@70"] == pytest.approx(200 / 3)
    assert figures["Pr@90"] == pytest.approx(100 / 3)
    assert json.loads(json.dumps(figures)) == figures


def test_add_mask_counts_what_it_returns() -> None:
    scores = Scores()
    value = scores.add_mask(mask("##.."), mask(".##."))
    assert scores.ious == [value] == [1 / (3 + 1e-6)]
    assert (scores.intersection, scores.union) == (1, 3)


def test_merging_equals_counting_together() -> None:
    whole, first, second = Scores(), Scores(), Scores()
    for number, part in enumerate((first, second, first)):
        for target in (whole, part):
            target.add(0.3 * number, number, 2 * number + 1)
    merged = Scores().merge([first, second])
    assert merged.to_dict() == pytest.approx(whole.to_dict())
    assert len(merged) == 3


def test_no_scores_without_samples() -> None:
    for figure in (lambda scores: scores.mIoU, lambda scores: scores.oIoU, lambda scores: scores.to_dict()):
        with pytest.raises(DataError, match="no masks have been scored"):
            figure(Scores())


def test_overall_iou_of_empty_unions_is_zero() -> None:
    scores = Scores()
    scores.add_mask(np.zeros((2, 2), bool), np.zeros((2, 2), bool))
    assert scores.oIoU == 0.0


def test_generalized_scores_by_hand() -> None:
    scores = GeneralizedScores()
    scores.add_mask(mask("####...."), mask("##......"))  # 2 / 4
    scores.add_mask(mask("#######."), mask("########"))  # 7 / 8
    scores.add_mask(mask("........"), mask("###....."))  # missed: 0 / 3
    scores.add_mask(mask("........"), None)  # rejected
    scores.add_mask(mask("#####..."), mask("........"))  # a false mask: 0 / 5
    assert len(scores) == 5
    assert (scores.n_acc, scores.t_acc) == (1 / 2, 2 / 3)
    assert scores.gIoU == pytest.approx((2 / 4 + 7 / 8 + 0 + 1 + 0) / 5)
    assert scores.cIoU == pytest.approx((2 + 7) / (4 + 8 + 3 + 5))
    assert scores.precision(0.7) == scores.precision(0.875) == 1 / 3  # at the level counts, as in gRefCOCO
    figures = scores.to_dict()
    assert list(figures) == ["samples", "without_target", "N-acc", "T-acc", "gIoU", "cIoU", "Pr@70", "Pr@80", "Pr@90"]
    assert figures["N-acc"] == 50 and figures["Pr@90"] == 0


def test_generalized_scores_without_negatives() -> None:
    scores = GeneralizedScores()
    with pytest.raises(DataError, match="no masks have been scored"):
        _ = scores.gIoU
    scores.add_mask(mask("##.."), mask("##.."))
    assert "N-acc" not in scores.to_dict() and scores.to_dict()["T-acc"] == 100


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_auroc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    positive = [score for score, label in pairs if label]
    negative = [score for score, label in pairs if not label]
    found = auroc([score for score, _ in pairs], [label for _, label in pairs])
    if not positive or not negative:
        assert math.isnan(found)
        return
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert found == pytest.approx(wins / (len(positive) * len(negative)))


@given(st.lists(st.booleans(), min_size=1, max_size=64), st.randoms(use_true_random=False))
def test_iou_is_symmetric_and_bounded(bits: list[bool], random: object) -> None:
    left = np.array([bits])
    right = np.array([random.sample(bits, len(bits))])  # type: ignore[attr-defined]
    assert iou(left, right) == iou(right, left)
    assert 0 <= iou(left, right) <= iou(left, left) <= 1
