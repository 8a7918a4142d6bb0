"""The model folder: three graphs per runtime, a tokenizer, golden outputs, and a manifest that vouches for them all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cris_edge.errors import BundleError, OptionError
from cris_edge.machine import chosen_cache
from cris_edge.manifest import FORMAT, GRAPHS, FileRecord, GraphSpec, Manifest, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cris_edge.tokenizer import Tokenizer

__all__ = [
    "FORMAT",
    "GRAPHS",
    "Bundle",
    "BundleWriter",
    "FileRecord",
    "Golden",
    "GraphSpec",
    "Manifest",
    "TensorSpec",
    "embedded",
]

MANIFEST = "manifest.json"
_CHUNK = 1 << 20

logger = logging.getLogger(__name__)


def embedded() -> Path:
    """The folder of the model that comes with the package."""
    return Path(__file__).resolve().parent / "models" / "default"


@dataclass(frozen=True)
class Golden:
    """Inputs and what PyTorch gave for them when the bundle was written.

    Attributes:
        images: (N, S, S, 3) uint8 RGB.
        tokens: (N, L) int64.
        logits: (N, 1, S/4, S/4) float32.
        prompts: The N sentences.
        own_logits: By runtime, of the same shape: what PyTorch gave where it computed as that runtime does.
        truth: (N, S, S) bool, the masks that the sentences mean; None in bundles of before.
    """

    images: NDArray[np.uint8]
    tokens: NDArray[np.int64]
    logits: NDArray[np.float32]
    prompts: tuple[str, ...]
    own_logits: Mapping[str, NDArray[np.float32]]
    truth: NDArray[np.bool_] | None


@dataclass(frozen=True, eq=False)
class Bundle:
    """A model folder that was found whole.

    Attributes:
        path: The folder, absolute.
        manifest: What it says about itself.
        digest: SHA-256 of the manifest, which holds the hash of every other file: two bundles with the same digest
            are the same model.
    """

    path: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        thorough: bool = False,
        cache_dir: str | os.PathLike[str] | None = "auto",
    ) -> Bundle:
        """Check a model folder and read its manifest.

        Every file that the manifest lists has to be there with the size and SHA-256 it had when it was written. A file
        that was hashed before and whose size, times and inode are the same since is not hashed again. Files that the
        manifest does not list are ignored.

        Args:
            path: The folder.
            thorough: Whether to hash every file again.
            cache_dir: Where to remember what was hashed: a folder, "auto" for the platform's, None for nowhere.

        Raises:
            BundleError: There is no bundle, it is of an unknown format, or a file is missing, changed or outside it.
        """
        folder = Path(path).expanduser()
        if not folder.exists():
            raise BundleError(f"There is no model folder {folder}; expected a folder with a {MANIFEST}.")
        if not folder.is_dir():
            raise BundleError(f"{folder} is a file; expected a model folder, which has a {MANIFEST}.")
        folder = folder.resolve()
        try:
            text = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise BundleError(f"{folder} is not a model folder: it has no {MANIFEST}.") from None
        except OSError as error:
            raise BundleError(f"The manifest in {folder} cannot be read: {error}.") from error
        try:
            manifest = Manifest.from_dict(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise BundleError(f"The manifest in {folder} is not JSON ({error}); export the bundle again.") from error
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from error
        bundle = cls(folder, manifest, hashlib.sha256(text).hexdigest())
        _verify_files(bundle, thorough, chosen_cache(cache_dir))
        return bundle

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise BundleError(f"The bundle {self.path} lists no file {name!r}.")
        return _inside(self.path, name)

    def graph_files(self, runtime: str) -> dict[str, Path]:
        """The file of each of the three graphs for `runtime`.

        Raises:
            OptionError: The bundle holds nothing for that runtime.
        """
        files = self.manifest.runtimes.get(runtime)
        if files is None:
            raise OptionError(
                f"The bundle {self.path} holds no graphs for the runtime {runtime!r}; "
                f"it holds them for {', '.join(self.manifest.runtimes)}."
            )
        return {graph: self.file(files[graph]) for graph in GRAPHS}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the text encoder was trained with."""
        from cris_edge.tokenizer import Tokenizer

        return Tokenizer(self.file("tokenizer.json"))

    def golden(self) -> Golden:
        """The golden inputs and outputs.

        Raises:
            BundleError: The bundle carries none, or they do not have the shapes of its graphs.
        """
        from zipfile import BadZipFile

        import numpy as np

        manifest = self.manifest
        if manifest.golden is None:
            raise BundleError(f"The bundle {self.path} carries no golden outputs; export it again to have it checked.")
        side, length = manifest.input_size, manifest.word_len
        try:
            with np.load(self.file(manifest.golden), allow_pickle=False) as arrays:
                names = arrays.files
                golden = Golden(
                    arrays["image"],
                    arrays["tokens"],
                    arrays["logits"],
                    manifest.golden_prompts,
                    {runtime: arrays[name] for runtime in manifest.runtimes if (name := f"logits_{runtime}") in names},
                    arrays["truth"] if "truth" in names else None,
                )
        except (KeyError, ValueError, EOFError, OSError, BadZipFile) as error:
            raise BundleError(f"The golden outputs of {self.path} cannot be read: {error}.") from error
        count = len(golden.images)
        logits = (count, 1, side // 4, side // 4)
        expected: list[tuple[str, NDArray[Any], tuple[int, ...], str]] = [
            ("image", golden.images, (count, side, side, 3), "uint8"),
            ("tokens", golden.tokens, (count, length), "int64"),
            ("logits", golden.logits, logits, "float32"),
        ]
        expected += [(f"logits of {name}", array, logits, "float32") for name, array in golden.own_logits.items()]
        if golden.truth is not None:
            expected.append(("truth", golden.truth, (count, side, side), "bool"))
        for name, array, shape, dtype in expected:
            if array.shape != shape or array.dtype != dtype or count == 0:
                raise BundleError(
                    f"The golden {name} of {self.path} is {array.dtype}{list(array.shape)}; expected "
                    f"{dtype}{list(shape)} and at least one."
                )
        return golden


class BundleWriter:
    """Writes a bundle that is whole or is not there.

    Files go into `path`, a temporary folder beside the target; `manifest` is set to everything that the manifest says
    but ``format`` and ``files``. When the ``with`` block ends, every file is hashed, the manifest written, the result
    opened as `Bundle.open` would, everything flushed to the disk, and the folder renamed into place. When it is left
    by an exception, the temporary folder is removed and the target is as it was::

        with BundleWriter("my-model") as writer:
            save_graphs(writer.path / "onnx")
            writer.manifest = {"name": "my-model", "input_size": 416, ...}

    Args:
        target: The folder to write.
        overwrite: Whether to replace a bundle that is there. A folder that is not a bundle is never replaced.

    Raises:
        BundleError: The target exists, or what was written is not a bundle.
    """

    def __init__(self, target: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        # Not resolved: where the target is a symbolic link, the link is what exists.
        self.target = Path(os.path.abspath(Path(target).expanduser()))
        self.manifest: Mapping[str, Any] | None = None
        self._overwrite = overwrite
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        """The temporary folder; exists inside the ``with`` block."""
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
            file.relative_to(path).as_posix(): {"sha256": _sha256(file), "size": file.stat().st_size}
            for file in sorted(path.rglob("*"))
            if file.is_file() and file != path / MANIFEST
        }
        plain = {"format": FORMAT, **self.manifest, "files": files}
        manifest = Manifest.from_dict(plain)  # the sentence of what is wrong, before anything is renamed
        for name in files:
            _inside(path, name)
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
            raise BundleError(
                f"{self.target} exists already; choose another folder, remove it, or ask to overwrite it."
            )
        if self.target.is_symlink() or not (self.target / MANIFEST).is_file():
            raise BundleError(f"{self.target} is not a bundle, so it is not overwritten; choose another folder.")

    def _beside(self, purpose: str) -> Path:
        """A new name in the target's folder, so that renaming stays within one file system."""
        return self.target.with_name(f".{self.target.name}.{purpose}-{os.urandom(4).hex()}")


def _inside(folder: Path, name: str) -> Path:
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


def _verify_files(bundle: Bundle, thorough: bool, cache: Path | None) -> None:
    """Raise `BundleError` unless every file is what it was when it was written."""
    folder = bundle.path
    memory = None if cache is None else _Memory(cache, folder, bundle.digest)
    known = memory.read() if memory is not None and not thorough else {}
    now: dict[str, list[Any]] = {}
    for name, record in bundle.manifest.files.items():
        path = _inside(folder, name)
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
            if known.get(str(path)) != now[str(path)] and _sha256(path) != record.sha256:
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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in _chunks(file.read):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(read: Any) -> Iterator[bytes]:
    while chunk := read(_CHUNK):
        yield chunk


def _flush(path: Path) -> None:
    """Have the file, or the names in the folder, on the disk before what follows is."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handles of folders to flush
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
