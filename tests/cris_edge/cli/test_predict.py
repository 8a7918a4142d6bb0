from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import pytest

from tests.cris_edge.cli.program_runs import Result, names, refused, run


def predict(tiny: Path, output: Path, *arguments: object) -> Result:
    return run("predict", *arguments, "--model", tiny, "--output", output)


def test_predict_writes_overlay_and_mask(tiny: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "output"
    result = predict(tiny, output, photo, "the red one", "Green!")
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()
    assert '"the red one"  score 0.9' in first
    assert first.endswith(str(output / "photo-the-red-one.png"))
    assert '"Green!"  nothing matches' in second
    assert names(output) == [
        "photo-green-mask.png", "photo-green.png", "photo-the-red-one-mask.png", "photo-the-red-one.png",
    ]  # fmt: skip
    mask = cv2.imread(str(output / "photo-the-red-one-mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (96, 160)
    assert mask[:, :70].min() == 255
    assert mask[:, 90:].max() == 0
    assert cv2.imread(str(output / "photo-the-red-one.png")).shape == (96, 160, 3)
    assert result.stderr == ""


def test_predict_json_is_one_document(tiny: Path, photo: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = predict(
        tiny, tmp_path / "output", photo, "red", "--json", "--threshold", "0.5", "--runtime", "onnxruntime"
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["segmenter"]["runtime"] == "onnxruntime"
    assert document["segmenter"]["precision"] == "float32"
    (entry,) = document["results"]
    assert entry["prompt"] == "red"
    assert entry["threshold"] == 0.5
    assert entry["box"][:2] == [0.0, 0.0]
    assert entry["mask"]["size"] == [96, 160]
    assert Path(entry["files"]["overlay"]).is_file()
    assert document["failures"] == []


def test_predict_takes_folders_and_patterns(tiny: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.png", "a.png", ".hidden.png"):
        shutil.copyfile(photo, folder / name)
    (folder / "notes.txt").write_text("no image")
    for source in (folder, folder / "*.png"):
        result = predict(tiny, tmp_path / "output", source, "red", "--json")
        assert result.exit_code == 0, result.output
        sources = [Path(entry["source"]).name for entry in json.loads(result.stdout)["results"]]
        assert sources == ["a.png", "b.png"]


def test_results_of_one_run_have_unique_names(tiny: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copyfile(photo, folder / "a.png")
    cv2.imwrite(str(folder / "a.bmp"), cv2.imread(str(photo)))
    result = predict(tiny, tmp_path / "output", folder, "red", "RED", "--json")
    assert result.exit_code == 0, result.output
    overlays = [entry["files"]["overlay"] for entry in json.loads(result.stdout)["results"]]
    assert len(set(overlays)) == 4
    assert len(names(tmp_path / "output")) == 8


@pytest.mark.parametrize("prompt", ["../../etc/passwd", "…", "日本語の猫", "a" * 60, "NUL:\\*?"])
def test_any_prompt_gives_a_file_in_the_folder(tiny: Path, photo: Path, tmp_path: Path, prompt: str) -> None:
    output = tmp_path / "output"
    before = names(tmp_path)
    result = predict(tiny, output, photo, prompt)
    assert result.exit_code == 0, result.output
    assert len(names(output)) == 2
    assert names(tmp_path) == sorted([*before, "output"])


def test_a_broken_image_does_not_stop_the_others(tiny: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(photo.read_bytes()[:100])
    shutil.copyfile(photo, folder / "b.png")
    result = predict(tiny, tmp_path / "output", folder, "red", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert [Path(entry["source"]).name for entry in document["results"]] == ["b.png"]
    assert [Path(entry["source"]).name for entry in document["failures"]] == ["a.png"]
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_predict_processes_a_video(tiny: Path, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    result = predict(tiny, output, clip, "red", "blue")
    assert result.exit_code == 0, result.output
    assert [line.partition("  ")[2].rpartition("  ")[0] for line in result.stdout.splitlines()] == [
        '"red"  found in 2 of 4 frames', '"blue"  found in 0 of 4 frames',
    ]  # fmt: skip
    (overlay,) = output.glob("clip-red.*")
    capture = cv2.VideoCapture(str(overlay))
    assert (capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)) == (8, 4)
    capture.release()
    masks = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((output / "clip-red-masks").iterdir())]
    assert [bool(mask.any()) for mask in masks] == [True, True, False, False]
    assert not list(output.glob(".*"))


def test_a_video_of_an_earlier_run_is_replaced_entirely(tiny: Path, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    (output / "clip-red-masks").mkdir(parents=True)
    (output / "clip-red-masks" / "000099.png").touch()
    result = predict(tiny, output, clip, "red", "--json")
    assert result.exit_code == 0, result.output
    entries = json.loads(result.stdout)["results"]
    assert [(entry["frame"], entry["empty"]) for entry in entries] == [(0, False), (1, False), (2, True), (3, True)]
    assert names(output / "clip-red-masks") == [f"{number:06d}.png" for number in range(4)]


def test_a_file_that_is_not_a_video_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    output = tmp_path / "output"
    assert "clip.mp4 cannot be read" in refused(predict(tiny, output, tmp_path / "clip.mp4", "red"))
    assert names(output) == []


def test_errors_are_one_line_and_status_1(tiny: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert "There is no file or folder" in refused(predict(tiny, output, tmp_path / "nope.png", "red"))
    assert "has no images or videos" in refused(predict(tiny, output, tmp_path / "*.jpg", "red"))
    assert "has no device 'NPU9'" in refused(predict(tiny, output, photo, "red", "--device", "NPU9"))
    assert "precision 'int4' is unknown" in refused(predict(tiny, output, photo, "red", "--precision", "int4"))
    assert "no graphs for the runtime 'x'" in refused(predict(tiny, output, photo, "red", "--runtime", "x"))
    assert "The prompt is empty" in refused(predict(tiny, output, photo, " "))
    assert "There is no bundle" in refused(run("predict", photo, "red", "--model", tmp_path / "none"))
    (tmp_path / "file").touch()
    assert "Cannot create the output folder" in refused(predict(tiny, tmp_path / "file" / "output", photo, "red"))
    assert not output.exists() or names(output) == []


def test_a_truncated_prompt_is_a_warning_of_one_line(tiny: Path, photo: Path, tmp_path: Path) -> None:
    result = predict(tiny, tmp_path / "output", photo, "the red one " + "and so on " * 20, "--json")
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)
    assert result.stderr.startswith("warning: ")
    assert result.stderr.count("\n") == 1
