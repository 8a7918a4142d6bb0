"""Images and prompts on which a lowered network is compared with PyTorch."""

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
# One token each, so that they fill a prompt to its last token.
WORDS = ("the", "small", "red", "cup", "on", "the", "left", "of", "the", "big", "blue", "book", "near", "the", "wall")


@dataclass(frozen=True)
class Probes:
    """Inputs, and the pairs in which they are run.

    Attributes:
        images: Names and tensors (1, 3, S, S) float32.
        prompts: Names and tensors (1, L) int64.
        pairs: Indices of an image and a prompt. The first are the bundle's golden pairs.
        golden_images: (N, S, S, 3) uint8 RGB, of the golden pairs.
        golden_prompts: Their N prompts.
        golden_truth: (N, S, S) bool, their true masks.
    """

    images: tuple[tuple[str, Array], ...]
    prompts: tuple[tuple[str, Array], ...]
    pairs: tuple[tuple[int, int], ...]
    golden_images: Array
    golden_prompts: tuple[str, ...]
    golden_truth: Array

    def golden(self) -> Probes:
        """Return the golden pairs alone."""
        pairs = self.pairs[: len(self.golden_prompts)]
        return replace(
            self,
            images=tuple(self.images[image] for image, _ in pairs),
            prompts=tuple(self.prompts[text] for _, text in pairs),
            pairs=tuple((index, index) for index in range(len(pairs))),
        )

    def name(self, pair: tuple[int, int]) -> str:
        """Return how messages refer to a pair."""
        return f"{self.images[pair[0]][0]} and {self.prompts[pair[1]][0]}"


def draw(input_size: int, word_len: int, tokenize: Callable[..., Array], photos: dict[str, Array]) -> Probes:
    """Pair synthetic scenes (square and wide) and `photos` with a prompt of one word and one of full length.

    The two golden pairs are the square scenes with a prompt of their own: synthetic scenes are free to ship and the
    same every time.

    Args:
        input_size: S, pixels.
        word_len: L, tokens.
        tokenize: ``(text, length=L)`` -> (1, L) int64.
        photos: Names and images (H, W, 3) uint8 RGB.
    """
    side = max(input_size, 128)  # the smallest scene; networks may be smaller
    golden = [SyntheticScenes("val", 2, seed=7, height=side, width=side)[index] for index in range(2)]
    golden_images = np.stack([_resized(image, input_size) for image, _, _ in golden])
    golden_prompts = tuple(sentences[0] for _, sentences, _ in golden)
    truth = np.stack([_resized(masks[0].astype(np.uint8) * 255, input_size) > 127 for _, _, masks in golden])
    wide = SyntheticScenes("val", 1, seed=8, height=side * 3 // 4, width=side)[0][0]

    images = {f"synthetic scene {index + 1}": image for index, image in enumerate(golden_images)}
    images |= {"wide synthetic scene": wide, **photos}
    texts = [("one word", ONE_WORD), ("a full-length prompt", full_length(word_len))]
    texts += [(f"its own prompt {prompt!r}", prompt) for prompt in golden_prompts]
    return Probes(
        images=tuple((name, preprocess(image, input_size)[0]) for name, image in images.items()),
        prompts=tuple((name, tokenize(text, length=word_len)) for name, text in texts),
        pairs=((0, 2), (1, 3), *((image, text) for image in range(len(images)) if image != 1 for text in (0, 1))),
        golden_images=golden_images,
        golden_prompts=golden_prompts,
        golden_truth=truth,
    )


def _resized(image: Array, size: int) -> Array:
    return image if len(image) == size else cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def full_length(word_len: int) -> str:
    """Return a prompt of `word_len` tokens, start and end included."""
    return " ".join(islice(cycle(WORDS), word_len - 2))


def free_photos() -> dict[str, Array]:
    """Return two photos of scikit-image (CC0 and public domain); none if it is not installed."""
    try:
        from skimage import data
    except ImportError:
        return {}
    photos: Any = data  # without annotations
    return {"the photo coffee": photos.coffee(), "the photo astronaut": photos.astronaut()}
