"""Cached features of one image or one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cris_edge.backends.base import Array
from cris_edge.image import Letterbox


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of one image, from `Segmenter.encode_image`, to combine with any prompt.

    Attributes:
        bundle: Digest of the bundle; a `Segmenter` with another bundle refuses the features.
        image: (H, W, 3) uint8 RGB, the original.
        letterbox: Position of the original in the network's input.
        tensors: Outputs of the image encoder, by name.
        timings: Seconds per stage.
        index: Number of the frame in its source, if it has one.
        seconds: Time of the frame, if it has one.
    """

    bundle: str
    image: NDArray[np.uint8] = field(repr=False)
    letterbox: Letterbox
    tensors: Mapping[str, Array] = field(repr=False)
    timings: Mapping[str, float] = field(default_factory=dict, repr=False)
    index: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """Features of one prompt, from `Segmenter.encode_text`, to combine with any image.

    Attributes:
        bundle: Digest of the bundle; a `Segmenter` with another bundle refuses the features.
        prompt: The prompt, as given.
        tokens: (1, L) int64.
        tensors: Outputs of the text encoder, by name.
        timings: Seconds per stage.
    """

    bundle: str
    prompt: str
    tokens: NDArray[np.int64] = field(repr=False)
    tensors: Mapping[str, Array] = field(repr=False)
    timings: Mapping[str, float] = field(default_factory=dict, repr=False)

    @property
    def text(self) -> str:
        """The former name of `prompt`."""
        return self.prompt
