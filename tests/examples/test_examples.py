"""The examples run unmodified, with a small bundle in place of the default model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the bundle of the tests is built with onnx")

from tests.cris_edge.tiny_bundle import build, picture


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def run(root: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run an example with arguments and return the lines that it printed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("cris_edge.segmenter.default_model", lambda: model)

    def run(name: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(root / "examples" / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    import cv2

    path = tmp_path / "photo.png"
    assert cv2.imwrite(str(path), picture("red", "blue")[:, :, ::-1])
    return path


def test_one_image(run, photo: Path) -> None:
    import cv2

    lines = run("one_image.py", str(photo), "the blue one")
    assert lines[0].startswith("box (7"), lines
    overlay = cv2.imread(str(photo.with_suffix(".overlay.png")))
    assert overlay.shape == (96, 160, 3)
    assert run("one_image.py", str(photo), "green") == ["nothing found for 'green'"]


def test_many_prompts(run, photo: Path) -> None:
    lines = run("many_prompts.py", str(photo), "red", "blue", "green")
    boxes = [line.partition("box ")[2] for line in lines[2:]]
    assert boxes[0].startswith("(0.0, 0.0")
    assert boxes[1].endswith("160.0, 96.0)")
    assert boxes[2] == "None"


def test_video_frames(run, tmp_path: Path) -> None:
    import cv2

    path = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 10, (160, 96))
    for left in ("red", "grey", "red"):
        writer.write(np.ascontiguousarray(picture(left, "blue")[:, :, ::-1]))
    writer.release()
    lines = run("video_frames.py", path, "red")
    assert [line.split()[1] for line in lines] == ["score", "nothing", "score"]
