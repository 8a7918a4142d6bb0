"""Opening a bundle: a folder with three graphs per runtime, a tokenizer, golden outputs and a manifest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cris_edge.bundle.integrity import inside, read_verified, unchanged, verify_files
from cris_edge.bundle.manifest import GRAPHS, Manifest
from cris_edge.device.caches import chosen_cache
from cris_edge.errors import BundleError, OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cris_edge.tokenizer import Tokenizer

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Golden:
    """Golden inputs, and PyTorch's outputs for them at export.

    Attributes:
        images: (N, S, S, 3) uint8 RGB.
        tokens: (N, L) int64.
        logits: (N, 1, S/4, S/4) float32.
        prompts: The N prompts.
        own_logits: By runtime, of the same shape: PyTorch's logits when it emulates that runtime's arithmetic.
        truth: (N, S, S) bool, the ground-truth masks; None in older bundles.
    """

    images: NDArray[np.uint8]
    tokens: NDArray[np.int64]
    logits: NDArray[np.float32]
    prompts: tuple[str, ...]
    own_logits: Mapping[str, NDArray[np.float32]]
    truth: NDArray[np.bool_] | None


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified bundle.

    Attributes:
        path: The folder, absolute.
        manifest: The parsed manifest.
        digest: SHA-256 of the manifest, which lists the hash of every other file, so that it identifies the model.
        verified: By path, the identity of each file when it was verified, and its SHA-256.
        strict: Whether files are read once, and the bytes that were hashed are those that are used.
    """

    path: Path
    manifest: Manifest
    digest: str
    verified: Mapping[str, list[Any]] = field(default_factory=dict, repr=False)
    strict: bool = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        thorough: bool = False,
        strict: bool = False,
        cache_dir: str | os.PathLike[str] | None = "auto",
    ) -> Bundle:
        """Read a bundle's manifest and verify its files.

        Every listed file must have the size and SHA-256 that the manifest states. A file hashed before is not hashed
        again while its size, times and inode are unchanged. Files that are not listed are ignored.

        Args:
            path: The folder.
            thorough: Whether to hash every file again.
            strict: Whether to hash every file again, and to give a runtime the bytes that were hashed instead of a path
                that it opens itself. Takes more memory while the graphs compile, and compiled graphs are not cached.
            cache_dir: Where to record hashed files: a folder, "auto" for the platform's cache folder, None to disable.

        Raises:
            BundleError: There is no bundle, its format is unsupported, or a file is missing, modified or outside it.
        """
        try:
            folder = Path(path).expanduser()
        except RuntimeError:
            raise BundleError(f"There is no bundle {os.fspath(path)}: the home folder is unknown; set HOME.") from None
        if not folder.exists():
            raise BundleError(f"There is no bundle {folder}; expected a folder with a {MANIFEST}.")
        if not folder.is_dir():
            raise BundleError(f"{folder} is a file; expected a bundle, a folder with a {MANIFEST}.")
        folder = folder.resolve()
        try:
            text = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}.") from None
        except OSError as error:
            raise BundleError(f"The manifest in {folder} cannot be read: {error}.") from error
        try:
            manifest = Manifest.from_dict(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise BundleError(f"The manifest in {folder} is not JSON ({error}); export the bundle again.") from error
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from error
        digest = hashlib.sha256(text).hexdigest()
        cache = chosen_cache(cache_dir)
        verified = verify_files(folder, manifest, digest, thorough=thorough or strict, cache=cache)
        return cls(folder, manifest, digest, verified, strict)

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise BundleError(f"The manifest of {self.path} lists no file {name!r}.")
        return inside(self.path, name)

    def read(self, name: str) -> bytes:
        """Return the bytes of a file that the manifest lists, read once.

        Raises:
            BundleError: It cannot be read, or does not have the SHA-256 that the manifest states.
        """
        return read_verified(self.file(name), self.manifest.files[name])

    def read_path(self, path: Path) -> bytes:
        """Do as `read`, by the file's path."""
        return self.read(path.relative_to(self.path).as_posix())

    def weights(self, graph: Path) -> Path | None:
        """Return the file of weights beside an OpenVINO graph; None for other graphs."""
        weights = graph.with_suffix(".bin")
        listed = weights.relative_to(self.path).as_posix() in self.manifest.files
        return weights if graph.suffix == ".xml" and listed else None

    def unchanged(self, files: Iterable[Path]) -> AbstractContextManager[None]:
        """Return a context manager that raises `BundleError` if files change while its block opens them."""
        return unchanged({file: self.verified[str(file)] for file in files if str(file) in self.verified})

    def graph_files(self, runtime: str) -> dict[str, Path]:
        """Return the file of each of the three graphs for `runtime`.

        Raises:
            OptionError: The bundle does not support the runtime.
        """
        files = self.manifest.runtimes.get(runtime)
        if files is None:
            raise OptionError(
                f"The bundle {self.path} has no graphs for the runtime {runtime!r}. "
                f"Available: {', '.join(self.manifest.runtimes)}."
            )
        return {graph: self.file(files[graph]) for graph in GRAPHS}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text encoder."""
        from cris_edge.tokenizer import Tokenizer

        return Tokenizer(self.file("tokenizer.json"))

    def golden(self) -> Golden:
        """Load the golden inputs and outputs.

        Raises:
            BundleError: The bundle has none, or their shapes do not match its graphs.
        """
        from zipfile import BadZipFile

        import numpy as np

        manifest = self.manifest
        if manifest.golden is None:
            raise BundleError(f"The bundle {self.path} has no golden outputs; export it again to verify it.")
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
                    f"{dtype}{list(shape)} with at least one entry."
                )
        return golden
