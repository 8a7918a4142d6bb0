"""A result as the service returns it: JSON, with the mask in the requested format."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from cris_edge.errors import OptionError
from cris_edge.result import Segmentation

FORMATS = ("rle", "polygons", "png", "rgba")


def check_format(name: object) -> str:
    """The name of a mask format.

    Raises:
        OptionError: It is none of `FORMATS`.
    """
    if name not in FORMATS:
        raise OptionError(f"format is {name!r}, expected one of {', '.join(FORMATS)}.")
    return str(name)


def reply(result: Segmentation, mask_format: str) -> dict[str, Any]:
    """What a response says about one prompt.

    Args:
        result: The result.
        mask_format: "rle" for COCO run lengths; "polygons" for lists of x, y; "png" for a mask (255 inside) and "rgba"
            for the image cut out, both as PNG in base64.
    """
    document = result.to_dict()
    if mask_format == "polygons":
        document["mask"] = [polygon.ravel().tolist() for polygon in result.polygons()]
    elif mask_format == "png":
        document["mask"] = _png(result.mask.view(np.uint8) * np.uint8(255))
    elif mask_format == "rgba":
        document["mask"] = _png(result.cutout()[:, :, [2, 1, 0, 3]])  # OpenCV writes BGRA
    return {**document, "format": mask_format}


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    import cv2

    _, encoded = cv2.imencode(".png", pixels)
    return base64.b64encode(encoded.tobytes()).decode("ascii")
