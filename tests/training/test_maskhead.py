"""Training of the box-to-mask head, on made-up photos."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cris_edge.errors import CheckpointError, DataError
from cris_edge.image.coco import encode_rle
from training.checkpoint import read_checkpoint
from training.data.photos import PhotoObject, is_validation, read_photos
from training.finder import load_finder, principal_components, verify
from training.maskhead import SIZE, Options, Trainer, load, load_boxmask, loss, score, targets, usable
from training.model.boxmask import SIDE, BoxMask, expand
from training.model.candidates import CandidateFinder
from training.wordtable import SenseShares, choose_tokens, colour_affinity


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos of a disc each, two of them held out."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    lines = []
    training = [number for number in range(100) if not is_validation(f"{number}.png")][:6]
    for number in (*training, *[number for number in range(100) if is_validation(f"{number}.png")][:2]):
        image = random.integers(0, 80, (96, 128, 3), dtype=np.uint8)
        mask = np.zeros((96, 128), np.uint8)
        x, y, radius = int(random.integers(40, 90)), int(random.integers(35, 60)), int(random.integers(18, 30))
        cv2.circle(mask, (x, y), radius, 1, -1)
        image[mask > 0] = random.integers(150, 255, 3)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
        box = [x - radius, y - radius, 2 * radius + 1, 2 * radius + 1]
        line = {"image": f"images/{number}.png", "sentences": [], "category": "sports ball", "source": "lightly"}
        lines.append({**line, "mask": encode_rle(mask > 0), "box": box, "coco_id": number})
    (folder / "masks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("boxes.jsonl", "captions.jsonl", "layouts.jsonl"):
        (folder / name).write_text("")
    return folder


@pytest.fixture(scope="module")
def finder() -> CandidateFinder:
    torch.manual_seed(0)
    return CandidateFinder(4).eval().requires_grad_(False)


def test_a_run_learns_and_continues_where_it_stopped(collection: Path, finder: CandidateFinder, tmp_path: Path) -> None:
    output = tmp_path / "mask.pt"
    options = Options(minutes=0.02, photos=1)
    trainer = Trainer(collection, finder, options, output)
    held_out = {photo.image for photo, _ in trainer.validation}
    assert held_out and not held_out & {photo.image for photo, _ in trainer.things}
    trainer.run()
    assert trainer.step > 0
    again = Trainer(collection, finder, options, output)
    assert (again.step, again.seconds) == (trainer.step, trainer.seconds)
    assert torch.equal(again.head.last2.weight, trainer.head.last2.weight)
    head = load_boxmask(output)
    assert torch.equal(head.last2.weight, trainer.average.module.last2.weight)
    found = score(collection, finder, head, trainer.validation)
    assert found["labelled"]["objects"] == len(held_out)
    assert 0 <= found["labelled"]["0.35"]["miou"] <= 1
    assert read_checkpoint(output)["resume"]["step"] == trainer.step


def test_the_loss_falls_on_one_example() -> None:
    torch.manual_seed(0)
    head = BoxMask()
    crops = torch.randn(1, 3, SIDE, SIDE), torch.randn(1, 24, SIDE, SIDE), torch.randn(1, 64, SIDE // 2, SIDE // 2)
    truth = torch.zeros(1, SIDE, SIDE)
    truth[:, 14:42, 10:30] = 1
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    values = []
    for _ in range(12):
        value = loss(head.decode(*crops)[:, 0], truth)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]


def test_targets_are_the_mask_in_the_region() -> None:
    mask = np.zeros((100, 200), bool)
    mask[20:80, 50:150] = True
    box = torch.tensor([[0.25, 0.2, 0.75, 0.8]])
    found = targets([mask], expand(box))[0]
    inside = slice(int(SIDE * 0.2 / 1.4) + 1, int(SIDE * 1.2 / 1.4) - 1)
    assert found[inside, inside].min() > 0.99
    assert found[: int(SIDE * 0.2 / 1.4) - 1].max() == 0
    beyond = targets([np.ones((10, 10), bool)], torch.tensor([[-0.5, -0.5, 0.5, 0.5]]))[0]
    assert beyond[: SIDE // 2 - 1].max() == 0 and beyond[SIDE // 2 :, SIDE // 2 :].min() == 1


def test_augmentation_keeps_image_and_mask_together(collection: Path) -> None:
    trainer_items = [item for item in _objects(collection) if usable(item)]
    random = np.random.default_rng(1)
    for item in trainer_items[:3]:
        photo = type("P", (), {"image": item.image})
        sample = load(collection, photo, [item], random)  # type: ignore[arg-type]
        assert sample is not None and sample.image.shape == (1, 3, SIZE, SIZE)
        mask = sample.masks[0]
        x0, y0, x1, y1 = (sample.boxes[0] * torch.tensor([mask.shape[1], mask.shape[0]] * 2)).round().int().tolist()
        assert mask[y0:y1, x0:x1].any(1).all() and mask.sum() == mask[y0:y1, x0:x1].sum()


def _objects(folder: Path) -> list[PhotoObject]:
    return [item for photo in read_photos(folder) for item in photo.objects]


def test_objects_that_teach_nothing_are_left_out(collection: Path) -> None:
    item = _objects(collection)[0]
    assert usable(item)
    values = {name: getattr(item, name) for name in item.__dataclass_fields__}
    for change in ({"mask": None}, {"flags": frozenset({"part"})}, {"box": (0.0, 0.0, 5.0, 5.0)}):
        assert not usable(PhotoObject(**{**values, **change}))


def test_components_are_decorrelated_and_fall_off() -> None:
    torch.manual_seed(0)
    samples = torch.randn(4000, 3) @ torch.tensor([[3.0, 0, 0], [0, 1, 0], [1, 0, 0.5]]) + 5
    weight, bias = principal_components(samples, 2)
    mapped = samples @ weight.T + bias
    assert mapped.mean(0).abs().max() < 0.01
    assert abs(mapped[:, 0].std() - 1) < 0.05 and mapped[:, 1].std() < 1
    assert abs(torch.corrcoef(mapped.T)[0, 1]) < 0.02


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"format": "something"}, path)
    for read in (load_finder, load_boxmask):
        with pytest.raises(CheckpointError, match="python -m training"):
            read(path)
    (tmp_path / "nanodet.json").write_text("{}")
    with pytest.raises(CheckpointError, match="SHA-256"):
        verify(tmp_path / "nanodet.json")


def test_tokens_of_training_sentences_come_first_and_odd_ones_never() -> None:
    class Nouns:
        def senses(self, noun: str) -> list[str]:
            return ["x"] if noun in ("dog", "cat") else []

    vocabulary = {"the</w>": 1, "zzz</w>": 2, "dog</w>": 3, "cat</w>": 4, "é</w>": 0, "ca": 5}
    chosen = choose_tokens(vocabulary, Counter({5: 2, 4: 7}), Nouns(), 5)  # type: ignore[arg-type]
    assert chosen == [4, 5, 3, 1, 2]


def test_senses_are_weighed_by_their_counts(tmp_path: Path) -> None:
    (tmp_path / "cntlist.rev").write_text("red%1:07:00:: 1 9\nred%1:18:00:: 3 1\nred%3:00:01:: 1 60\n")
    share = SenseShares(tmp_path)
    assert 0.1 < share("red", 0, 3) < 0.2
    assert share("red", 2, 3) < 0.05
    assert share("guy", 0, 1) == 1
    with pytest.raises(DataError, match=r"cntlist\.rev"):
        SenseShares(tmp_path / "nowhere")


def test_colour_words_name_colours() -> None:
    from training.model.colournames import COLOURS, fit

    pytest.importorskip("matplotlib")
    found = colour_affinity(["red", "grey", "navy", "dog"], fit(steps=300))
    assert found[0].argmax() == COLOURS.index("red") and found[0].max() == 1
    assert found[1].argmax() == COLOURS.index("gray")
    assert found[2].argmax() == COLOURS.index("blue")
    assert not found[3].any()
