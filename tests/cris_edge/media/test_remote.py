from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cris_edge.errors import ImageError
from cris_edge.media import remote
from cris_edge.media.remote import fetch

BODY = b"\xff\xd8" + bytes(998)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name == "image":
            self._send(200, {"Content-Type": "image/jpeg", "Content-Length": "1000"}, BODY)
        elif name == "stream":
            self._send(200, {"Content-Type": "multipart/x-mixed-replace; boundary=x"}, b"")
        elif name == "short":
            self._send(200, {"Content-Type": "image/jpeg", "Content-Length": "2000"}, BODY)
        elif name == "unknown-length":
            self._send(200, {"Content-Type": "image/jpeg"}, BODY * 5)
        elif name == "once":
            self._send(302, {"Location": "/image", "Content-Length": "0"}, b"")
        elif name == "loop":
            self._send(302, {"Location": "/loop?", "Content-Length": "0"}, b"")
        elif name.startswith("hop"):
            self._send(302, {"Location": f"/hop{int(name[3:]) + 1}", "Content-Length": "0"}, b"")
        elif name == "file":
            self._send(302, {"Location": "file:///etc/passwd", "Content-Length": "0"}, b"")
        elif name == "ftp":
            self._send(302, {"Location": "ftp://127.0.0.1/a", "Content-Length": "0"}, b"")
        elif name == "silent":
            self.server.released.wait(5)  # type: ignore[attr-defined]
        else:
            self._send(404, {"Content-Length": "0"}, b"")

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.released = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_image_is_fetched(url: str) -> None:
    assert fetch(f"{url}/image") == BODY
    assert fetch(f"{url}/once") == BODY


def test_a_stream_is_left_alone(url: str) -> None:
    assert fetch(f"{url}/stream") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "404"),
        ("short", "ended after 1,000 of 2,000 bytes"),
        ("loop", "cannot be fetched"),
        ("hop0", "cannot be fetched"),
        ("file", "not allowed"),
        ("ftp", "expected an address of the web"),
    ],
)
def test_what_cannot_be_fetched_is_said(url: str, name: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        fetch(f"{url}/{name}")


@pytest.mark.parametrize("name", ["image", "unknown-length"])
def test_the_size_is_limited(url: str, name: str) -> None:
    with pytest.raises(ImageError, match="more than 999 bytes"):
        fetch(f"{url}/{name}", max_bytes=999)


def test_a_silent_server_is_given_up(url: str) -> None:
    with pytest.raises(ImageError, match="timed out"):
        fetch(f"{url}/silent", timeout=0.2)


def test_no_server_is_an_error() -> None:
    with pytest.raises(ImageError, match="cannot be fetched"):
        fetch("http://127.0.0.1:9/image.jpg")


def test_limits_are_sane() -> None:
    assert remote.TIMEOUT <= 30 and remote.MAX_BYTES <= 1 << 28
