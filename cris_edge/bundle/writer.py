"""Atomic writing of bundles: into a temporary folder, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cris_edge.bundle.folder import MANIFEST
from cris_edge.bundle.integrity import inside
from cris_edge.bundle.manifest import FORMAT, Manifest
from cris_edge.errors import BundleError
from cris_edge.files import sha256


class BundleWriter:
    """Write a bundle atomically.

    Write files into `path`, a temporary folder beside the target, and set `manifest` to all its entries but ``format``
    and ``files``. At the end of the ``with`` block every file is hashed, the manifest is checked and written, all is
    flushed to disk, and the folder is renamed to the target. After an exception the temporary folder is removed and the
    target is unchanged::

        with BundleWriter("my-model") as writer:
            save_graphs(writer.path / "onnx")
            writer.manifest = {"name": "my-model", "input_size": 416, ...}

    Args:
        target: The folder to write.
        overwrite: Whether to replace an existing bundle. A folder that is not a bundle is never replaced.

    Raises:
        BundleError: The target exists, or the files and the manifest do not form a bundle.
    """

    def __init__(self, target: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        # Not resolved, so that a symbolic link at the target is noticed.
        self.target = Path(os.path.abspath(Path(target).expanduser()))
        self.manifest: Mapping[str, Any] | None = None
        self._overwrite = overwrite
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        """The temporary folder, inside the ``with`` block."""
        assert self._path is not None, "BundleWriter is used in a with statement"
        return self._path

    def __enter__(self) -> BundleWriter:
        self._check_target()
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            path = self._beside("partial")
            path.mkdir()
        except OSError as error:
            raise BundleError(f"The folder {self.target.parent} cannot be written: {error}.") from error
        self._path = path
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        path = self.path
        try:
            if kind is None:
                self._finish(path)
        except OSError as failure:
            raise BundleError(f"The bundle {self.target} cannot be written: {failure}.") from failure
        finally:
            self._path = None
            shutil.rmtree(path, ignore_errors=True)  # gone already where it was renamed

    def _finish(self, path: Path) -> None:
        assert self.manifest is not None, "BundleWriter.manifest is set before the with block ends"
        files = {
            file.relative_to(path).as_posix(): {"sha256": sha256(file), "size": file.stat().st_size}
            for file in sorted(path.rglob("*"))
            if file.is_file() and file != path / MANIFEST
        }
        plain = {"format": FORMAT, **self.manifest, "files": files}
        manifest = Manifest.from_dict(plain)  # raises on errors, before anything is renamed
        for name in files:
            inside(path, name)
        text = json.dumps(plain | manifest.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        (path / MANIFEST).write_text(text + "\n", encoding="utf-8")
        for entry in path.rglob("*"):
            _flush(entry)
        _flush(path)
        self._check_target()
        replaced = None
        if self.target.exists():
            replaced = self._beside("replaced")
            self.target.rename(replaced)
        try:
            path.rename(self.target)
        except OSError:
            if replaced is not None:
                replaced.rename(self.target)
            raise
        _flush(self.target.parent)
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)

    def _check_target(self) -> None:
        if not os.path.lexists(self.target):
            return
        if not self._overwrite:
            raise BundleError(f"{self.target} already exists; choose another folder, remove it, or allow overwriting.")
        if self.target.is_symlink() or not (self.target / MANIFEST).is_file():
            raise BundleError(f"{self.target} is not a bundle, so it is not overwritten; choose another folder.")

    def _beside(self, purpose: str) -> Path:
        """Return a new name in the target's folder, so that renaming stays within one file system."""
        return self.target.with_name(f".{self.target.name}.{purpose}-{os.urandom(4).hex()}")


def _flush(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot flush folders
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
