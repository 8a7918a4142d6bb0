"""Atomic file writes, and errors that name the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cris_edge.errors import InputError
from cris_edge.files import naming, write_whole

FULL = Path("/dev/full")


def test_text_and_bytes_replace_an_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "größer")
    assert path.read_bytes() == "größer".encode()
    write_whole(path, b"\0\1")
    assert path.read_bytes() == b"\0\1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"a\.json' cannot be written: No space left on device"):
        write_whole(path, "after")
    assert path.read_text() == "before" and [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")
def test_errors_while_appending_name_the_file() -> None:
    with (
        pytest.raises(InputError, match=r"'/dev/full' cannot be written: No space left on device"),
        naming(FULL),
        FULL.open("a", encoding="utf-8") as file,
    ):
        file.write("a line\n")


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="create the folder first"):
        write_whole(tmp_path / "no" / "a.txt", "")
