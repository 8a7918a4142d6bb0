"""Verification of a bundle's files: size, SHA-256, and location inside the folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cris_edge.bundle.manifest import FileRecord
from cris_edge.errors import BundleError, InputError
from cris_edge.files import write_whole

_CHUNK = 1 << 20

logger = logging.getLogger(__name__)


def inside(folder: Path, name: str) -> Path:
    """Return the path of `name` in `folder`; raise `BundleError` if its name or a symbolic link leads outside."""
    parts = PurePosixPath(name).parts
    # A backslash or a colon is harmless on POSIX but leads elsewhere on Windows.
    if not parts or name != "/".join(parts) or set(parts) & {"..", "."} or set(name) & set("\\:\0") or name[0] == "/":
        raise BundleError(
            f"The manifest in {folder} lists the path {name!r}; expected one inside the folder, with forward slashes."
        )
    path = folder.joinpath(*parts)
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to itself
        inside = False
    if not inside:
        raise BundleError(f"{path} is a symbolic link to outside the bundle; replace it with a copy of the file.")
    return path


def verify_files(
    folder: Path, files: Mapping[str, FileRecord], digest: str, *, thorough: bool, cache: Path | None
) -> None:
    """Verify that no file of a bundle has changed since it was written.

    Args:
        folder: The bundle.
        files: The manifest's records.
        digest: SHA-256 of the manifest.
        thorough: Whether to hash files again that are unchanged since they were last hashed.
        cache: Folder in which to record hashed files; None to disable.

    Raises:
        BundleError: A file is missing, modified, unreadable or outside the folder.
    """
    record_file = None if cache is None else _VerifiedFiles(cache, folder, digest)
    known = record_file.read() if record_file is not None and not thorough else {}
    now: dict[str, list[Any]] = {}
    for name, record in files.items():
        path = inside(folder, name)
        try:
            if not path.is_file():
                what = "is not a regular file" if path.exists() else "is missing"
                raise BundleError(f"The bundle {folder} is incomplete: {name} {what}; copy or export it again.")
            stat = path.stat()
            if stat.st_size != record.size:
                raise BundleError(
                    f"{path} has {stat.st_size} bytes; the manifest states {record.size}. "
                    f"Copy or export the bundle again."
                )
            now[str(path)] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, record.sha256]
            if known.get(str(path)) != now[str(path)] and sha256(path) != record.sha256:
                raise BundleError(
                    f"{path} was modified after the bundle was written: its SHA-256 differs from the manifest's. "
                    f"Copy or export the bundle again."
                )
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error}.") from error
    if record_file is not None and known != now:
        record_file.write(now)


class _VerifiedFiles:
    """Record of hashed files, one per bundle, in the cache folder.

    Losing it costs a second of hashing, so its errors are ignored. Like the hashes, it protects against damaged and
    swapped files, not against an attacker who can write this user's files.
    """

    def __init__(self, cache: Path, folder: Path, digest: str) -> None:
        name = hashlib.sha256(f"{folder}\n{digest}".encode(errors="surrogateescape")).hexdigest()[:32]
        self.path = cache / "verified" / f"{name}.json"

    def read(self) -> dict[str, Any]:
        try:
            known = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return known if isinstance(known, dict) else {}

    def write(self, files: Mapping[str, list[Any]]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(files))
        except (OSError, InputError) as error:
            logger.info("cannot record verified files, so they are hashed at each start: %s", error)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
