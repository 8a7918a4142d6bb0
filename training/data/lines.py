"""Labelled lines on their way to disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cris_edge.errors import DataError, InputError
from cris_edge.files import write_whole


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file of lines, each with its end, whole or not at all.

    Raises:
        DataError: it cannot be written; what was there before stays, and nothing else is left behind.
    """
    try:
        write_whole(path, "".join(lines))
    except InputError as error:
        raise DataError(f"{error}; free some space or give another folder: what was there before stays") from error
