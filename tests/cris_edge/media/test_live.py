"""Live sources: an injected camera, an MJPEG server over HTTP, and a real RTSP server."""

from __future__ import annotations

import http.server
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest

from cris_edge.errors import ImageError
from cris_edge.media import live as module
from cris_edge.media.live import Live


class Camera:
    """A camera that delivers a numbered frame every few milliseconds, and breaks off after some."""

    opened = 0

    def __init__(self, frames: int = 10**9, pause: float = 0.002) -> None:
        Camera.opened += 1
        self.left, self.pause, self.number, self.released = frames, pause, 0, False

    def isOpened(self) -> bool:  # noqa: N802 - the name in OpenCV
        return self.left > 0

    def read(self) -> tuple[bool, Any]:
        time.sleep(self.pause)
        if self.left == 0:
            return False, None
        self.left -= 1
        self.number += 1
        frame = np.zeros((4, 6, 3), np.uint8)
        frame[:, :, 0] = self.number % 256  # blue, in OpenCV's order
        return True, frame

    def release(self) -> None:
        self.released = True


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(module, "_LONGEST_WAIT", 0.02)


def test_a_slow_reader_gets_the_newest_frame() -> None:
    camera = Camera()
    frames = iter(Live("camera:0", lambda: camera))
    first = next(frames)
    time.sleep(0.1)
    second = next(frames)
    assert second.index - first.index > 5  # frames were skipped, not queued
    assert second.image[0, 0].tolist() == [0, 0, (second.index + 1) % 256]  # RGB
    assert second.seconds is not None and first.seconds is not None and second.seconds > first.seconds
    frames.close()  # type: ignore[attr-defined]
    assert camera.released
    assert not [thread for thread in threading.enumerate() if thread.name == "cris-edge-live"]


def test_a_lost_connection_is_opened_again() -> None:
    before = Camera.opened
    frames = list(islice(Live("camera:0", lambda: Camera(3, 0.01)), 8))
    assert len(frames) == 8
    assert Camera.opened - before >= 3
    assert [frame.index for frame in frames] == sorted(frame.index for frame in frames)


def test_a_source_that_cannot_be_opened_is_an_error_in_the_end() -> None:
    with pytest.raises(ImageError, match=r"camera:7 gives no frames after 3 attempts"):
        list(Live("camera:7", lambda: Camera(0), attempts=3))


def test_an_error_in_the_source_reaches_the_reader() -> None:
    def fail() -> Any:
        raise RuntimeError("no driver")

    with pytest.raises(ImageError, match="no driver"):
        list(Live("camera:0", fail))


def test_close_ends_the_iteration() -> None:
    source = Live("camera:0", Camera)
    frames = iter(source)
    next(frames)
    threading.Timer(0.05, source.close).start()
    assert len(list(frames)) < 1000


def test_segmenter_streams_a_live_source(tiny: Any) -> None:
    from cris_edge import Segmenter

    with Segmenter(tiny, runtime="onnxruntime") as segmenter:
        results = list(islice(segmenter.stream(Live("camera:0", Camera), "red"), 3))
    assert [result.mask.shape for result in results] == [(4, 6)] * 3


class _Mjpeg(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        import cv2

        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            for number in range(400):
                image = np.full((48, 64, 3), (0, 0, 40 + number % 200), np.uint8)
                data = cv2.imencode(".jpg", image)[1].tobytes()
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + data + b"\r\n")
                time.sleep(0.02)
        except OSError:
            return

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def mjpeg() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Mjpeg)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/stream.mjpg"
    server.shutdown()
    server.server_close()
    thread.join()


def _capture(url: str) -> Any:
    import cv2

    return cv2.VideoCapture(url)


def test_an_mjpeg_stream_over_http(mjpeg: str) -> None:
    frames = list(islice(Live(mjpeg, lambda: _capture(mjpeg)), 5))
    assert all(frame.image.shape == (48, 64, 3) for frame in frames)
    assert all(frame.image[20, 30, 0] > 30 and frame.image[20, 30, 2] < 20 for frame in frames)  # red, not blue


_RTSP = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer(); server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory(); factory.set_shared(True)
factory.set_launch("( videotestsrc is-live=true pattern=red "
                   "! video/x-raw,format=I420,width=64,height=48,framerate=20/1 "
                   "! jpegenc ! rtpjpegpay name=pay0 pt=26 )")
server.get_mount_points().add_factory("/test", factory)
server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""


@pytest.mark.slow
def test_a_real_rtsp_server() -> None:
    """Needs Debian's gir1.2-gst-rtsp-server-1.0, python3-gi and gstreamer1.0-plugins-good."""
    python = shutil.which("python3", path="/usr/bin")
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if python is None or subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip("GStreamer's RTSP server is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = subprocess.Popen([python, "-c", _RTSP, port], stdout=subprocess.PIPE, text=True, env={"PATH": "/usr/bin"})
    try:
        assert server.stdout is not None and server.stdout.readline().strip() == "ready"
        url = f"rtsp://127.0.0.1:{port}/test"
        frames = list(islice(Live(url, lambda: _capture(url)), 5))
        assert all(frame.image.shape == (48, 64, 3) for frame in frames)
        assert frames[-1].image[20, 30, 0] > 200 and frames[-1].image[20, 30, 1] < 60
    finally:
        server.kill()
        server.wait()
        if server.stdout:
            server.stdout.close()
