"""Frames of a video: follow what a sentence names, and print where it is.

python examples/video_frames.py clip.mp4 "the red car"
"""

import sys
from collections.abc import Iterator

import cv2
import numpy as np

from cris_edge import Segmenter


def frames(path: str) -> Iterator[np.ndarray]:
    """Read a video frame by frame; 0 instead of a path would be the camera."""
    capture = cv2.VideoCapture(path)
    while True:
        there, frame = capture.read()
        if not there:
            break
        yield frame
    capture.release()


def main(video: str, sentence: str) -> None:
    with Segmenter(hint="throughput") as segmenter:
        # OpenCV's frames are BGR. The sentence is encoded once; frames are read as results are taken.
        for number, result in enumerate(segmenter.stream(frames(video), sentence, color="bgr")):
            print(number, "nothing" if result.empty else f"score {result.score:.2f}, box {result.box}")


if __name__ == "__main__":
    main(*sys.argv[1:])
