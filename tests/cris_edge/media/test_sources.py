from __future__ import annotations

import http.server
import io
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_edge.errors import ImageError, InputError
from cris_edge.image import load_image
from cris_edge.media.clips import open_clip
from cris_edge.media.frames import Frame
from cris_edge.media.live import Live
from cris_edge.media.sources import Video, find, open_source


def png(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((8, 12, 3), value, np.uint8))
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Ten frames at 5 per second, each brighter than the one before."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for number in range(10):
        writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
    writer.release()
    return path


def test_a_folder_is_its_images_and_videos_in_order(tmp_path: Path, clip: Path) -> None:
    png(tmp_path / "b.png", 2), png(tmp_path / "a.png", 1), png(tmp_path / ".hidden.png", 3)
    frames = list(open_source(tmp_path))
    assert [Path(frame.source).name for frame in frames] == ["a.png", "b.png", *["clip.avi"] * 10]
    assert [frame.image[0, 0, 0] for frame in frames[:2]] == [1, 2]


def test_frames_carry_their_number_and_time(clip: Path) -> None:
    frames = list(open_source(clip))
    assert [frame.index for frame in frames] == list(range(10))
    assert [frame.seconds for frame in frames] == pytest.approx([number / 5 for number in range(10)], abs=0.01)
    assert [round(frame.image.mean() / 20) for frame in frames] == list(range(10))


def test_a_frame_is_an_image_to_numpy_and_to_the_sdk() -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    frame = Frame(pixels, "camera:0", 3, 0.1)
    assert np.asarray(frame) is pixels
    assert np.asarray(frame, np.float32).dtype == np.float32
    assert np.array_equal(load_image(frame), pixels)


def test_a_truncated_video_is_noticed(clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the video is written with PyAV")
    whole = Video(str(clip))
    assert (whole.length, whole.rate) == (10, 5)
    list(whole)
    assert whole.decoded == 10 and not whole.truncated
    written = open_clip(tmp_path, "noise", 25.0, 48, 64)
    random = np.random.default_rng(0)
    for number in range(60):
        written.add(random.integers(0, 255, (48, 64, 3)).astype(np.uint8), number / 25)
    written.close()
    data = written.path.read_bytes()
    half = tmp_path / "half.mp4"
    half.write_bytes(data[: len(data) // 2])
    video = Video(str(half))
    frames = list(video)
    assert video.length == 60 and 10 < len(frames) < 50
    assert video.decoded == len(frames) and video.truncated


def test_a_zip_file_is_its_images(tmp_path: Path) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, value in (("b/two.png", 2), ("one.png", 1), ("notes.txt", 0), ("__MACOSX/._one.png", 9)):
            data = cv2.imencode(".png", np.full((8, 12, 3), value, np.uint8))[1].tobytes()
            file.writestr(name, data)
    frames = list(open_source(archive))
    assert [frame.source for frame in frames] == [f"{archive}/b/two.png", f"{archive}/one.png"]
    assert [frame.image[0, 0, 0] for frame in frames] == [2, 1]


def test_bad_zip_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="cannot be read as a zip file"):
        find(tmp_path / "no.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as file:
        file.writestr("a.txt", "")
    with pytest.raises(InputError, match="has no images"):
        find(tmp_path / "empty.zip")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr("a.png", b"x" * 100)
    data = bytearray((tmp_path / "bad.zip").read_bytes())
    data[40:60] = bytes(20)  # the content no longer has its checksum
    (tmp_path / "bad.zip").write_bytes(data)
    with pytest.raises(ImageError, match=r"bad.zip/a.png cannot be read"):
        list(open_source(tmp_path / "bad.zip"))


def test_standard_input_is_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(tmp_path / "a.png", 7).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    (frame,) = open_source("-")
    assert frame.image[0, 0, 0] == 7 and frame.source == "standard input"


def test_cameras_and_streams_are_live_and_not_opened_yet() -> None:
    for text in ("camera:0", "rtsp://127.0.0.1:9/stream"):
        (source,) = find(text)
        assert isinstance(source, Live) and source.name == text


@pytest.mark.parametrize("text", ["camera:", "camera:front", "camera:-1", "camera:²"])
def test_a_camera_goes_by_number(text: str) -> None:
    with pytest.raises(InputError, match="expected camera:0"):
        find(text)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_url_leads_to_an_image_or_a_video(web: str, tmp_path: Path, clip: Path) -> None:
    png(tmp_path / "a.png", 5)
    (frame,) = open_source(f"{web}/a.png")
    assert frame.image[0, 0, 0] == 5 and frame.source == f"{web}/a.png"
    frames = list(open_source(f"{web}/clip.avi"))
    assert len(frames) == 10
    with pytest.raises(ImageError, match="404"):
        open_source(f"{web}/none.png")


def test_files_that_need_a_library_are_not_left_out_of_a_folder(tmp_path: Path) -> None:
    png(tmp_path / "a.png", 1)
    (tmp_path / "b.heic").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(40))
    sources = find(tmp_path)
    assert [Path(source.name).name for source in sources] == ["a.png", "b.heic"]
    with pytest.raises(ImageError):
        list(sources[1])
