from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cris_edge.errors import DataError
from training.data.lines import write_lines


def test_a_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_lines(path, ["a\n"])
    write_lines(path, (line for line in ("ä\n", "c\n")))
    assert path.read_text(encoding="utf-8") == "ä\nc\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_gets_a_sentence_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.jsonl"
    write_lines(path, ["before\n"])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"train\.jsonl' cannot be written: No space left on device.*was kept"):
        write_lines(path, ["after\n"])
    assert path.read_text() == "before\n"
    assert list(tmp_path.iterdir()) == [path]
