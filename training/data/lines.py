"""Labelled lines on their way to disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cris_edge.errors import DataError


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file of lines, each with its end, whole or not at all.

    Raises:
        DataError: it cannot be written; what was there before stays, and nothing else is left behind.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"{path} could not be written ({error.strerror or error}); free some space or give another folder: what "
            "was there before stays"
        ) from error
