from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cris_edge.metrics import Scores
from training.data.samples import Example, LabelledSource, SceneSource, open_source
from training.evaluate import main
from training.gallery import write_gallery
from training.model import CRIS
from training.report import Case, Report
from training.scoring import BundlePredictor, TorchPredictor, score


class Replay:
    """Gives the reference's logits, and remembers what it was given."""

    runtime, precision, input_size, word_len = "replay", "float32", 160, 17

    def __init__(self, logits: list[Any]) -> None:
        self.waiting, self.pixels = list(logits), []

    def logits(self, pixels: Any, tokens: Any) -> Any:
        self.pixels.append(pixels)
        return np.repeat(self.waiting.pop(0), len(tokens), axis=0)


class Images:
    """A source of images that have one sentence each."""

    name, split = "golden", "all"

    def __init__(self, images: list[Any], truths: list[Any]) -> None:
        self.images, self.truths = images, truths

    def __len__(self) -> int:
        return len(self.images)

    def id(self, index: int) -> str:
        return str(index)

    def load(self, index: int, size: int) -> Example:
        return Example(str(index), self.images[index], ["a thing"], lambda _: self.truths[index])


def test_pixels_masks_and_scores_are_the_references(golden: Path) -> None:
    with np.load(golden / "pre_post.npz") as file:
        arrays = {name: file[name] for name in file.files}
    numbers = sorted({name.split("/")[0] for name in arrays if "/" in name})
    entries = [{key.split("/")[1]: value for key, value in arrays.items() if key.startswith(n + "/")} for n in numbers]
    source = Images([e["bgr"][:, :, ::-1].copy() for e in entries], [e["gt"] > 0 for e in entries])
    predictor = Replay([e["logits"] for e in entries])
    report = score(predictor, source)
    for entry, case, pixels in zip(entries, report.cases, predictor.pixels, strict=True):
        np.testing.assert_allclose(pixels[0], entry["input"], atol=1e-4)
        assert case.iou == pytest.approx(float(entry["iou"]), abs=1e-3)
    expected = [float(entry["iou"]) for entry in entries]
    assert report.scores.mIoU == pytest.approx(np.mean(expected), abs=1e-3)
    assert report.scores.precision(0.5) == np.mean(np.array(expected) > 0.5)


def cases(ious: list[tuple[int, float]]) -> Report:
    report = Report("d", "s", "r", "p")
    for number, (image, value) in enumerate(ious):
        sentence = " ".join(["word"] * (1 + number))
        report.add(Case(image, number, str(image), sentence, round(100 * value), 100, 0.02 * (1 + number)))
    return report


def test_breakdowns_hold_every_sentence_once() -> None:
    report = cases([(0, 0.2), (0, 0.6), (1, 0.9), (2, 1.0)])
    data = report.to_dict()
    assert data["samples"] == 4 and data["images"] == 3
    assert data["mIoU"] == pytest.approx(67.5) and data["oIoU"] == pytest.approx(67.5)
    assert {name: row["samples"] for name, row in data["by_length"].items()} == {"1-2": 2, "3": 1, "4-5": 1}
    assert data["by_length"]["1-2"]["mIoU"] == pytest.approx(40)
    assert {name: row["samples"] for name, row in data["by_size"].items()} == {"1%-3%": 1, "3%-10%": 3}
    table = report.table()
    assert "67.50" in table and "words 4-5" in table and "object 3%-10%" in table
    with_empty = cases([(0, 0.5)])
    with_empty.add(Case(1, 0, "x", "nothing", 0, 0, 0.0))  # in no class of size, but counted
    assert with_empty.scores.mIoU == pytest.approx(0.25, abs=1e-6)
    assert sum(row["samples"] for row in with_empty.by_size().values()) == 1


def test_the_interval_is_over_images_not_sentences() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(size=40)
    single = cases([(image, value) for image, value in enumerate(values)])
    repeated = cases([(image, value) for image, value in enumerate(values) for _ in range(9)])
    (low, high), (low9, high9) = single.intervals()["mIoU"], repeated.intervals()["mIoU"]
    assert low < 100 * single.scores.mIoU < high
    assert high9 - low9 == pytest.approx(high - low, rel=0.05)  # nine times the sentences tell nothing new
    spread = 100 * values.std() / np.sqrt(len(values))
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert single.intervals() == single.intervals()


def test_sentences_of_an_image_share_its_encoding_and_score_the_same(discs: Path, tiny_run: Any) -> None:
    predictor = TorchPredictor(CRIS(tiny_run().architecture))
    by_image, by_object = LabelledSource(discs, by_image=True), LabelledSource(discs)
    assert (len(by_image), len(by_object)) == (10, 20)
    together, apart = score(predictor, by_image), score(predictor, by_object)
    assert len(together.cases) == len(apart.cases) == 40
    assert sorted(c.iou for c in together.cases) == pytest.approx(sorted(c.iou for c in apart.cases), abs=1e-3)
    halves = [score(predictor, by_image, shard=(rank, 2)) for rank in (0, 1)]
    assert Scores().merge(h.scores for h in halves).mIoU == pytest.approx(together.scores.mIoU)
    assert len(score(predictor, by_image, limit=3).cases) == 12


def test_a_bundle_is_scored_by_the_same_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    from tests.cris_edge.tiny_bundle import build, picture

    bundle = build(tmp_path / "bundle")
    image, mask = picture("red", "green"), np.zeros((96, 160), np.uint8)
    mask[:, :80] = 255
    cv2.imwrite(str(tmp_path / "image.png"), image[:, :, ::-1])
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    line = {"image": "image.png", "sentences": ["the red one", "red"], "mask": "mask.png"}
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    report = score(BundlePredictor(bundle, "onnxruntime"), open_source(str(tmp_path / "data.jsonl"), by_image=True))
    assert report.runtime == "onnxruntime" and report.scores.mIoU > 0.9
    command = ["--bundle", str(bundle), "--runtime", "onnxruntime", "--data", str(tmp_path / "data.jsonl"), "--json"]
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["samples"] == 2 and document["mIoU"] == pytest.approx(100 * report.scores.mIoU, abs=0.1)


def test_the_command_scores_a_checkpoint_and_draws_a_gallery(
    discs: Path, tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.checkpoint import save_model

    save_model(tmp_path / "model.pt", CRIS(tiny_run().architecture))
    command = ["--checkpoint", str(tmp_path / "model.pt"), "--data", str(discs), "--device", "cpu", "--limit", "4"]
    page = tmp_path / "cases.html"
    output = ["--output", str(tmp_path / "report.json"), "--rows", "2"]
    assert main([*command, *output, "--gallery", str(page)]) == 0
    assert "16 sentences, 4 images; pytorch, float32" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) >= {"dataset", "split", "runtime", "precision", "mIoU", "oIoU", "Pr@50", "Pr@90", "intervals"}
    text = page.read_text()
    assert text.count("<figure>") == 6 and text.count("data:image/jpeg;base64,") == 6 and "http" not in text
    for sheet in (tmp_path / "cases.png", tmp_path / "cases.jpg"):
        assert main([*command, "--gallery", str(sheet)]) == 0
        assert cv2.imread(str(sheet)).shape[1] >= 720
    capsys.readouterr()
    assert main([*command, "--gallery", str(tmp_path / "cases.gif")]) == 1
    captured = capsys.readouterr()
    assert "expected .html, .png or .jpg" in captured.err and not captured.out  # before anything is scored
    for options, sentence in (
        (["--threshold", "2"], "--threshold is 2.0"),
        (["--rows", "0"], "--rows is 0"),
        (["--limit", "0"], "--limit is 0"),
        (["--output", str(page / "report.json")], "report.json' cannot be written: File exists"),
    ):
        assert main([*command, *options]) == 1
        captured = capsys.readouterr()
        assert sentence in captured.err and not captured.out
    (tmp_path / "taken.json").mkdir()
    assert main([*command, "--output", str(tmp_path / "taken.json")]) == 1
    captured = capsys.readouterr()
    assert "taken.json' cannot be written" in captured.err and "16 sentences" in captured.out  # what was found is told
    assert main([*command, "--precision", "int3"]) == 1
    absent = ["--checkpoint", str(tmp_path / "absent.pt"), "--output", str(tmp_path / "new" / "report.json")]
    assert main([*absent, "--data", str(discs)]) == 1
    assert not (tmp_path / "new").exists()
    assert main(["--checkpoint", str(discs), "--data", str(discs)]) == 1


def test_a_sentence_cannot_break_out_of_the_gallery(tmp_path: Path) -> None:
    truth = np.zeros((8, 8), bool)
    truth[2:5, 2:5] = True
    source = Images([np.zeros((8, 8, 3), np.uint8)], [truth])
    source.load = lambda index, size: Example("<b>", source.images[0], ["<script>"], lambda _: truth)  # type: ignore
    predictor = Replay([np.zeros((1, 1, 40, 40), np.float32)] * 8)
    write_gallery(tmp_path / "page.html", score(predictor, source), predictor, source, rows=1)
    text = (tmp_path / "page.html").read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text and "&lt;b&gt;" in text


def test_scenes_are_drawn_at_the_size_they_are_shown() -> None:
    source = open_source("scenes:val:6:3")
    assert isinstance(source, SceneSource) and len(source) == 6
    shapes = {source.load(index, 128).image.shape for index in range(3)}
    assert shapes == {(128, 128, 3), (96, 128, 3), (128, 96, 3)}
    first, again = source.load(4, 128), open_source("scenes:val:6:3").load(4, 128)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.sentences == again.sentences and len(set(first.sentences)) == len(first.sentences)
    for number in range(len(first.sentences)):
        assert first.truth(number).shape == first.image.shape[:2] and first.truth(number).any()
        np.testing.assert_array_equal(first.truth(number), again.truth(number))
