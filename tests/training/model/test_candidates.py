"""Regions as matrix products, and the choice of candidates, on hand-made maps."""

from __future__ import annotations

import pytest
import torch

from training.model.candidates import (
    COLOUR_FEATURES,
    FEATURES,
    CandidateFinder,
    content_box,
    pairwise_iou,
    select,
    to_content,
    to_square,
    unique,
)
from training.model.nanodet import BINS, CLASSES, STRIDES
from training.model.roi import area_weights, crop, paste, pool, sample_weights

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def levels(size: int = 64, objects: tuple[tuple[int, int, int, int, float, int], ...] = ()) -> list[torch.Tensor]:
    """Detector outputs with objects (level, row, column, class, logit, reach in strides) and nothing else."""
    maps = [torch.full((1, len(CLASSES) + 4 * BINS, size // stride, size // stride), -8.0) for stride in STRIDES]
    for level, row, column, number, logit, reach in objects:
        maps[level][0, number, row, column] = logit
        for side in range(4):
            maps[level][0, len(CLASSES) + side * BINS + reach, row, column] = 20.0
    return maps


def test_one_object_is_one_box() -> None:
    found = select(levels(objects=((0, 3, 4, 7, 2.0, 2),)), WHOLE, 4)
    assert found.scores[0, 0] == pytest.approx(torch.tensor(2.0).sigmoid().item())
    assert found.probabilities[0, 0].argmax() == 7
    center = torch.tensor([4.5, 3.5]) * 8 / 64
    expected = torch.cat((center - 16 / 64, center + 16 / 64))
    assert torch.allclose(found.squares[0, 0], expected, atol=1e-4)
    assert (found.scores[0, 1:] < 0.01).all()


def test_two_overlapping_boxes_of_one_class_are_one_candidate() -> None:
    both = ((0, 3, 3, 7, 2.0, 3), (1, 1, 1, 7, 1.0, 1))  # 48 pixels around (28, 28), 32 around (24, 24)
    near = ((0, 3, 3, 7, 2.0, 3), (0, 3, 5, 7, 1.0, 3))  # 16 pixels beside each other: IoU 0.5
    assert (select(levels(objects=near), WHOLE, 4).scores[0] > 0.5).sum() == 2
    overlapping = ((0, 3, 3, 7, 2.0, 3), (1, 1, 1, 7, 1.0, 2))  # 48 around (28, 28), 64 around (24, 24), cut: IoU > 0.6
    assert (select(levels(objects=overlapping), WHOLE, 4).scores[0] > 0.5).sum() == 1
    assert (select(levels(objects=both), WHOLE, 4).scores[0] > 0.5).sum() == 2


def test_overlapping_boxes_of_two_classes_both_stay_unless_they_are_the_same_box() -> None:
    apart = ((0, 3, 3, 7, 2.0, 3), (1, 1, 1, 9, 1.0, 2))
    assert (select(levels(objects=apart), WHOLE, 4).scores[0] > 0.5).sum() == 2
    boxes = torch.tensor([[[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.49]]])
    assert unique(boxes, torch.tensor([[1, 2]])).tolist() == [[True, False]]


def test_a_neighbouring_cell_with_a_lower_score_is_no_peak() -> None:
    found = select(levels(objects=((0, 3, 3, 7, 2.0, 1), (0, 3, 4, 7, 1.0, 1))), WHOLE, 4)
    assert (found.scores[0] > 0.5).sum() == 1
    other = select(levels(objects=((0, 3, 3, 7, 2.0, 1), (0, 3, 4, 8, 1.0, 1))), WHOLE, 4)
    assert (other.scores[0] > 0.5).sum() == 2  # another class is


def test_a_box_returns_when_its_suppressor_goes() -> None:
    boxes = torch.tensor([[[0.0, 0, 0.5, 0.5], [0.1, 0, 0.6, 0.5], [0.2, 0, 0.7, 0.5]]])
    assert pairwise_iou(boxes, boxes)[0, 0, 1] > 0.6 > pairwise_iou(boxes, boxes)[0, 0, 2]
    assert unique(boxes, torch.zeros(1, 3)).tolist() == [[True, False, True]]


def test_boxes_are_cut_off_at_the_letterbox() -> None:
    content = torch.tensor([[0.25, 0.0, 0.75, 1.0]])
    found = select(levels(objects=((0, 3, 2, 7, 2.0, 3),)), content, 1)
    assert found.squares[0, 0, 0] == pytest.approx(0.25)
    assert to_content(found.squares, content)[0, 0, 0] == 0
    assert torch.allclose(to_square(to_content(found.squares, content), content), found.squares, atol=1e-6)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (8, 0), (0, 5)])
def test_content_is_what_the_letterbox_does_not_pad(top: int, left: int) -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, top : 32 - top, left : 32 - left] = 1.0
    image[:, :, 16] = 0  # a row of the mean colour inside the image is none of the border
    expected = torch.tensor([[left, top, 32 - left, 32 - top]]) / 32
    assert torch.equal(content_box(image), expected)


def test_content_of_an_image_of_the_mean_colour_is_the_whole() -> None:
    assert torch.equal(content_box(torch.zeros(1, 3, 32, 32)), WHOLE)


def test_candidates_have_their_shapes_and_the_first_is_always_valid() -> None:
    torch.manual_seed(0)
    finder = CandidateFinder(8).eval()
    with torch.no_grad():
        candidates, squares, pyramid = finder.find(torch.randn(2, 3, 64, 64))
    assert candidates.probabilities.shape == (2, 8, len(CLASSES))
    assert candidates.features.shape == (2, 8, FEATURES)
    assert candidates.colours.shape == (2, 8, COLOUR_FEATURES)
    assert candidates.boxes.shape == squares.shape == (2, 8, 4)
    assert candidates.valid[:, 0].all()
    assert pyramid.c2.shape == (2, 64, 16, 16)


def test_candidates_at_the_found_boxes_are_the_found_candidates() -> None:
    torch.manual_seed(0)
    finder = CandidateFinder(4).eval()
    with torch.no_grad():
        image = torch.randn(1, 3, 64, 64)
        found = finder(image)
        given = finder.at_boxes(image, found.boxes)
    assert torch.allclose(given.features, found.features, atol=1e-4)
    assert torch.allclose(given.colours, found.colours, atol=1e-5)


def test_pooling_is_the_mean_of_the_cells() -> None:
    features = torch.arange(64.0).reshape(1, 1, 8, 8)
    box = torch.tensor([[[0.25, 0.5, 0.75, 1.0]]])
    expected = features[0, 0, 4:8, 2:6].reshape(2, 2, 2, 2).mean((1, 3))
    assert torch.allclose(pool(features, box, 2, 2)[0, 0, :, :, 0], expected)


def test_weights_sum_to_one() -> None:
    low, high = torch.tensor([0.1, 0.301]), torch.tensor([0.9, 0.302])
    assert torch.allclose(area_weights(low, high, 3, 10).sum(-1), torch.ones(2, 3), atol=1e-4)
    assert torch.allclose(sample_weights(low - 0.2, high + 0.2, 5, 10).sum(-1), torch.ones(2, 5))


def test_a_crop_pasted_back_is_what_was_there() -> None:
    ramp = torch.linspace(-1, 1, 80)
    image = (ramp[None, :] + ramp[:, None])[None, None]
    box = torch.tensor([[0.2, 0.3, 0.8, 0.9]])
    pasted = paste(crop(image, box, 56), box, 80, -9.0)
    inside = torch.zeros(80, 80, dtype=torch.bool)
    inside[26:70, 18:62] = True
    assert (pasted - image)[0, 0][inside].abs().max() < 0.03  # the map's corners are the corner pixels' centers
    assert (pasted[0, 0, :20] == -9).all() and (pasted[0, 0, :, 66:] == -9).all()
