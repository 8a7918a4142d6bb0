"""Downloads of checkpoints by URL or hub name: cached, resumed and checked.

``owner/name/path/to/file`` is a file of a model repository on the Hugging Face hub, ``@REVISION`` after the name picks
a revision. ``#sha256=HEX`` at the end of either states the expected checksum; the hub sends one for large files.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cris_edge.device.caches import cache_folder
from cris_edge.errors import CheckpointError, OptionError
from training.checkpoint import sha256

HUB = "https://huggingface.co"
ATTEMPTS = 3  # connections per download; each continues where the previous one stopped
TIMEOUT = 30.0  # seconds without data
_BLOCK = 1 << 20
_SUFFIXES = (".pth", ".pt", ".safetensors")
_HUB_NAME = re.compile(r"(?P<owner>[\w.-]+)/(?P<name>[\w.-]+?)(?:@(?P<revision>[\w./-]+?))?/(?P<file>[\w./ -]+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch(source: str | os.PathLike[str], *, folder: Path | None = None) -> Path:
    """Return the local path of a checkpoint; a URL or hub name is downloaded first.

    A downloaded file is kept in `folder` and is not downloaded again. An interrupted download continues at the next
    call. A path that exists is returned as it is.

    Args:
        source: A path, an ``http(s)`` URL, or ``owner/name[@revision]/file``.
        folder: The cache; ``downloads`` in the platform's cache folder by default.

    Raises:
        OptionError: `source` is none of these.
        CheckpointError: The download failed, or its checksum is not the expected one.
    """
    text = os.fspath(source)
    if Path(text).exists() or not _is_remote(text):
        return Path(text)
    address, _, fragment = text.partition("#")
    expected = _expected(fragment, text)
    url = _url(address)
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or "checkpoint"
    target = (folder or _downloads()) / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if target.is_file():
        _require_checksum(target, expected, url)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        announced = _download(url, part)
        _require_checksum(part, expected or announced, url)
        os.replace(part, target)
    except OSError as error:
        raise CheckpointError(f"{url} could not be saved as {target}: {error.strerror or error}.") from error
    return target


def _downloads() -> Path:
    cache = cache_folder()
    if cache is None:
        raise OptionError("The home folder is unknown, so there is no folder for downloads; set HOME.")
    return cache / "downloads"


def _is_remote(text: str) -> bool:
    if re.match(r"https?://", text):
        return True
    if "://" in text:
        raise OptionError(f"The checkpoint {text!r} has an unknown scheme; expected a path, http:// or https://.")
    named = _HUB_NAME.fullmatch(text.partition("#")[0])
    # A path that does not exist is a mistyped path, unless it has the form of a file in a hub repository.
    return bool(named and named["file"].endswith(_SUFFIXES) and not text.startswith((".", "/", "~")))


def _url(address: str) -> str:
    named = _HUB_NAME.fullmatch(address)
    if re.match(r"https?://", address) or named is None:
        return address
    hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    revision = urllib.parse.quote(named["revision"] or "main", safe="")
    return f"{hub}/{named['owner']}/{named['name']}/resolve/{revision}/{urllib.parse.quote(named['file'])}"


def _expected(fragment: str, text: str) -> str | None:
    if not fragment:
        return None
    name, _, value = fragment.partition("=")
    if name != "sha256" or not _SHA256.fullmatch(value.lower()):
        raise OptionError(f"The checkpoint {text!r} ends in #{fragment}; expected #sha256= and 64 hexadecimal digits.")
    return value.lower()


def _download(url: str, part: Path) -> str | None:
    """Complete the file `part`; return the SHA-256 stated by the server, or None."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _continue(url, part)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and part.exists():  # the part is longer than the file: it is of another version
                part.unlink()
                reason = "the file on the server has changed"
            elif error.code < 500:
                raise CheckpointError(f"{url} cannot be downloaded: HTTP {error.code} {error.reason}.") from error
            else:
                reason = f"HTTP {error.code} {error.reason}"
            cause: Exception = error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason, cause = str(getattr(error, "reason", error)) or type(error).__name__, error
        if attempt == ATTEMPTS:
            raise CheckpointError(
                f"{url} cannot be downloaded: {reason}. Run the command again to continue the download."
            ) from cause
    raise AssertionError("the last attempt returns or raises")


def _continue(url: str, part: Path) -> str | None:
    etag_file = part.with_name(f"{part.name}.etag")
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "cris-edge", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        if etag_file.exists():
            request.add_header("If-Range", etag_file.read_text(encoding="utf-8"))
    with _open(request) as (response, announced):
        continued = response.status == 206
        etag = response.headers.get("ETag", "")
        if etag and not etag.startswith("W/"):  # a weak one does not promise the same bytes
            etag_file.write_text(etag, encoding="utf-8")
        else:
            etag_file.unlink(missing_ok=True)
        length = response.headers.get("Content-Length")
        with part.open("ab" if continued else "wb") as file:
            shutil.copyfileobj(response, file, _BLOCK)
            written = file.tell()
        expected = None if length is None else int(length) + (start if continued else 0)
        if expected is not None and written < expected:
            raise http.client.IncompleteRead(b"", expected - written)
    etag_file.unlink(missing_ok=True)
    return announced


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps the checksum that the hub states in the first response."""

    announced: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.announced = self.announced or _stated(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextlib.contextmanager
def _open(request: urllib.request.Request) -> Iterator[tuple[Any, str | None]]:
    """Open a URL; yield the response and the checksum stated by its server."""
    redirects = _Redirects()
    with urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT) as response:
        yield response, redirects.announced or _stated(response.headers)


def _stated(headers: Any) -> str | None:
    """Return the SHA-256 in the hub's X-Linked-ETag, which files of Git LFS have."""
    value = str(headers.get("X-Linked-ETag", "")).strip('"').lower()
    return value if _SHA256.fullmatch(value) else None


def _require_checksum(path: Path, expected: str | None, url: str) -> None:
    if expected is None or (found := sha256(path)) == expected:
        return
    path.unlink()
    raise CheckpointError(
        f"{url} has the SHA-256 {found}, expected {expected}; the download was deleted. Check the address and the "
        "checksum."
    )
