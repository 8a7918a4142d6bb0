"""What a URL leads to: an image, fetched within limits; or a stream, left to OpenCV."""

from __future__ import annotations

from http.client import HTTPException, HTTPMessage
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from cris_edge.errors import ImageError

MAX_BYTES = 64 << 20
TIMEOUT = 10.0  # seconds, of each wait for the server
_REDIRECTS = 3
_STREAMS = ("multipart/", "video/", "application/vnd.apple.mpegurl", "application/x-mpegurl")


class _Redirects(HTTPRedirectHandler):
    max_redirections = _REDIRECTS

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise ImageError(f"{req.full_url} redirects to {newurl!r}; expected an address of the web.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, *, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT) -> bytes | None:
    """The bytes of the image at an address; None where it leads to a video or a stream.

    Args:
        url: ``http://`` or ``https://``.
        max_bytes: Most bytes that are read.
        timeout: Seconds that the server may be silent.

    Raises:
        ImageError: Nothing can be fetched, or more than `max_bytes`.
    """
    request = Request(url, headers={"User-Agent": "cris-edge"})
    too_large = f"{url} has more than {max_bytes:,} bytes; download it and make it smaller."
    try:
        with build_opener(_Redirects).open(request, timeout=timeout) as answer:
            kind = answer.headers.get_content_type()
            if kind.startswith(_STREAMS):
                return None
            declared = answer.headers.get("Content-Length", "")
            if declared.isdecimal() and int(declared) > max_bytes:
                raise ImageError(too_large)
            data: bytes = answer.read(max_bytes + 1)
    except ImageError:
        raise
    except HTTPError as error:
        with error:
            raise ImageError(f"{url} cannot be fetched: the server answered {error.code} {error.reason}.") from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error) or error
        raise ImageError(f"{url} cannot be fetched: {reason}.") from error
    if len(data) > max_bytes:
        raise ImageError(too_large)
    if declared.isdecimal() and len(data) < int(declared):
        raise ImageError(f"{url} ended after {len(data):,} of {int(declared):,} bytes; try again.")
    return data
