"""Convert examples to training arrays, with augmentations that keep the prompt true."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cris_edge.image import Letterbox, preprocess
from cris_edge.tokenizer import PromptWarning, Tokenizer
from training.data.samples import Example

STRIDE = 4
"""Input pixels per pixel of the logits."""

_SWAP = {
    "left": "right", "leftmost": "rightmost", "lefthand": "righthand", "leftside": "rightside", "leftward": "rightward",
    "leftwards": "rightwards", "lefty": "righty", "lft": "rt", "l": "r",
}  # fmt: skip
_SWAP |= {right: left for left, right in _SWAP.items()}
_WORD = re.compile(r"[a-z0-9']+")
# Mirrored, these would be false, or the swap would change another meaning of the word: "right behind", "leftover",
# clock directions, written words and numbers, and orders counted from a side that is not named.
_UNSAFE = re.compile(
    r"\bright\s+(?:next|behind|beside|under|below|above|in|on|at|by|near|after|before|there|here|now|up|down|angle|side\s+up)\b"
    r"|\b(?:all|just)\s+right\b|\bleft[\s-]?overs?\b|\bleft\s+(?:alone|behind|out|in|over)\b|\b(?:is|are|was|were)\s+left\b"
    r"|clock|\bwest|\beast|\d|\bletters?\b|\bnumbers?\b|\bwords?\b|\bsays?\b|\bsaying\b|\breads?\b|\bwritten\b|\btext\b|\blogo\b"
)
_ORDER = re.compile(r"\b(?:first|second|third|fourth|fifth|sixth|1st|2nd|3rd|next)\b")


def mirrored(sentence: str) -> str | None:
    """Return the prompt that is true of the mirrored image, or None if that is uncertain.

    Left and right are swapped, also inside other words ("leftmost", "right-hand"). None is returned for prompts in
    which "right" or "left" may mean something else, which mention text, numbers, clock or compass directions, or
    which count ("second chair") without saying from where.
    """
    lower = sentence.lower()
    words = set(_WORD.findall(lower))
    if _UNSAFE.search(lower) or (_ORDER.search(lower) and not words & _SWAP.keys()):
        return None
    return _WORD.sub(lambda match: _SWAP.get(match.group(), match.group()), lower)


@dataclass(frozen=True)
class Transform:
    """Samples prompts of an example and converts it to arrays. All randomness comes from the given generator.

    Attributes:
        word_len: tokens per sentence.
        sentences: sentences per image; an example with fewer repeats some.
        flip: share of examples mirrored.
        jitter: largest change of brightness and contrast.
        mask_target: a key of `MASK_TARGETS`.
        negatives: share of sentences replaced by ones that match nothing, where the example knows some.
    """

    word_len: int
    sentences: int = 1
    flip: float = 0.0
    jitter: float = 0.0
    mask_target: str = "nearest"
    negatives: float = 0.0

    def __call__(self, example: Example, size: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return the arrays of a training example.

        Returns:
            ``image`` (3, S, S) float32, ``tokens`` (k, L) int64, ``mask`` (k, 1, S/4, S/4) float32 in [0, 1], and
            ``present`` (k,) float32, 0 for sentences that match nothing.
        """
        count = len(example.sentences)
        order = rng.permutation(count)
        chosen = [int(order[i % count]) for i in range(self.sentences)]
        sentences = [example.sentences[i] for i in chosen]
        present = [i not in example.absent for i in chosen]
        if self.negatives and example.negative is not None:
            for slot in range(self.sentences):
                if rng.random() < self.negatives and (prompt := example.negative(rng)):
                    sentences[slot], present[slot] = prompt, False
        image, mirror = example.image, False
        if self.flip and rng.random() < self.flip:
            swapped = [mirrored(sentence) for sentence in sentences]
            if all(sentence is not None for sentence in swapped):
                sentences, mirror = [str(sentence) for sentence in swapped], True
                image = np.ascontiguousarray(image[:, ::-1])
        if self.jitter:
            gain, shift = 1 + rng.uniform(-self.jitter, self.jitter), 128 * rng.uniform(-self.jitter, self.jitter)
            levels = np.clip(np.arange(256) * gain + shift, 0, 255).astype(np.uint8)
            image = np.asarray(cv2.LUT(image, levels), dtype=np.uint8)
        pixels, letterbox = preprocess(image, size)
        target, masks = MASK_TARGETS[self.mask_target], []
        for i, matches in zip(chosen, present, strict=True):
            truth = example.truth(i) if matches else np.zeros(image.shape[:2], np.bool_)
            masks.append(target(truth[:, ::-1] if mirror else truth, letterbox))
        return {
            "image": pixels[0],
            "tokens": _tokens(sentences, self.word_len),
            "mask": np.stack(masks)[:, None],
            "present": np.array(present, np.float32),
        }


def letterbox_mask(truth: npt.NDArray[np.bool_], letterbox: Letterbox) -> npt.NDArray[np.float32]:
    """Return the paper's training target, (S/4, S/4) float32 in [0, 1].

    It is the truth, letterboxed linearly as the reference does, at every fourth pixel, where resizing to the logits'
    size by nearest neighbour would look: the pixels between are not computed.
    """
    sparse = np.array(letterbox.inverse, dtype=np.float64)
    sparse[:, :2] *= STRIDE
    return _letterboxed(truth, sparse, letterbox.size // STRIDE)


def area_mask(truth: npt.NDArray[np.bool_], letterbox: Letterbox) -> npt.NDArray[np.float32]:
    """Return the share of the object in the cell that each logit is drawn over, (S/4, S/4) float32 in [0, 1].

    Inference spreads the logits over the input with aligned corners: logit i lies at pixel i (S - 1) / (S/4 - 1), not
    at 4 i, where :func:`letterbox_mask` looks. The two are a pixel and a half apart in the middle of the input and
    three at its end; and a share tells where in the cell a border runs, which one pixel of it cannot.
    """
    share = _averaged(_letterboxed(truth, letterbox.inverse, letterbox.size))
    return _averaged(share.T).T


def _letterboxed(truth: npt.NDArray[np.bool_], inverse: npt.NDArray[np.float64], side: int) -> npt.NDArray[np.float32]:
    source = truth.astype(np.uint8) * np.uint8(255)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    letterboxed = cv2.warpAffine(source, inverse, (side, side), flags=flags, borderValue=0)
    return letterboxed.astype(np.float32) / np.float32(255)


def _averaged(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Average rows (S, N) under each logit: (S/4, N). Not a matrix product: its threads would fight the trainer's."""
    pixels, weights = _cells(len(rows))
    return np.asarray(np.einsum("ck,ckn->cn", weights, rows[pixels]), dtype=np.float32)


@lru_cache(maxsize=8)
def _cells(size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The pixels under each logit along one axis and their weights, whose sum is 1: both (S/4, 7)."""
    count = size // STRIDE
    step = (size - 1) / max(count - 1, 1)
    centre = np.arange(count)[:, None] * step
    pixel = np.round(centre).astype(np.int64) + np.arange(-3, 4)
    low, high = np.maximum(centre - step / 2, pixel - 0.5), np.minimum(centre + step / 2, pixel + 0.5)
    weight = np.where((pixel >= 0) & (pixel < size), np.maximum(high - low, 0), 0)
    return np.clip(pixel, 0, size - 1), (weight / weight.sum(1, keepdims=True)).astype(np.float32)


MASK_TARGETS: dict[str, Callable[[npt.NDArray[np.bool_], Letterbox], npt.NDArray[np.float32]]] = {
    "nearest": letterbox_mask,
    "area": area_mask,
}
"""Values of ``--mask-target``."""


_tokenizer: Tokenizer | None = None


def _tokens(sentences: list[str], length: int) -> npt.NDArray[np.int64]:
    # One per process: loader workers are forked or spawned, and opening a tokenizer takes a fraction of a second.
    global _tokenizer
    if _tokenizer is None:
        _tokenizer = Tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)  # long prompts are truncated, as in the reference
        return _tokenizer(sentences, length=length)
