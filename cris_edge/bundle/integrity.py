"""Integrity: every file of a bundle has the size and SHA-256 that the manifest lists, and lies inside the folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from cris_edge.bundle.manifest import FileRecord
from cris_edge.errors import BundleError

_CHUNK = 1 << 20

logger = logging.getLogger(__name__)


def inside(folder: Path, name: str) -> Path:
    """The path of `name` in `folder`; raises `BundleError` for one that is elsewhere, by name or by symbolic link."""
    parts = PurePosixPath(name).parts
    # A backslash or a colon would be harmless here and lead elsewhere on Windows.
    if not parts or name != "/".join(parts) or set(parts) & {"..", "."} or set(name) & set("\\:\0") or name[0] == "/":
        raise BundleError(
            f"The manifest in {folder} lists the path {name!r}; expected one below the folder, with forward slashes."
        )
    path = folder.joinpath(*parts)
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to itself
        inside = False
    if not inside:
        raise BundleError(
            f"{path} is a symbolic link out of the model folder; put a copy of the file there instead of the link."
        )
    return path


def verify_files(
    folder: Path, files: Mapping[str, FileRecord], digest: str, *, thorough: bool, cache: Path | None
) -> None:
    """Check that every file of a bundle is what it was when the bundle was written.

    Args:
        folder: The bundle.
        files: What its manifest lists.
        digest: SHA-256 of the manifest.
        thorough: Whether to hash files again that were hashed before and have not changed since.
        cache: Folder in which to record what was hashed; None for nowhere.

    Raises:
        BundleError: A file is missing, changed, unreadable or outside the folder.
    """
    memory = None if cache is None else _Memory(cache, folder, digest)
    known = memory.read() if memory is not None and not thorough else {}
    now: dict[str, list[Any]] = {}
    for name, record in files.items():
        path = inside(folder, name)
        try:
            if not path.is_file():
                what = "has something else than a file in its place" if path.exists() else "is missing"
                raise BundleError(f"The bundle {folder} is incomplete: {name} {what}; copy or export it again.")
            stat = path.stat()
            if stat.st_size != record.size:
                raise BundleError(
                    f"{path} has {stat.st_size} bytes and had {record.size} when the bundle was written; "
                    f"copy or export the bundle again."
                )
            now[str(path)] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, record.sha256]
            if known.get(str(path)) != now[str(path)] and sha256(path) != record.sha256:
                raise BundleError(
                    f"{path} was changed since the bundle was written (its SHA-256 differs from the manifest's); "
                    f"copy or export the bundle again."
                )
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error}.") from error
    if memory is not None and known != now:
        memory.write(now)


class _Memory:
    """What was hashed before, one file per model folder in the cache folder.

    Its loss costs a second of hashing, so everything here fails softly. Whoever can write there can already write
    this user's other files: it guards against damage and exchange of files, as the hashes do, not against the user.
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
        temporary = self.path.with_name(f"{self.path.name}.{os.urandom(4).hex()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(files), encoding="utf-8")
            temporary.replace(self.path)
        except OSError as error:
            logger.info("hashes are computed again at each start: %s", error)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in _chunks(file.read):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(read: Any) -> Iterator[bytes]:
    while chunk := read(_CHUNK):
        yield chunk
