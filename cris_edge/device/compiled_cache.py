"""Cache of compiled graphs: entries are named by their digest, renamed into place, checked before use, and pruned."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cris_edge.errors import InputError
from cris_edge.files import identity, sha256, write_whole

MAX_BYTES = 2 << 30
MAX_AGE = 90 * 86400.0  # seconds since the last use
_DAY = 86400.0
_LOCK_WAIT = 5.0  # seconds; the lock is held for renames only
_CHECKED = ".checked"
_STAGING = ".staging-"
_ENTRY = re.compile(r"(?P<name>.+)~(?P<digest>[0-9a-f]{32})(?P<suffix>\.\w+)?")
_FORMER = re.compile(r"\d+\.blob")  # entries of versions that let OpenVINO write into the folder

logger = logging.getLogger(__name__)


class CompiledCache:
    """The compiled graphs of one bundle, in one folder.

    An entry is a file ``NAME~DIGEST.SUFFIX``. It is whole from its first moment: written elsewhere, then renamed.
    Processes may share the folder. A problem of the cache costs a compilation and is logged, never raised.

    Args:
        folder: The folder, which exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str) -> Path | None:
        """Return the entry of a file name; None if there is none. A damaged one is removed."""
        wanted = _parts(name)
        for path, match in self._entries():
            if (match["name"], match["suffix"] or "") == wanted and self._intact(path, match["digest"], {}):
                return path
        return None

    def publish(self, files: Iterable[tuple[Path, str]], replaced: str = "") -> None:
        """Move new files into the cache.

        Args:
            files: Each file, on the same file system, with the name that `find` will take.
            replaced: Also remove the other entries whose names begin with this.
        """
        with _logged(), _locked(self.folder):
            names, kept = set(), set()
            for source, name in files:
                stem, suffix = _parts(name)
                target = self.folder / f"{stem}~{sha256(source)[:32]}{suffix}"
                os.replace(source, target)
                names.add((stem, suffix))
                kept.add(target)
            for path, match in self._entries():
                same = (match["name"], match["suffix"] or "") in names or (replaced and path.name.startswith(replaced))
                if same and path not in kept:
                    path.unlink(missing_ok=True)
            if self.folder.parent.name == "compiled":
                prune(self.folder.parent, kept=kept)

    @contextlib.contextmanager
    def staging(self, prefix: str) -> Iterator[Path | None]:
        """Give a runtime that manages its own cache folder a private one, with the entries of `prefix`.

        What the runtime writes there is published at the end of the ``with`` block, in place of those entries. None if
        the folder cannot be written.
        """
        prefix = f"{prefix}~"
        try:
            staging = self.folder / f"{_STAGING}{secrets.token_hex(8)}"
            staging.mkdir(mode=0o700)
        except OSError as error:
            logger.warning("compiled graphs cannot be cached, so each start takes longer: %s", error)
            yield None
            return
        try:
            self._fill(staging, prefix)
            yield staging
            with contextlib.suppress(OSError):
                new = [path for path in staging.iterdir() if path.is_file() and not _is_link(path)]
                if new:
                    self.publish(((path, prefix + path.name) for path in new), replaced=prefix)
        finally:
            _remove(staging)

    def _fill(self, staging: Path, prefix: str) -> None:
        known = self._read_checked()
        checked = dict(known)
        for path, match in self._entries():
            if path.name.startswith(prefix) and self._intact(path, match["digest"], checked):
                with contextlib.suppress(OSError):  # removed meanwhile
                    _link(path, staging / f"{match['name'].removeprefix(prefix)}{match['suffix'] or ''}")
        if checked != known:
            self._write_checked(checked)

    def _entries(self) -> list[tuple[Path, re.Match[str]]]:
        try:
            return [(path, match) for path in sorted(self.folder.iterdir()) if (match := _ENTRY.fullmatch(path.name))]
        except OSError:
            return []

    def _intact(self, path: Path, digest: str, checked: dict[str, list[int]]) -> bool:
        """Whether a file has its digest; one in `checked` that is unchanged since is not hashed again."""
        try:
            found = identity(path.stat())
            if checked.get(path.name) != found and sha256(path)[:32] != digest:
                logger.warning("the compiled graph %s is damaged; it is removed and compiled again", path)
                checked.pop(path.name, None)
                path.unlink()
                return False
            if abs(time.time() - path.stat().st_mtime) > _DAY:  # its time of modification is that of its last use
                os.utime(path)
                found = identity(path.stat())
        except OSError:
            return False
        checked[path.name] = found
        return True

    def _read_checked(self) -> dict[str, list[int]]:
        try:
            known = json.loads((self.folder / _CHECKED).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write_checked(self, checked: dict[str, list[int]]) -> None:
        there = {path.name for path, _ in self._entries()}
        with contextlib.suppress(InputError):
            entries = {name: found for name, found in checked.items() if name in there}
            write_whole(self.folder / _CHECKED, json.dumps(entries))


@dataclass(frozen=True)
class CacheReport:
    """What a cache folder holds.

    Attributes:
        folder: The folder.
        graphs: Number of compiled graphs.
        graph_bytes: Their size.
        models: Number of bundles that they belong to.
        records: Number of records of verified files.
        other_bytes: Size of everything else in the folder, such as downloads.
    """

    folder: Path
    graphs: int
    graph_bytes: int
    models: int
    records: int
    other_bytes: int


def report(root: Path) -> CacheReport:
    """Describe a cache folder, which need not exist."""
    graphs = _compiled(root / "compiled")
    records = _records(root)
    ours = {path for path, _ in graphs} | set(records)
    other = sum(_size(path) for path in root.rglob("*") if path not in ours)
    size = sum(stat.st_size for _, stat in graphs)
    return CacheReport(root, len(graphs), size, len({path.parent for path, _ in graphs}), len(records), other)


def clear(root: Path) -> int:
    """Remove the compiled graphs and the records of verified files of a cache folder; return the bytes freed.

    Files of other kinds are left. Running processes keep what they have opened.
    """
    freed = 0
    for path in [*(path for path, _ in _compiled(root / "compiled")), *_records(root)]:
        size = _size(path)
        with contextlib.suppress(OSError):
            path.unlink()
            freed += size
    for folder in _folders(root / "compiled"):
        with contextlib.suppress(OSError):
            (folder / _CHECKED).unlink(missing_ok=True)
            folder.rmdir()  # fails if a process is writing there
    return freed


def prune(root: Path, *, max_bytes: int = MAX_BYTES, max_age: float = MAX_AGE, kept: Iterable[Path] = ()) -> list[Path]:
    """Remove compiled graphs that were not used for long, then the longest unused until the rest fits.

    Args:
        root: The folder "compiled" of a cache folder, with one folder per bundle.
        max_bytes: Size of all that may remain.
        max_age: In seconds.
        kept: Entries that are never removed.

    Returns:
        The removed files.
    """
    now, removed = time.time(), []
    found = sorted(_compiled(root), key=lambda entry: entry[1].st_mtime)
    total = sum(stat.st_size for _, stat in found)
    spared = set(kept)
    for path, stat in found:
        if path not in spared and (now - stat.st_mtime > max_age or total > max_bytes):
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(path)
                total -= stat.st_size
    for folder in _folders(root):
        for left in folder.glob(f"{_STAGING}*"):  # of a killed process
            with contextlib.suppress(OSError):
                if now - left.stat().st_mtime > _DAY:
                    _remove(left)
    return removed


def _compiled(root: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for folder in _folders(root):
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                if (_ENTRY.fullmatch(path.name) or _FORMER.fullmatch(path.name)) and not path.is_symlink():
                    with contextlib.suppress(OSError):
                        found.append((path, path.stat()))
    return found


def _folders(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


def _records(root: Path) -> list[Path]:
    return [path for path in (root / "verified").glob("*.json") if re.fullmatch(r"[0-9a-f]{32}\.json", path.name)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _remove(staging: Path) -> None:
    """Remove a folder of files; not by `shutil`, whose import takes longer than the cache."""
    with contextlib.suppress(OSError):
        for path in staging.iterdir():
            path.unlink(missing_ok=True)
        staging.rmdir()


def _parts(name: str) -> tuple[str, str]:
    path = Path(name)
    return path.stem, path.suffix


def _link(target: Path, link: Path) -> None:
    # Windows has symbolic links for privileged users only. Elsewhere a hard link would change the time in the identity.
    if sys.platform == "win32":
        os.link(target, link)
    else:
        link.symlink_to(target)


def _is_link(path: Path) -> bool:
    return path.stat().st_nlink > 1 if sys.platform == "win32" else path.is_symlink()


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        logger.info("compiled graphs were not cached: %s", error)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; `OSError` if another process holds it for long.

    Windows cannot lock a folder; there two processes that publish at once may each remove the other's entry.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _LOCK_WAIT
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)  # which also unlocks
