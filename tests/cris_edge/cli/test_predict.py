from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import pytest

from cris_edge.bundle.manifest import STATISTICS
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


def test_what_matches_nothing_is_an_answer(tiny: Path, photo: Path, tmp_path: Path) -> None:
    """The tiny bundle with a calibration: present if the largest logit is above 5."""
    bundle = tmp_path / "calibrated"
    shutil.copytree(tiny, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    coefficients = {"intercept": -2.0, **dict.fromkeys(STATISTICS, 0.0), "peak": 0.4}
    manifest["presence"] = {"source": "calibration", "min_presence": 0.0, "coefficients": coefficients}
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    result = predict(bundle, tmp_path / "output", photo, "red", "green", "--json", "--min-presence", "0.5")
    assert result.exit_code == 0, result.output
    red, green = json.loads(result.stdout)["results"]
    assert (red["matched"], red["empty"], red["min_presence"]) == (True, False, 0.5)
    assert (green["matched"], green["empty"], green["score"], green["box"]) == (False, True, 0.0, None)
    assert red["presence"] > 0.5 > green["presence"]
    strict = predict(bundle, tmp_path / "output", photo, "red", "--min-presence", "1")
    assert strict.exit_code == 0 and '"red"  nothing matches' in strict.stdout
    assert "does not report presence" in refused(
        predict(tiny, tmp_path / "output", photo, "red", "--min-presence", "1")
    )


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


def test_predict_writes_what_it_is_asked_for(tiny: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    result = predict(tiny, output, photo, "red", "blue", "--save", "cutouts,coco,yolo,jsonl")
    assert result.exit_code == 0, result.output
    assert names(output) == [
        "classes.txt", "coco.json", "photo-blue-cutout.png", "photo-red-cutout.png", "photo-yolo.txt", "results.jsonl",
    ]  # fmt: skip
    assert (output / "classes.txt").read_text() == "red\nblue\n"
    assert [line.split()[0] for line in (output / "photo-yolo.txt").read_text().splitlines()] == ["0", "1"]
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    coco = json.loads((output / "coco.json").read_text())
    assert [row["area"] for row in rows] == [annotation["area"] for annotation in coco["annotations"]]
    assert "Unknown kind of output 'svg'" in refused(predict(tiny, output, photo, "red", "--save", "svg"))


def test_json_lines_come_one_by_one(tiny: Path, photo: Path, tmp_path: Path) -> None:
    result = predict(tiny, tmp_path / "output", photo, "red", "blue", "--jsonl")
    assert [json.loads(line)["prompt"] for line in result.stdout.splitlines()] == ["red", "blue"]
    assert "choose one" in refused(predict(tiny, tmp_path / "output", photo, "red", "--jsonl", "--json"))


def test_a_run_continues_where_it_was_killed(tiny: Path, photo: Path, clip: Path, tmp_path: Path) -> None:
    folder, output, again = tmp_path / "images", tmp_path / "output", tmp_path / "again"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        shutil.copyfile(photo, folder / name)
    shutil.copyfile(clip, folder / clip.name)
    whole = predict(tiny, output, folder, "red", "blue", "--save", "masks,jsonl", "--json")
    lines = (output / "results.jsonl").read_text().splitlines(keepends=True)
    again.mkdir()
    (again / "results.jsonl").write_text("".join(lines[:3]) + lines[3][:50])
    result = predict(tiny, again, folder, "red", "blue", "--save", "masks,jsonl", "--json", "--resume")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["skipped"] == 3

    def stable(path: Path) -> list[dict[str, object]]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: row[key] for key in row if key not in ("timings", "files")} for row in rows]

    assert stable(again / "results.jsonl") == stable(output / "results.jsonl")
    assert json.loads(whole.stdout)["videos"][0]["truncated"] is False
    third = predict(tiny, again, folder, "red", "blue", "--save", "masks,jsonl", "--json", "--resume")
    assert json.loads(third.stdout)["results"] == []


def test_a_truncated_video_is_said_and_fails_when_strict(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the video is written with PyAV")
    import numpy as np

    from cris_edge.media.clips import open_clip

    written = open_clip(tmp_path, "noise", 25.0, 48, 64)
    random = np.random.default_rng(0)
    for number in range(40):
        written.add(random.integers(0, 255, (48, 64, 3)).astype(np.uint8), number / 25)
    written.close()
    data = written.path.read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2])
    result = predict(tiny, tmp_path / "output", tmp_path / "half.mp4", "red", "--json")
    assert result.exit_code == 0, result.output
    (video,) = json.loads(result.stdout)["videos"]
    assert video["truncated"] is True and video["expected"] == 40 and video["frames"] < 40
    assert "is truncated" in result.stderr
    assert predict(tiny, tmp_path / "output", tmp_path / "half.mp4", "red", "--strict").exit_code == 1


def test_videos_are_smoothed_and_cut_short_on_demand(tiny: Path, clip: Path, tmp_path: Path) -> None:
    result = predict(tiny, tmp_path / "output", clip, "red", "--json", "--smooth", "0.5", "--max-frames", "3")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [row["frame"] for row in document["results"]] == [0, 1, 2]
    assert [row["seconds"] for row in document["results"]] == pytest.approx([0, 1 / 8, 2 / 8], abs=0.01)
    assert document["videos"][0]["truncated"] is False


def test_long_names_of_any_script_fit_the_file_system(tiny: Path, photo: Path, tmp_path: Path) -> None:
    for name in ("n" * 240 + ".png", "猫" * 80 + ".png"):
        (tmp_path / name).write_bytes(photo.read_bytes())
        result = predict(tiny, tmp_path / "output", tmp_path / name, "p" * 200)
        assert result.exit_code == 0, result.output
    assert len(names(tmp_path / "output")) == 4


def test_a_broken_video_does_not_stop_the_others(tiny: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"nothing")
    shutil.copyfile(photo, folder / "b.png")
    result = predict(tiny, tmp_path / "output", folder, "red", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [Path(row["source"]).name for row in document["results"]] == ["b.png"]
    assert [Path(row["source"]).name for row in document["failures"]] == ["a.mp4"]
