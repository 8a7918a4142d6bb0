from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cris_edge.device import compiled_cache as module
from cris_edge.device.compiled_cache import CompiledCache, clear, prune, report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "compiled" / "model"
    path.mkdir(parents=True)
    return path


def publish(folder: Path, name: str, content: bytes) -> Path:
    source = folder / ".new"
    source.write_bytes(content)
    CompiledCache(folder).publish([(source, name)])
    found = CompiledCache(folder).find(name)
    assert found is not None
    return found


def test_an_entry_is_found_by_its_name(folder: Path) -> None:
    first = publish(folder, "graph-1.2.onnx", b"one")
    assert first.read_bytes() == b"one" and first.suffix == ".onnx"
    assert publish(folder, "graph-1.2.onnx", b"two").read_bytes() == b"two"
    assert not first.exists()  # replaced
    assert CompiledCache(folder).find("graph-1.3.onnx") is None


def test_a_damaged_entry_is_removed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = publish(folder, "graph.onnx", b"whole")
    path.write_bytes(b"whols")
    assert CompiledCache(folder).find("graph.onnx") is None
    assert not path.exists()
    assert "is damaged" in caplog.text


def test_staging_gives_entries_and_takes_new_ones(folder: Path) -> None:
    cache = CompiledCache(folder)
    with cache.staging("graph-a") as staging:
        assert staging is not None and list(staging.iterdir()) == []
        (staging / "1.blob").write_bytes(b"first")
    with cache.staging("graph-a") as staging:
        assert staging is not None and (staging / "1.blob").read_bytes() == b"first"
        (staging / "1.blob").unlink()  # as OpenVINO does with a blob of another version
        (staging / "2.blob").write_bytes(b"second")
    with cache.staging("graph-a") as staging:
        assert staging is not None and [path.name for path in staging.iterdir()] == ["2.blob"]
    with cache.staging("graph-b") as staging:
        assert staging is not None and list(staging.iterdir()) == []
    assert [path.suffix for path in folder.iterdir() if not path.name.startswith(".")] == [".blob"]


def test_staging_is_removed_after_an_error_and_publishes_nothing(folder: Path) -> None:
    for error in (RuntimeError, OSError):
        with pytest.raises(error), CompiledCache(folder).staging("graph") as staging:
            assert staging is not None
            (staging / "1.blob").write_bytes(b"half")
            raise error
    assert list(folder.iterdir()) == []


def test_unchanged_entries_are_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, hashed = CompiledCache(folder), []
    original = module.sha256
    with cache.staging("graph") as staging:
        assert staging is not None
        (staging / "1.blob").write_bytes(b"content")
    monkeypatch.setattr(module, "sha256", lambda path: hashed.append(path.name) or original(path))
    for _ in range(3):
        with cache.staging("graph"):
            pass
    assert len(hashed) == 1
    (path,) = folder.glob("*.blob")
    before = path.stat()
    path.write_bytes(b"damaged")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with cache.staging("graph") as staging:
        assert staging is not None and list(staging.iterdir()) == []
    assert len(hashed) == 2
    (folder / ".checked").write_bytes(b"[")
    with cache.staging("graph"):  # a damaged record is ignored
        pass


def test_a_folder_that_cannot_be_written_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with CompiledCache(tmp_path / "absent").staging("graph") as staging:
        assert staging is None
    assert "cannot be cached" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="folders are locked on POSIX")
def test_a_lock_held_for_long_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(module, "_LOCK_WAIT", 0.1)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        (folder / ".new").write_bytes(b"one")
        CompiledCache(folder).publish([(folder / ".new", "graph.onnx")])
        assert CompiledCache(folder).find("graph.onnx") is None
    finally:
        os.close(handle)
    assert publish(folder, "graph.onnx", b"one")


def test_pruning_removes_the_old_and_then_the_longest_unused(folder: Path) -> None:
    now = time.time()
    paths = {}
    for age, name in enumerate("abcd"):
        paths[name] = publish(folder, f"{name}.blob", name.encode() * 100)
        os.utime(paths[name], (now - 1000 * age, now - 1000 * age))
    (folder / "letter.txt").write_text("mine")
    (folder / ".staging-old").mkdir()
    os.utime(folder / ".staging-old", (now - 2 * 86400, now - 2 * 86400))
    root = folder.parent
    assert prune(root) == []
    assert not (folder / ".staging-old").exists()
    assert prune(root, max_age=2500) == [paths["d"]]
    assert prune(root, max_bytes=250) == [paths["c"]]
    assert prune(root, max_bytes=0, kept=[paths["a"]]) == [paths["b"]]
    assert paths["a"].exists() and (folder / "letter.txt").exists()


def test_publishing_prunes_former_entries(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    (other / "123.blob").write_bytes(b"of a former version")
    os.utime(other / "123.blob", (1, 1))
    publish(folder, "a.blob", b"one")
    assert not (other / "123.blob").exists()


def test_use_is_noted_once_a_day(folder: Path) -> None:
    path = publish(folder, "a.blob", b"one")
    week = time.time() - 7 * 86400
    os.utime(path, (week, week))
    assert CompiledCache(folder).find("a.blob") == path
    assert time.time() - path.stat().st_mtime < 60


def test_report_and_clear(folder: Path, tmp_path: Path) -> None:
    publish(folder, "a.blob", b"x" * 1000)
    (tmp_path / "verified").mkdir()
    (tmp_path / "verified" / f"{'0' * 32}.json").write_text("{}")
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "checkpoint.pt").write_bytes(b"y" * 500)
    found = report(tmp_path)
    assert (found.graphs, found.graph_bytes, found.models, found.records, found.other_bytes) == (1, 1000, 1, 1, 500)
    assert clear(tmp_path) == 1002
    assert (tmp_path / "downloads" / "checkpoint.pt").exists()
    assert not folder.exists()
    assert report(tmp_path / "absent").graphs == clear(tmp_path / "absent") == 0


def test_processes_share_a_folder(folder: Path) -> None:
    """Writers of different content under one name: a reader finds one of them, whole."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom cris_edge.device.compiled_cache import CompiledCache\n"
        "cache = CompiledCache(Path(sys.argv[1]))\ncontent = sys.argv[2].encode() * 100_000\n"
        "for _ in range(30):\n"
        "    with cache.staging('graph') as staging:\n"
        "        found = []\n"
        "        for path in staging.iterdir():\n"
        "            try: found.append(path.read_bytes())\n"
        "            except FileNotFoundError: pass  # replaced meanwhile\n"
        "        assert all(len(set(data)) == 1 and len(data) == 100_000 for data in found), found\n"
        "        for path in staging.iterdir(): path.unlink()\n"
        "        (staging / '1.blob').write_bytes(content)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(folder), letter]) for letter in "abc"]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert len(list(folder.glob("*.blob"))) == 1
    assert not list(folder.glob(".staging-*"))
