"""Downloads against a local server that breaks off, resumes, changes its file and redirects."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cris_edge.errors import CheckpointError, OptionError
from training import download
from training.download import fetch

CONTENT = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Serves one file; `drop_after` bytes of each response are sent before the connection breaks."""

    content = CONTENT
    etag = '"first"'
    drop_after: list[int]
    requests: list[tuple[str, str | None]]
    sha256: str | None = None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        content, start = self.server.content, 0
        self.server.requests.append((self.path, self.headers.get("Range")))
        if self.path == "/missing.pth":
            self.send_error(404)
            return
        if self.path.startswith("/owner/") and "/resolve/" in self.path:
            self.send_response(302)
            self.send_header("Location", "/stored")
            if self.server.sha256:
                self.send_header("X-Linked-ETag", f'"{self.server.sha256}"')
            self.end_headers()
            return
        given, same = self.headers.get("Range"), self.headers.get("If-Range") in (None, self.server.etag)
        if given and same:
            start = int(given.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        limit = self.server.drop_after.pop(0) if self.server.drop_after else len(content)
        self.wfile.write(content[start : start + limit])


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.drop_after, running.requests = [], []
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def url(server: Server, name: str = "model.pth") -> str:
    return f"http://127.0.0.1:{server.server_port}/{name}"


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    path = fetch(url(server), folder=tmp_path)
    assert path.name == "model.pth" and path.read_bytes() == CONTENT
    assert fetch(url(server), folder=tmp_path) == path
    assert len(server.requests) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["model.pth"]


def test_a_broken_download_continues_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.drop_after = [1000, 2000]
    assert fetch(url(server), folder=tmp_path).read_bytes() == CONTENT
    assert [given for _, given in server.requests] == [None, "bytes=1000-", "bytes=3000-"]


def test_a_later_call_continues_too(server: Server, tmp_path: Path) -> None:
    server.drop_after = [100] * download.ATTEMPTS
    with pytest.raises(CheckpointError, match="continue the download"):
        fetch(url(server), folder=tmp_path)
    assert fetch(url(server), folder=tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=300-"


def test_a_part_of_an_older_version_is_dropped(server: Server, tmp_path: Path) -> None:
    server.drop_after = [100] * download.ATTEMPTS
    with pytest.raises(CheckpointError):
        fetch(url(server), folder=tmp_path)
    server.content, server.etag = CONTENT[::-1], '"second"'
    assert fetch(url(server), folder=tmp_path).read_bytes() == CONTENT[::-1]


def test_a_part_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    server.drop_after = [5000] + [0] * (download.ATTEMPTS - 1)
    with pytest.raises(CheckpointError):
        fetch(url(server), folder=tmp_path)
    server.content = CONTENT[:300]
    assert fetch(url(server), folder=tmp_path).read_bytes() == CONTENT[:300]


def test_the_checksum_is_held(server: Server, tmp_path: Path) -> None:
    right, wrong = hashlib.sha256(CONTENT).hexdigest(), "0" * 64
    with pytest.raises(CheckpointError, match=f"SHA-256 {right}, expected {wrong}"):
        fetch(f"{url(server)}#sha256={wrong}", folder=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    path = fetch(f"{url(server)}#sha256={right}", folder=tmp_path)
    path.write_bytes(b"changed")
    with pytest.raises(CheckpointError, match="was deleted"):
        fetch(f"{url(server)}#sha256={right}", folder=tmp_path)
    with pytest.raises(OptionError, match="64 hexadecimal digits"):
        fetch(f"{url(server)}#md5=1", folder=tmp_path)


def test_a_hub_name_is_resolved_and_checked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    server.sha256 = hashlib.sha256(CONTENT).hexdigest()
    path = fetch("owner/cris@v1/weights/best_model.pth", folder=tmp_path)
    assert path.name == "best_model.pth" and path.read_bytes() == CONTENT
    assert server.requests[0][0] == "/owner/cris/resolve/v1/weights/best_model.pth"
    server.sha256 = "1" * 64
    with pytest.raises(CheckpointError, match=f"expected {'1' * 64}"):
        fetch("owner/cris/best_model.pth", folder=tmp_path)
    assert server.requests[-2][0] == "/owner/cris/resolve/main/best_model.pth"


def test_errors_of_the_server_are_reported(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="HTTP 404"):
        fetch(url(server, "missing.pth"), folder=tmp_path)
    assert len(server.requests) == 1  # it would be missing the second time as well
    with pytest.raises(OptionError, match="unknown scheme"):
        fetch("ftp://host/model.pth", folder=tmp_path)


def test_paths_stay_paths(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(b"x")
    assert fetch(file) == file
    assert fetch("runs/best.pt") == Path("runs/best.pt")  # no repository: it has no file in it
    assert fetch(tmp_path / "a" / "b" / "absent.pth") == tmp_path / "a" / "b" / "absent.pth"
