"""The images and sentences on which a lowered network is compared with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import cv2
import numpy as np

from cris_edge.image import preprocess
from training.scenes.synthetic import SyntheticScenes

Array = np.ndarray[Any, np.dtype[Any]]

ONE_WORD = "circle"
# Each is one token, so that as many of them as there is room for fill a sentence to the last token.
WORDS = ("the", "small", "red", "cup", "on", "the", "left", "of", "the", "big", "blue", "book", "near", "the", "wall")


@dataclass(frozen=True)
class Probes:
    """Inputs, and which image is asked which sentence.

    Attributes:
        images: names and tensors (1, 3, S, S) float32.
        sentences: names and tensors (1, L) int64.
        pairs: places of an image and a sentence in these. The first are the bundle's golden pairs.
        golden_images: (N, S, S, 3) uint8 RGB, of the golden pairs.
        golden_prompts: the N sentences.
        golden_truth: (N, S, S) bool, what they mean.
    """

    images: tuple[tuple[str, Array], ...]
    sentences: tuple[tuple[str, Array], ...]
    pairs: tuple[tuple[int, int], ...]
    golden_images: Array
    golden_prompts: tuple[str, ...]
    golden_truth: Array

    def golden(self) -> Probes:
        """The golden pairs alone."""
        pairs = self.pairs[: len(self.golden_prompts)]
        return replace(
            self,
            images=tuple(self.images[image] for image, _ in pairs),
            sentences=tuple(self.sentences[text] for _, text in pairs),
            pairs=tuple((index, index) for index in range(len(pairs))),
        )

    def name(self, pair: tuple[int, int]) -> str:
        """What to call a pair in a message."""
        return f"{self.images[pair[0]][0]} and {self.sentences[pair[1]][0]}"


def draw(input_size: int, word_len: int, tokenize: Callable[..., Array], photos: dict[str, Array]) -> Probes:
    """Drawn scenes (square and wide) and `photos`, each asked one word and a sentence of full length.

    The two golden pairs are the square scenes with a sentence of their own: drawn pictures are ours to ship, and the
    same every time.

    Args:
        input_size: S, in pixels.
        word_len: L, in tokens.
        tokenize: ``(text, length=L)`` -> (1, L) int64.
        photos: names and images (H, W, 3) uint8 RGB.
    """
    side = max(input_size, 128)  # scenes have a smallest size, networks may be smaller
    golden = [SyntheticScenes("val", 2, seed=7, height=side, width=side)[index] for index in range(2)]
    golden_images = np.stack([_resized(image, input_size) for image, _, _ in golden])
    prompts = tuple(sentences[0] for _, sentences, _ in golden)
    truth = np.stack([_resized(masks[0].astype(np.uint8) * 255, input_size) > 127 for _, _, masks in golden])
    wide = SyntheticScenes("val", 1, seed=8, height=side * 3 // 4, width=side)[0][0]

    pictures = {f"drawn scene {index + 1}": image for index, image in enumerate(golden_images)}
    pictures |= {"wide drawn scene": wide, **photos}
    texts = [("one word", ONE_WORD), ("a full-length sentence", full_length(word_len))]
    texts += [(f"its own sentence {prompt!r}", prompt) for prompt in prompts]
    return Probes(
        images=tuple((name, preprocess(picture, input_size)[0]) for name, picture in pictures.items()),
        sentences=tuple((name, tokenize(text, length=word_len)) for name, text in texts),
        pairs=((0, 2), (1, 3), *((image, text) for image in range(len(pictures)) if image != 1 for text in (0, 1))),
        golden_images=golden_images,
        golden_prompts=prompts,
        golden_truth=truth,
    )


def _resized(image: Array, size: int) -> Array:
    return image if len(image) == size else cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def full_length(word_len: int) -> str:
    """A sentence of `word_len` tokens, start and end included."""
    return " ".join(islice(cycle(WORDS), word_len - 2))


def free_photos() -> dict[str, Array]:
    """Two photos that scikit-image carries (CC0 and public domain); none where it is not installed."""
    try:
        from skimage import data
    except ImportError:
        return {}
    return {"the photo coffee": data.coffee(), "the photo astronaut": data.astronaut()}
