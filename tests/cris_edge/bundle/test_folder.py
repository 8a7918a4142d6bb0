from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cris_edge import Segmenter
from cris_edge.bundle import Bundle, BundleWriter
from cris_edge.bundle import integrity as module
from cris_edge.errors import BundleError, OptionError


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    """A copy of a bundle that a test may modify."""
    return Path(shutil.copytree(tiny, tmp_path / "bundle"))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were hashed, in order."""
    names: list[str] = []
    original = module.sha256

    def count(path: Path) -> str:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(module, "sha256", count)
    return names


def rewrite(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_valid_bundle_opens(tiny: Path) -> None:
    bundle = Bundle.open(tiny)
    assert bundle.manifest.name == "tiny"
    assert bundle.graph_files("onnxruntime")["image_encoder"] == tiny.resolve() / "onnx" / "image_encoder.onnx"
    assert bundle.tokenizer("red", length=5).shape == (1, 5)
    golden = bundle.golden()
    assert golden.images.shape == (3, 128, 128, 3)
    assert golden.logits.shape == (3, 1, 32, 32)
    assert golden.prompts[0] == "the red one"


def test_the_digest_identifies_the_model(tiny: Path, other: Path, copied: Path) -> None:
    assert Bundle.open(tiny).digest == Bundle.open(copied).digest != Bundle.open(other).digest


def test_a_runtime_without_graphs_is_named(tiny: Path) -> None:
    with pytest.raises(OptionError, match=r"no graphs for the runtime 'qnn'\. Available: onnxruntime, openvino"):
        Bundle.open(tiny).graph_files("qnn")


def test_other_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="There is no bundle"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"it has no manifest\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="is not JSON"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="is not JSON"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match="is not JSON"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="is a file; expected a bundle"):
        Bundle.open(tmp_path / "manifest.json")


def test_an_unknown_format_is_refused_before_anything_else(copied: Path) -> None:
    (copied / "manifest.json").write_text('{"format": 3, "whatever": "follows"}')
    with pytest.raises(BundleError, match="is of format 3, and this version of cris-edge reads formats 1 to 2"):
        Bundle.open(copied)


def test_a_missing_file_is_named(copied: Path) -> None:
    (copied / "onnx" / "mask_decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"incomplete: onnx/mask_decoder\.onnx is missing"):
        Bundle.open(copied)
    (copied / "onnx" / "mask_decoder.onnx").mkdir()
    with pytest.raises(BundleError, match="is not a regular file"):
        Bundle.open(copied)


def test_a_truncated_file_is_named(copied: Path) -> None:
    path = copied / "onnx" / "text_encoder.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"text_encoder\.onnx has \d+ bytes; the manifest states \d+"):
        Bundle.open(copied)


def test_one_changed_byte_is_found(copied: Path) -> None:
    Bundle.open(copied)
    path = copied / "onnx" / "text_encoder.onnx"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # even with the original times
    with pytest.raises(BundleError, match=r"text_encoder\.onnx was modified after"):
        Bundle.open(copied)


def test_extra_files_are_ignored(copied: Path) -> None:
    (copied / "README.md").write_text("mine")
    Bundle.open(copied)


def test_hashes_are_computed_once(copied: Path, hashed: list[str]) -> None:
    Bundle.open(copied)
    assert len(hashed) == 5
    Bundle.open(copied)
    assert len(hashed) == 5
    os.utime(copied / "tokenizer.json", ns=(1, 1))
    Bundle.open(copied)
    assert hashed[5:] == ["tokenizer.json"]
    Bundle.open(copied, thorough=True)
    assert len(hashed) == 11


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b"\x00\xff", b"[" * 100_000])
def test_a_damaged_record_of_hashes_is_ignored(copied: Path, hashed: list[str], cache: Path, content: bytes) -> None:
    Bundle.open(copied)
    for path in (cache / "cris-edge" / "verified").iterdir():
        path.write_bytes(content)
    Bundle.open(copied)
    assert len(hashed) == 10


@pytest.mark.skipif(sys.platform != "linux", reason="sets the cache folder by XDG_CACHE_HOME")
def test_without_a_cache_folder_hashes_are_computed_each_time(
    copied: Path, hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    Bundle.open(copied)
    Bundle.open(copied)
    assert len(hashed) == 10


@pytest.mark.parametrize(
    "name",
    ["../outside", "onnx/../../outside", "/etc/passwd", "..", ".", "", "onnx//x", "./x", "C:/x", "a\\..\\b", "a\0b"],
)
def test_a_path_that_leaves_the_folder_is_refused(copied: Path, name: str) -> None:
    (copied.parent / "outside").write_text("secret")
    files = json.loads((copied / "manifest.json").read_bytes())["files"]
    rewrite(copied, files={**files, name: files["golden.npz"]})
    with pytest.raises(BundleError, match="expected one inside the folder"):
        Bundle.open(copied)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege on Windows")
def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(copied: Path) -> None:
    golden = copied / "golden.npz"
    golden.rename(copied / "inside.npz")
    golden.symlink_to("inside.npz")
    Bundle.open(copied)
    golden.unlink()
    (copied / "inside.npz").rename(copied.parent / "outside.npz")
    golden.symlink_to("../outside.npz")
    with pytest.raises(BundleError, match="a symbolic link to outside the bundle"):
        Bundle.open(copied)
    golden.unlink()
    golden.symlink_to("golden.npz")
    with pytest.raises(BundleError, match=r"a symbolic link to outside|is missing"):
        Bundle.open(copied)
    golden.unlink()
    (copied.parent / "outside.npz").rename(golden)
    shutil.move(copied / "onnx", copied.parent / "onnx")
    (copied / "onnx").symlink_to(copied.parent / "onnx", target_is_directory=True)
    with pytest.raises(BundleError, match="a symbolic link to outside the bundle"):
        Bundle.open(copied)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege on Windows")
def test_the_cache_layout_of_the_hub_is_accepted(tiny: Path, tmp_path: Path, runtime: str) -> None:
    """Its snapshots are folders of links to files named by their hash."""
    repository = tmp_path / "models--someone--tiny"
    snapshot = repository / "snapshots" / "0123abcd"
    for number, file in enumerate(path for path in sorted(tiny.rglob("*")) if path.is_file()):
        blob = repository / "blobs" / f"{number:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(tiny)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    with Segmenter(snapshot, runtime=runtime) as segmenter:
        assert segmenter.bundle.digest == Bundle.open(tiny).digest
    golden = snapshot / "golden.npz"
    for target in ("../../outside", "../../blobs/../../outside", "../../../models--another/blobs/1"):
        path = Path(os.path.normpath(snapshot / target))
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tiny / "golden.npz", path)
        golden.unlink()
        golden.symlink_to(target)
        with pytest.raises(BundleError, match="a symbolic link to outside the bundle"):
            Bundle.open(snapshot)
    # Links of the same form under folders of other names are refused.
    golden.unlink()
    shutil.copyfile(tiny / "golden.npz", golden)
    repository.rename(tmp_path / "another")
    with pytest.raises(BundleError, match="a symbolic link to outside the bundle"):
        Bundle.open(tmp_path / "another" / "snapshots" / "0123abcd")


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege on Windows")
def test_the_folder_itself_may_be_a_link(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny, target_is_directory=True)
    assert Bundle.open(tmp_path / "link").path == tiny.resolve()


def test_golden_outputs_of_other_shapes_are_refused(tiny: Path, tmp_path: Path) -> None:
    def spoil(name: str, **arrays: Any) -> Bundle:
        with BundleWriter(tmp_path / name) as writer:
            shutil.copytree(tiny, writer.path, dirs_exist_ok=True)
            if arrays:
                with np.load(tiny / "golden.npz") as golden:
                    np.savez(writer.path / "golden.npz", **{**golden, **arrays})
            else:
                (writer.path / "golden.npz").write_bytes(b"PK nonsense")
            writer.manifest = json.loads((tiny / "manifest.json").read_bytes())
        return Bundle.open(tmp_path / name)

    with pytest.raises(BundleError, match=r"golden tokens .* is int64\[2, 17\]; expected int64\[3, 17\]"):
        spoil("short", tokens=np.zeros((2, 17), np.int64)).golden()
    with pytest.raises(BundleError, match=r"golden logits .* is float64\[3, 1, 32, 32\]"):
        spoil("wide", logits=np.zeros((3, 1, 32, 32))).golden()
    with pytest.raises(BundleError, match="cannot be read"):
        spoil("objects", image=np.array([{}], object)).golden()
    with pytest.raises(BundleError, match="cannot be read"):
        spoil("nonsense").golden()


def test_missing_golden_outputs_are_reported(tiny: Path, copied: Path) -> None:
    rewrite(copied, golden=None)
    with pytest.raises(BundleError, match="has no golden outputs"):
        Bundle.open(copied).golden()


def written(target: Path, tiny: Path, name: str, *, overwrite: bool = False) -> None:
    with BundleWriter(target, overwrite=overwrite) as writer:
        assert writer.path.parent == target.parent
        shutil.copytree(tiny, writer.path, dirs_exist_ok=True)
        writer.manifest = {**json.loads((tiny / "manifest.json").read_bytes()), "name": name, "mine": [1]}


def test_a_written_bundle_opens(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "model"
    written(target, tiny, "first")
    assert Bundle.open(target).manifest.name == "first"
    assert json.loads((target / "manifest.json").read_bytes())["mine"] == [1]
    assert entries(target.parent) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), BundleWriter(tmp_path / "model") as writer:
        (writer.path / "onnx").mkdir()
        (writer.path / "onnx" / "half.onnx").write_bytes(b"half")
        raise error
    assert entries(tmp_path) == []


def test_an_invalid_manifest_leaves_nothing_behind(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="lacks 'name'"), BundleWriter(tmp_path / "model") as writer:
        shutil.copytree(tiny, writer.path, dirs_exist_ok=True)
        writer.manifest = {"input_size": 32}
    assert entries(tmp_path) == []


def test_an_existing_target_is_replaced_only_with_overwrite(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    written(target, tiny, "first")
    with pytest.raises(BundleError, match="already exists"):
        written(target, tiny, "second")
    assert Bundle.open(target).manifest.name == "first"
    (target / "surplus").touch()
    written(target, tiny, "second", overwrite=True)
    assert Bundle.open(target).manifest.name == "second"
    assert not (target / "surplus").exists()
    assert entries(tmp_path) == ["model"]


def test_a_target_that_appears_meanwhile_is_not_replaced(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(BundleError, match="already exists"), BundleWriter(target) as writer:
        shutil.copytree(tiny, writer.path, dirs_exist_ok=True)
        writer.manifest = json.loads((tiny / "manifest.json").read_bytes())
        target.mkdir()
    assert entries(tmp_path) == ["model"]


def test_other_folders_are_never_replaced(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    with pytest.raises(BundleError, match="is not a bundle, so it is not overwritten"):
        written(tmp_path / "home", tiny, "model", overwrite=True)
    assert entries(tmp_path / "home") == ["letter.txt"]


def test_the_old_bundle_is_restored_when_the_new_one_cannot_be_moved(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    written(target, tiny, "first")
    original = Path.rename

    def fail(self: Path, to: Path) -> Path:
        if ".partial-" in self.name:
            raise PermissionError("no")
        return original(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(BundleError, match="cannot be written"):
        written(target, tiny, "second", overwrite=True)
    assert Bundle.open(target).manifest.name == "first"
    assert entries(tmp_path) == ["model"]
