"""Verification of a bundle's files: size, SHA-256, and location inside the folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cris_edge.bundle.graph_check import check_onnx, graph_uses
from cris_edge.bundle.manifest import FileRecord, Manifest
from cris_edge.errors import BundleError, InputError
from cris_edge.files import identity, sha256, write_whole

logger = logging.getLogger(__name__)


def inside(folder: Path, name: str) -> Path:
    """Return the path of `name` in `folder`; raise `BundleError` if its name or a symbolic link leads outside.

    In the cache of the Hugging Face hub, a folder ``models--…/snapshots/REVISION`` holds links to
    ``models--…/blobs``; such links are accepted.
    """
    parts = PurePosixPath(name).parts
    # A backslash or a colon is harmless on POSIX but leads elsewhere on Windows.
    if not parts or name != "/".join(parts) or set(parts) & {"..", "."} or set(name) & set("\\:\0") or name[0] == "/":
        raise BundleError(
            f"The manifest in {folder} lists the path {name!r}; expected one inside the folder, with forward slashes."
        )
    path = folder.joinpath(*parts)
    try:
        target, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError):  # a link to itself
        target, root = Path(), folder
    if not target.is_relative_to(root) and target.parent != _hub_blobs(root):
        raise BundleError(f"{path} is a symbolic link to outside the bundle; replace it with a copy of the file.")
    return path


def _hub_blobs(folder: Path) -> Path | None:
    """Return the folder of the files of a snapshot in the hub's cache; None for other folders."""
    repository = folder.parent.parent
    if folder.parent.name == "snapshots" and repository.name.startswith("models--"):
        return repository / "blobs"
    return None


def verify_files(
    folder: Path, manifest: Manifest, digest: str, *, thorough: bool, cache: Path | None
) -> dict[str, list[Any]]:
    """Verify that no file of a bundle has changed since it was written, and check its ONNX files.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        digest: SHA-256 of the manifest.
        thorough: Whether to hash and check files again that are unchanged since they were last hashed.
        cache: Folder in which to record hashed files; None to disable.

    Returns:
        By path, the identity of each file and its SHA-256.

    Raises:
        BundleError: A file is missing, modified, unreadable or outside the folder, or an ONNX file is refused by
            `check_onnx`.
    """
    record_file = None if cache is None else _VerifiedFiles(cache, folder, digest)
    known = record_file.read() if record_file is not None and not thorough else {}
    now: dict[str, list[Any]] = {}
    uses = graph_uses(manifest)
    for name, record in manifest.files.items():
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
            now[str(path)] = [*identity(stat), record.sha256]
            if known.get(str(path)) != now[str(path)]:
                if sha256(path) != record.sha256:
                    raise _modified(path)
                if name in uses:
                    check_onnx(path, name, manifest, uses[name])
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error}.") from error
    if record_file is not None and known != now:
        record_file.write(now)
    return now


def read_verified(path: Path, record: FileRecord) -> bytes:
    """Read a file once and return its bytes, which have the SHA-256 of the manifest.

    Raises:
        BundleError: It cannot be read, or was modified.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}.") from error
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise _modified(path)
    return data


@contextlib.contextmanager
def unchanged(files: Mapping[Path, list[Any]]) -> Iterator[None]:
    """Verify files again, before and after the ``with`` block that opens them, if they are no longer the same.

    Args:
        files: The identity and the SHA-256 of each when it was verified.

    Raises:
        BundleError: A file was modified or replaced meanwhile.
    """
    with contextlib.ExitStack() as stack:
        opened: dict[Path, tuple[Any, list[int]]] = {}
        for path, (*verified, digest) in files.items():
            try:
                file = stack.enter_context(path.open("rb"))
                found = identity(os.fstat(file.fileno()))
            except OSError as error:
                raise BundleError(f"{path} cannot be read: {error}.") from error
            if found != verified and sha256(path) != digest:
                raise _modified(path)
            opened[path] = (file, found)
        yield
        for path, (file, before) in opened.items():
            try:
                # What was open is unchanged, and it is still what the path leads to.
                same = identity(os.fstat(file.fileno())) == before == identity(path.stat())
                if not same and sha256(path) != files[path][-1]:
                    raise _modified(path)
            except OSError as error:
                raise BundleError(f"{path} cannot be read: {error}.") from error


def _modified(path: Path) -> BundleError:
    return BundleError(
        f"{path} was modified after the bundle was written: its SHA-256 differs from the manifest's. "
        f"Copy or export the bundle again."
    )


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
