"""Segment a video frame by frame with one prompt, and print the object's position.

python examples/video_frames.py clip.mp4 "the red car"
"""

import sys
from collections.abc import Iterator

import cv2
import numpy as np

from cris_edge import Segmenter


def frames(path: str) -> Iterator[np.ndarray]:
    """Read a video frame by frame; use 0 instead of a path for the camera."""
    capture = cv2.VideoCapture(path)
    while True:
        success, frame = capture.read()
        if not success:
            break
        yield frame
    capture.release()


def main(video: str, prompt: str) -> None:
    with Segmenter(hint="throughput") as segmenter:
        # OpenCV frames are BGR. The prompt is encoded once, and frames are read as results are consumed.
        for number, result in enumerate(segmenter.stream(frames(video), prompt, color="bgr")):
            print(number, "nothing" if result.empty else f"score {result.score:.2f}, box {result.box}")


if __name__ == "__main__":
    main(*sys.argv[1:])
