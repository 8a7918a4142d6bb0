"""Batches are what the pools say, a selector learns from them, and a run that stops continues as if it had not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from cris_edge.errors import DataError
from cris_edge.tokenizer import Tokenizer
from training.model.candidates import CandidateFinder, Candidates
from training.model.selector import Selector, SelectorSizes
from training.phrases.nouns import Lexicon
from training.selection.candidate_cache import build_cache, read_cache
from training.selection.examples import Example, Pool, Sampler, fixed_batches, make_pool
from training.selection.ingredients import Ingredient, ingredients_table, measure_ingredients
from training.selection.pools import Shots, human_examples, training_pools
from training.selection.ratings import build_validation, kinds_of_sentences
from training.selection.selector_training import SelectorOptions, SelectorTraining, selection_loss

SIZES = SelectorSizes(width=32, heads=2, text_layers=1, layers=1, rows=64, dropout=0.0)


@pytest.fixture
def pools(shots: Shots, lexicon: Lexicon) -> dict[str, Pool]:
    return training_pools(shots, [], lexicon, Tokenizer(), variants=1, absent=20)


def sampler(shots: Shots, pools: dict[str, Pool], **more: float) -> Sampler:
    mix = {"refcoco": 0.5, "templates": 0.5}
    return Sampler(shots.bank, pools, mix, size=16, photos=shots.of(validation=False), **more)  # type: ignore[arg-type]


def selector() -> Selector:
    torch.manual_seed(0)
    made = Selector(SIZES)
    made.table.row.copy_(torch.arange(len(made.table.row)) % 63 + 1)
    with torch.no_grad():
        made.table.vectors.normal_()
    return made


def test_right_candidates_come_first_and_weights_sum_to_one(shots: Shots) -> None:
    example = Example(rows=[4, 5, 6], targets=[0.0, 0.1, 0.3], none=0.0, sentence="a dog", aspect=1.5)
    pool = make_pool([example], Tokenizer())
    assert pool.rows[0, :4].tolist() == [5, 6, 4, -1]
    assert pool.targets[0, :3].tolist() == pytest.approx([0.25, 0.75, 0.0])
    (batch,) = fixed_batches(pool, shots.bank)
    assert batch.candidates.valid[0].sum() == 3
    assert torch.equal(batch.candidates.boxes[0, 1], shots.bank.boxes[6])
    assert float(batch.candidates.boxes[0, 3:].abs().sum()) == 0.0


def test_augmented_batches_keep_their_targets(shots: Shots, pools: dict[str, Pool]) -> None:
    drawn = [sampler(shots, pools, mosaics=1.0, unseen=0.0).draw() for _ in range(3)]
    for batch in drawn:
        candidates, targets = batch.candidates, batch.targets
        assert targets.shape[1] == candidates.boxes.shape[1] + 1
        assert torch.allclose(targets.sum(1), torch.ones(16))
        assert bool((candidates.boxes >= 0).all()) and bool((candidates.boxes <= 1).all())
        assert not bool((targets[:, :-1].bool() & ~candidates.valid).any())


def test_a_mosaic_moves_the_photo_into_a_part_and_adds_another(shots: Shots) -> None:
    example = Example(rows=[0], targets=[1.0], none=0.0, sentence="giraffe", aspect=1.0, mosaic=True)
    bank = shots.bank
    bank.row_class[0] = 79  # of a class that no photo has
    pool = make_pool([example], Tokenizer())
    made = Sampler(bank, {"one": pool}, {"one": 1.0}, size=64, mosaics=1.0, unseen=0.0, missing=0.0).draw()
    boxes = made.candidates.boxes
    assert bool((made.candidates.valid.sum(1) == 4).all()), "its own candidate and the other photo's three"
    before = bank.boxes[0]
    area = (boxes[:, 0, 2:] - boxes[:, 0, :2]).prod(1) / (before[2:] - before[:2]).prod()
    assert bool((area < 0.75).all()) and bool((area > 0.3).all())


def test_only_photos_that_may_take_part_are_drawn(shots: Shots) -> None:
    shown = human_examples(shots, range(8), random.Random(0), refcoco=True, augment=False)
    pool = make_pool(shown, Tokenizer())
    options = {"size": 16, "missing": 0.0, "unseen": 0.0, "noise": 0.0}
    drawn = Sampler(shots.bank, {"one": pool}, {"one": 1.0}, photos=[3], **options).draw()  # type: ignore[arg-type]
    own = shots.bank.features[int(shots.bank.start[3])].float()
    assert torch.allclose(drawn.candidates.features[:, 0], own.expand(16, -1))


def test_hidden_words_are_inside_the_sentence(shots: Shots) -> None:
    shown = human_examples(shots, [0], random.Random(0), refcoco=True, augment=False)
    pool = make_pool(shown, Tokenizer(), human=True)
    drawn = Sampler(shots.bank, {"one": pool}, {"one": 1.0}, size=32, blanks=1.0, blank=7).draw()
    tokens = pool.tokens[0]
    length = int((tokens != 0).sum())
    expected = [int(tokens[0]), *[7] * (length - 2), int(tokens[length - 1])]
    assert drawn.tokens[0].tolist() == expected


def test_the_loss_prefers_the_target_and_compares_it_with_its_own_class() -> None:
    candidates = Candidates(
        torch.eye(80)[[1, 1, 2]][None], torch.zeros(1, 3, 4), torch.ones(1), torch.zeros(1, 3, 1), torch.zeros(1, 3, 1),
        torch.ones(1, 3, dtype=torch.bool),
    )  # fmt: skip
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    none = torch.zeros(1, 1)

    def loss(*scores: float) -> float:
        return float(selection_loss(torch.tensor([list(map(float, scores))]), none, targets, candidates, 1.0))

    assert loss(5, 0, 0) < loss(0, 0, 0)
    plain = float(selection_loss(torch.zeros(1, 3), none, targets, candidates, 0.0))
    assert plain == pytest.approx(np.log(4)) and loss(0, 0, 0) == pytest.approx(np.log(4) + np.log(2))
    none_target = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    assert float(selection_loss(torch.zeros(1, 3), none, none_target, candidates, 1.0)) == pytest.approx(np.log(4))


def test_a_selector_learns_and_a_run_continues_where_it_stopped(
    shots: Shots, pools: dict[str, Pool], lexicon: Lexicon, tmp_path: Path
) -> None:
    validation = build_validation(shots, [], lexicon, Tokenizer())
    options = SelectorOptions(
        steps=24, learning_rate=4e-3, warmup=2, evaluate_every=12, decay=0.9, save_every=1e9, bfloat16=False
    )

    def training(folder: str) -> SelectorTraining:
        quiet = {"evaluate": validation.rate, "progress": lambda line: None}
        return SelectorTraining(selector(), sampler(shots, pools), options, tmp_path / folder, **quiet)  # type: ignore[arg-type]

    before = validation.rate(selector().eval())
    metrics = training("whole").run()
    assert metrics["human"] == 1.0 and before["human"] < 1.0
    assert metrics["colour"] > before["colour"] and 0.0 <= metrics["auroc"] <= 1.0

    first = training("parts")
    first.run(until=12)
    second = training("parts")
    assert second.step == 12
    second.run()
    rows = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [12, 24]
    saved = torch.load(tmp_path / "parts" / "selector.pt", weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in second.averaged().state_dict().items())


def test_the_table_compares_each_row_with_the_full_training(
    shots: Shots, pools: dict[str, Pool], lexicon: Lexicon, tmp_path: Path
) -> None:
    validation = build_validation(shots, [], lexicon, Tokenizer())

    def evaluate(model: Selector) -> dict[str, float]:
        return {"layouts": 0.0, **validation.rate(model)}

    rows = measure_ingredients(
        lambda sizes: Selector(SIZES),
        lambda mix, options, without: Sampler(shots.bank, pools, dict(mix), size=8, **dict(options)),  # type: ignore[arg-type]
        tmp_path,
        steps=2,
        evaluate=evaluate,
        ingredients=(Ingredient(name="nothing"), Ingredient(name="mosaics", sampler={"mosaics": 0.0})),
    )
    table = ingredients_table([{**row, **dict.fromkeys(("flickr", "size", "position"), 0.5)} for row in rows])
    assert [row["without"] for row in rows] == ["nothing", "mosaics"]
    assert table.count("\n") == 4 and "(+0.0)" in table.splitlines()[-1]


def test_sentences_are_sorted_by_what_they_speak_of() -> None:
    kinds = kinds_of_sentences(["left cup", "red cup", "man holding cup", "cup"])
    assert {name: found.tolist().index(True) for name, found in kinds.items()} == {
        "position": 0,
        "colour": 1,
        "relation": 2,
        "class": 3,
    }


def test_the_cache_is_built_once(tmp_path: Path, shots: Shots) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    photos = shots.photos[:3]
    rng = np.random.default_rng(0)
    for one in photos:
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(tmp_path / one.image)
    torch.manual_seed(0)
    finder = CandidateFinder().eval()
    lines: list[str] = []
    for _ in range(2):
        build_cache(finder, photos, tmp_path, tmp_path / "cache", size=64, progress=lines.append)
    assert len(lines) == 1
    entries = read_cache(tmp_path / "cache")
    assert [one.image for one in entries] == [one.image for one in photos]
    for one in entries:
        assert (one.width, one.height) == (80, 60) and len(one.boxes) == len(one.features) >= one.detected >= 1
    with pytest.raises(DataError, match="cache stage"):
        read_cache(tmp_path / "nothing")
