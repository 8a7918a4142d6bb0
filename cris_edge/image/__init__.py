"""Images: decoding, letterbox geometry, overlays, COCO masks and labelled samples."""

from __future__ import annotations

from cris_edge.image.decoding import MAX_FILE_BYTES, MAX_PIXELS, MAX_SIDE, ImageSource, load_image
from cris_edge.image.letterbox import MEAN, STD, THRESHOLD, Letterbox, postprocess, preprocess

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "MEAN",
    "STD",
    "THRESHOLD",
    "ImageSource",
    "Letterbox",
    "load_image",
    "postprocess",
    "preprocess",
]
