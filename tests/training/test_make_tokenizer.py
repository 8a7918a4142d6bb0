from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from training.make_tokenizer import MERGE_COUNT, MERGES_NAME, byte_alphabet, main, read_merges, tokenizer_document


@pytest.fixture(scope="module")
def merges(root: Path) -> list[str]:
    """The merges of the default model's tokenizer."""
    document = json.loads((root / "cris_edge/models/default/tokenizer.json").read_text(encoding="utf-8"))
    return list(document["model"]["merges"])


@pytest.fixture
def packed(merges: list[str]) -> bytes:
    """The merges as CLIP publishes them: a comment, then more lines than are used."""
    return gzip.compress("\n".join(["#version: 0.2", *merges, "more lines", "than used", ""]).encode())


def test_the_script_reproduces_the_file_of_the_default_model(packed: bytes, root: Path, tmp_path: Path) -> None:
    source, target = tmp_path / MERGES_NAME, tmp_path / "tokenizer.json"
    source.write_bytes(packed)
    assert main([str(source), str(target)]) == 0
    assert target.read_bytes() == (root / "cris_edge/models/default/tokenizer.json").read_bytes()


def test_merges_are_read_from_the_wheel(packed: bytes, merges: list[str], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "open_clip_torch.whl", "w") as wheel:
        wheel.writestr(f"open_clip/{MERGES_NAME}", packed)
    assert read_merges(tmp_path / "open_clip_torch.whl") == merges


def test_the_vocabulary_is_that_of_clip(merges: list[str]) -> None:
    vocabulary = tokenizer_document(merges)["model"]["vocab"]
    assert len(merges) == MERGE_COUNT
    assert len(vocabulary) == 49408
    assert len(set(byte_alphabet())) == 256
    assert vocabulary["!"] == 0
    assert vocabulary["a</w>"] == 320
    assert vocabulary["<|startoftext|>"] == 49406
    assert vocabulary["<|endoftext|>"] == 49407


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", gzip.compress(b"a b\n" * 100), gzip.compress(b"a\n" * 60_000), gzip.compress(b"\xff")],
)
def test_invalid_merges_are_rejected(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "merges.gz"
    source.write_bytes(content)
    assert main([str(source), str(tmp_path / "out.json")]) == 1
    assert "merges.gz" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_an_archive_without_merges_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("a.txt", "a")
    assert main([str(tmp_path / "other.whl"), str(tmp_path / "out.json")]) == 1
    assert main([str(tmp_path / "absent.whl"), str(tmp_path / "out.json")]) == 1
    assert "contains 0 files named" in capsys.readouterr().err
