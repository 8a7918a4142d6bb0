"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from cris_edge.errors import InputError


def write_whole(target: Path, data: bytes | str) -> None:
    """Writes a file beside `target`, then renames it: nobody sees a part of it, and what was there stays until then.

    Args:
        target: in a folder that is there already.
        data: its content; text is stored as UTF-8.

    Raises:
        InputError: it cannot be written; nothing is left behind.
    """
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with naming(target):
            # Not `tempfile`: its files are private to the user, and this one should be as any other file of theirs.
            with open(temporary, "xb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(target: Path) -> Iterator[None]:
    """Gives an error of the system while writing the name of the file, which a full disk's, for one, does not have.

    Raises:
        InputError: in place of the system's error.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        hint = "; create the folder first" if isinstance(error, FileNotFoundError) else ""
        raise InputError(f"{str(target)!r} cannot be written: {reason}{hint}") from error
