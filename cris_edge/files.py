"""Atomic file writes."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from cris_edge.errors import InputError


def write_whole(target: Path, data: bytes | str) -> None:
    """Write a file atomically: to a temporary file beside `target`, then renamed.

    Args:
        target: Path to write; its folder must exist.
        data: Content; text is stored as UTF-8.

    Raises:
        InputError: The file cannot be written. Nothing is left behind.
    """
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with naming(target):
            # Not `tempfile`, which makes files private to the user; this one gets the default permissions.
            with temporary.open("xb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(target: Path) -> Iterator[None]:
    """Name the file in errors raised while writing it; the error of a full disk, for one, does not.

    Raises:
        InputError: Replaces the operating system's error.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        hint = "; create the folder first" if isinstance(error, FileNotFoundError) else ""
        raise InputError(f"{str(target)!r} cannot be written: {reason}{hint}") from error
