"""The service as a process: it starts, answers real connections, and ends as it should."""

from __future__ import annotations

import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the service needs the extra serve")
pytest.importorskip("onnxruntime", reason="the service is tested in ONNX Runtime")
pytest.importorskip("onnx", reason="the bundle of the tests is built with onnx")
httpx = pytest.importorskip("httpx")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


def start(root: Path, model: Path, log: Path, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    command = [sys.executable, "-m", "cris_edge", "serve", "--port", "0", "--model", str(model), *options]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=root, stderr=file, stdin=subprocess.DEVNULL)
    for _ in range(600):
        if found := re.search(r"^http://\S+$", log.read_text(), re.MULTILINE):
            return process, found[0]
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError("the service did not start")


@pytest.fixture
def url(root: Path, tiny: Path, tmp_path: Path) -> Iterator[str]:
    process, url = start(root, tiny, tmp_path / "log", "--runtime", "onnxruntime")
    yield url
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM)


def photo(folder: Path) -> Path:
    import cv2

    from tests.cris_edge.tiny_bundle import picture

    path = folder / "photo.png"
    assert cv2.imwrite(str(path), picture("red", "blue")[:, :, ::-1])
    return path


def test_the_example_asks_a_running_service(
    url: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRIS_EDGE_URL", url)
    monkeypatch.setattr(sys, "argv", ["service_client.py", str(photo(tmp_path)), "red", "blue"])
    runpy.run_path(str(root / "examples" / "service_client.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("red box [0.0, 0.0") and lines[1].startswith("blue box [7")


def test_a_client_that_goes_away_does_no_harm(url: str, tmp_path: Path) -> None:
    host, port = url.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf")
    form = {"files": {"image": photo(tmp_path).read_bytes()}, "data": {"prompt": "red"}}
    assert httpx.post(f"{url}/v1/segment", **form).status_code == 200
    assert httpx.get(f"{url}/readyz").json()["pending"] == 0


def test_an_address_in_use_is_said_in_one_line(root: Path, tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "cris_edge", "serve", "--model", str(tiny)]
        command += ["--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "in use" in done.stderr and "Traceback" not in done.stderr


def test_an_open_address_needs_a_token_or_an_explicit_word(root: Path, tiny: Path) -> None:
    command = [sys.executable, "-m", "cris_edge", "serve", "--model", str(tiny), "--host", "0.0.0.0"]
    environment = {**os.environ, "CRIS_EDGE_TOKEN": ""}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "--token" in done.stderr
