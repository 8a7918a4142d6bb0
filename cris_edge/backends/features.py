"""What an encoder made of one image or one sentence: values that an app can keep and use again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cris_edge.backends.base import Array
from cris_edge.image import Letterbox


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """One image as the network sees it. `Segmenter.encode_image` makes it; any sentence can be asked of it.

    Attributes:
        bundle: Digest of the bundle that it belongs to; a `Segmenter` with another bundle refuses it.
        image: (H, W, 3) uint8 RGB, the original.
        letterbox: Where the original lies in the network's input.
        tensors: Outputs of the image encoder, by name.
        timings: Seconds that each stage took.
    """

    bundle: str
    image: NDArray[np.uint8] = field(repr=False)
    letterbox: Letterbox
    tensors: Mapping[str, Array] = field(repr=False)
    timings: Mapping[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """One sentence as the network sees it. `Segmenter.encode_text` makes it; it can be asked of any image.

    Attributes:
        bundle: Digest of the bundle that it belongs to; a `Segmenter` with another bundle refuses it.
        text: The sentence, as given.
        tokens: (1, L) int64.
        tensors: Outputs of the text encoder, by name.
        timings: Seconds that each stage took.
    """

    bundle: str
    text: str
    tokens: NDArray[np.int64] = field(repr=False)
    tensors: Mapping[str, Array] = field(repr=False)
    timings: Mapping[str, float] = field(default_factory=dict, repr=False)
