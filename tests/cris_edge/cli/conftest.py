"""An image and a video for the commands."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    from tests.cris_edge.tiny_bundle import picture

    path = tmp_path / "photo.png"
    assert cv2.imwrite(str(path), picture("red", "blue")[:, :, ::-1])
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Four frames; red on the left of the first two."""
    from tests.cris_edge.tiny_bundle import picture

    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 8, (160, 96))
    for left in ("red", "red", "grey", "grey"):
        writer.write(np.ascontiguousarray(picture(left, "green")[:, :, ::-1]))
    writer.release()
    return path
