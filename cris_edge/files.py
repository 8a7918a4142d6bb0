"""Atomic file writes, and digests and identities of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from cris_edge.errors import InputError

_CHUNK = 1 << 20


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


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def identity(stat: os.stat_result) -> list[int]:
    """Return what changes when a file is written or replaced: device, inode, size, and both times in nanoseconds."""
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
