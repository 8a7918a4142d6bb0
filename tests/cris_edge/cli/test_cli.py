from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cris_edge.cli import main


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    from tests.cris_edge.tiny_bundle import picture

    path = tmp_path / "photo.png"
    assert cv2.imwrite(str(path), picture("red", "blue")[:, :, ::-1])
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Four frames; red on the left of the first two."""
    from tests.cris_edge.tiny_bundle import picture

    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 8, (160, 96))
    for left in ("red", "red", "grey", "grey"):
        writer.write(np.ascontiguousarray(picture(left, "green")[:, :, ::-1]))
    writer.release()
    return path


@dataclass(frozen=True)
class Result:
    """What a run of the program left; click's own runner keeps the two streams apart only since 8.2."""

    exit_code: object
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def run(*arguments: object) -> Result:
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments], prog_name="cris-edge")
    return Result(end.value.code, stdout.getvalue(), stderr.getvalue())


def predict(tiny: Path, output: Path, *arguments: object) -> Result:
    return run("predict", *arguments, "--model", tiny, "--output", output)


def refused(result: Result, status: int = 1) -> str:
    """The one line that a refusal says; nothing is on stdout."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    line = result.stderr
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_predict_writes_overlay_and_mask(tiny: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "output"
    result = predict(tiny, output, photo, "the red one", "Green!")
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()
    assert '"the red one"  score 0.9' in first
    assert first.endswith(str(output / "photo-the-red-one.png"))
    assert '"Green!"  nothing found' in second
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
    (folder / "notes.txt").write_text("no picture")
    for source in (folder, folder / "*.png"):
        result = predict(tiny, tmp_path / "output", source, "red", "--json")
        assert result.exit_code == 0, result.output
        sources = [Path(entry["source"]).name for entry in json.loads(result.stdout)["results"]]
        assert sources == ["a.png", "b.png"]


def test_results_of_one_run_never_share_a_name(tiny: Path, photo: Path, tmp_path: Path) -> None:
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
def test_any_sentence_gives_a_file_in_the_folder(tiny: Path, photo: Path, tmp_path: Path, prompt: str) -> None:
    output = tmp_path / "output"
    before = names(tmp_path)
    result = predict(tiny, output, photo, prompt)
    assert result.exit_code == 0, result.output
    assert len(names(output)) == 2
    assert names(tmp_path) == sorted([*before, "output"])


def test_a_broken_picture_does_not_stop_the_others(tiny: Path, photo: Path, tmp_path: Path) -> None:
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


def test_predict_follows_a_video(tiny: Path, clip: Path, tmp_path: Path) -> None:
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


def test_a_video_of_an_earlier_run_is_replaced_whole(tiny: Path, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    (output / "clip-red-masks").mkdir(parents=True)
    (output / "clip-red-masks" / "000099.png").touch()
    result = predict(tiny, output, clip, "red", "--json")
    assert result.exit_code == 0, result.output
    entries = json.loads(result.stdout)["results"]
    assert [(entry["frame"], entry["empty"]) for entry in entries] == [(0, False), (1, False), (2, True), (3, True)]
    assert names(output / "clip-red-masks") == [f"{number:06d}.png" for number in range(4)]


def test_a_file_that_only_looks_like_a_video_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    output = tmp_path / "output"
    assert "clip.mp4 cannot be read" in refused(predict(tiny, output, tmp_path / "clip.mp4", "red"))
    assert names(output) == []


def test_refusals_are_one_line_and_status_1(tiny: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert "There is no file or folder" in refused(predict(tiny, output, tmp_path / "nope.png", "red"))
    assert "has no images or videos" in refused(predict(tiny, output, tmp_path / "*.jpg", "red"))
    assert "has no device 'NPU9' here" in refused(predict(tiny, output, photo, "red", "--device", "NPU9"))
    assert "precision 'int4' is unknown" in refused(predict(tiny, output, photo, "red", "--precision", "int4"))
    assert "no graphs for the runtime 'x'" in refused(predict(tiny, output, photo, "red", "--runtime", "x"))
    assert "The prompt is empty" in refused(predict(tiny, output, photo, " "))
    assert "There is no bundle" in refused(run("predict", photo, "red", "--model", tmp_path / "none"))
    (tmp_path / "file").touch()
    assert "cannot be made" in refused(predict(tiny, tmp_path / "file" / "output", photo, "red"))
    assert not output.exists() or names(output) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        ["predict", "photo.jpg"],
        ["predict", "photo.jpg", "red", "--threshold", "2"],
        ["predict", "photo.jpg", "red", "--threads", "0"],
        ["predict", "photo.jpg", "red", "--nonsense"],
        ["nonsense"],
        ["info", "one", "two"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


def test_a_sentence_that_is_cut_is_told_in_one_line(tiny: Path, photo: Path, tmp_path: Path) -> None:
    result = predict(tiny, tmp_path / "output", photo, "the red one " + "and so on " * 20, "--json")
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)
    assert result.stderr.startswith("warning: ")
    assert result.stderr.count("\n") == 1


def test_info_tells_what_is_in_a_bundle(tiny: Path) -> None:
    text = run("info", tiny).stdout
    for part in ("tiny", "Finds red, green and blue", "128 x 128 pixels, 17 tokens", "onnxruntime, openvino", "logits"):
        assert part in text
    document = json.loads(run("info", tiny, "--json").stdout)
    assert document["name"] == "tiny"
    assert document["graphs"]["text_encoder"]["inputs"] == [{"name": "tokens", "shape": [1, 17], "dtype": "int64"}]
    assert len(document["digest"]) == 64


def test_verify_runs_every_runtime(tiny: Path) -> None:
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
    result = run("verify", tiny)
    assert result.exit_code == 0, result.output
    assert "the hashes of 5 files hold" in result.stdout
    assert "onnxruntime float32: passed" in result.stdout
    assert "openvino float32: passed" in result.stdout
    document = json.loads(run("verify", tiny, "--json").stdout)
    assert document["passed"] is True
    assert {check["outcome"] for check in document["checks"]} == {"passed"}


def test_verify_finds_a_changed_file(tiny: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    data = bytearray((bundle / "golden.npz").read_bytes())
    data[-1] ^= 1
    (bundle / "golden.npz").write_bytes(data)
    assert "golden.npz was modified after the bundle was written" in refused(run("verify", bundle))


def test_verify_fails_where_a_runtime_gives_something_else(tiny: Path, tmp_path: Path) -> None:
    bundle = _with_parity(tiny, tmp_path, [])
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    with np.load(bundle / "golden.npz") as golden:
        arrays: dict[str, Any] = dict(golden)
    arrays["logits"][1] += 0.01
    np.savez(bundle / "golden.npz", **arrays)
    _rewrite(bundle, manifest)
    result = run("verify", bundle, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["passed"] is False
    assert "a logit differs by 0.01 from PyTorch's, and 0.001 is allowed" in result.stderr


def test_verify_says_what_it_cannot_judge(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = run("verify", tiny)
    assert result.exit_code == 0, result.output
    assert "openvino auto: not checked (it is not installed; install it with pip install" in result.stdout
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run("verify", tiny)
    assert result.exit_code == 1
    assert "could not be checked" in result.stderr


def test_verify_judges_no_precision_without_a_tolerance(tiny: Path, tmp_path: Path) -> None:
    from cris_edge.backends import registry

    pytest.importorskip("openvino")
    if "bfloat16" not in registry.describe("openvino").devices[0].precisions:
        pytest.skip("this processor has no bfloat16 arithmetic")
    result = run("verify", _with_parity(tiny, tmp_path, []))
    assert result.exit_code == 0, result.output
    assert "openvino bfloat16: not checked" in result.stdout
    assert "states no tolerance for bfloat16" in result.stdout


def _with_parity(tiny: Path, tmp_path: Path, parity: list[Any]) -> Path:
    bundle = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    _rewrite(bundle, {**manifest, "parity": parity})
    return bundle


def _rewrite(bundle: Path, manifest: dict[str, Any]) -> None:
    """A manifest whose hashes are those of the files as they are now."""
    import hashlib

    for name in manifest["files"]:
        data = (bundle / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_doctor_tells_what_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert 'openvino: cannot be used; install it with pip install "cris-edge[openvino]"' in result.stdout
    assert "  CPU" in result.stdout
    document = json.loads(run("doctor", "--json").stdout)
    runtimes = {runtime["name"]: runtime for runtime in document["runtimes"]}
    assert runtimes["openvino"]["usable"] is False
    assert runtimes["onnxruntime"]["devices"][0]["name"] == "CPU"
    assert document["cores"] >= 1


def test_as_a_program_stdout_holds_nothing_but_json(tiny: Path, photo: Path, tmp_path: Path) -> None:
    arguments = ["predict", str(photo), "red", "--model", str(tiny), "--output", str(tmp_path / "output"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "cris_edge", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert done.stderr == ""
    said = subprocess.run(
        [sys.executable, "-m", "cris_edge", "--verbose", *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    json.loads(said.stdout)
    assert "tiny on " in said.stderr


def test_a_reader_that_has_enough_is_no_error_message(tiny: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "cris_edge", "info", str(tiny)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    program.stdout.close()
    _, said = program.communicate(timeout=60)
    assert said == b""


def test_version_and_help() -> None:
    from cris_edge import __version__

    assert run("--version").stdout == f"cris-edge, version {__version__}\n"
    for command in ("predict", "info", "verify", "doctor"):
        assert run(command, "--help").exit_code == 0
        assert command in run("--help").stdout
