from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_edge.media.clips import open_clip


def frames(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    return [np.full((height, width, 3), (20 * number, 0, 255 - 20 * number), np.uint8) for number in range(count)]


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_h264_keeps_the_times_of_frames(tmp_path: Path, size: tuple[int, int]) -> None:
    av = pytest.importorskip("av", reason="H.264 is written with PyAV")
    times = [0.0, 0.1, 0.5, 0.55, 2.0]
    clip = open_clip(tmp_path, "clip", 25.0, *size)
    for frame, seconds in zip(frames(5, *size), times, strict=True):
        clip.add(frame, seconds)
    clip.close()
    with av.open(str(clip.path)) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert [float(frame.time) for frame in decoded] == pytest.approx(times, abs=0.001)
        red = [frame.to_ndarray(format="rgb24")[10, 10, 0] for frame in decoded]
    assert red == pytest.approx([0, 20, 40, 60, 80], abs=8)
    data = clip.path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser begins before it has the end


def test_without_pyav_opencv_writes_and_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    clip = open_clip(tmp_path, "clip", 8.0, 48, 64)
    for frame in frames(4):
        clip.add(frame, 0)
    clip.close()
    assert "cris-edge[video]" in caplog.text
    capture = cv2.VideoCapture(str(clip.path))
    assert (capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)) == (8, 4)
    capture.release()


def test_a_frame_of_another_size_is_scaled(tmp_path: Path) -> None:
    clip = open_clip(tmp_path, "clip", 8.0, 48, 64)
    clip.add(frames(1)[0], 0)
    clip.add(np.zeros((100, 80, 3), np.uint8), 0.1)
    clip.close()
    assert clip.path.stat().st_size > 0
