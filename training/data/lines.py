"""Atomic writes of JSON Lines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cris_edge.errors import DataError, InputError
from cris_edge.files import write_whole


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file of lines, each with its line end, atomically.

    Raises:
        DataError: it cannot be written; an existing file is kept, and no other file is left.
    """
    try:
        write_whole(path, "".join(lines))
    except InputError as error:
        raise DataError(f"{error}; free some space or give another folder; an existing file was kept") from error
