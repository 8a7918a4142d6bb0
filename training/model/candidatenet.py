"""CandidateNet: referring image segmentation by choosing among a detector's boxes.

NanoDet-g finds candidates, a small transformer scores them (and "none") against the prompt's words, and a box-to-mask
head cuts the best one out. It takes and returns what `CRIS` does, and deploys as the same three graphs.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from cris_edge.errors import CheckpointError, InputError
from training.model.boxmask import BoxMask, MaskFeatures
from training.model.candidatedeploy import (
    CandidateImageEncoder,
    CandidateMaskDecoder,
    CandidateTextEncoder,
    encode_image,
)
from training.model.candidates import CandidateFinder
from training.model.selector import VOCABULARY, CandidateTokens, Selector, SelectorSizes, choose, presence


@dataclass(frozen=True, kw_only=True)
class CandidateArchitecture:
    """Sizes of a CandidateNet.

    Attributes:
        input_size: Side of the square input in pixels, a multiple of 32.
        word_len: Tokens of a prompt, start and end included.
        candidates: Boxes among which the selector chooses.
        width: Of the selector, in channels.
        layers: Of the selector over candidates.
        text_layers: Of the selector over words.
        heads: Of the selector's attention.
        rows: Of its word table.
    """

    family: ClassVar[str] = "candidates"
    presence: ClassVar[bool] = True  # a prompt may mean none of the candidates

    input_size: int = 320
    word_len: int = 20
    candidates: int = 32
    width: int = 128
    layers: int = 3
    text_layers: int = 3
    heads: int = 4
    rows: int = 12288

    def __post_init__(self) -> None:
        """Check what shapes alone would only reveal as a crash deep in the network."""
        if self.input_size % 32 or self.input_size <= 0:
            raise CheckpointError(f"input_size is {self.input_size}; expected a positive multiple of 32, such as 320.")
        if not 3 <= self.word_len <= SelectorSizes.positions:
            raise CheckpointError(f"word_len is {self.word_len}; expected 3 to {SelectorSizes.positions} tokens.")
        for name in ("candidates", "width", "layers", "text_layers", "heads", "rows"):
            if getattr(self, name) < 1:
                raise CheckpointError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        if self.width % self.heads:
            raise CheckpointError(f"heads is {self.heads}, which does not divide the width {self.width}.")

    @property
    def vocab_size(self) -> int:
        """Tokens of CLIP's byte-pair vocabulary."""
        return VOCABULARY

    @property
    def sizes(self) -> SelectorSizes:
        """The selector's sizes."""
        return SelectorSizes(
            width=self.width, heads=self.heads, layers=self.layers, text_layers=self.text_layers, rows=self.rows
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, for a checkpoint or a manifest; ``family`` tells it from a CRIS."""
        return {"family": self.family, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CandidateArchitecture:
        """Inverse of `to_dict`; raises `CheckpointError` when a field is unknown."""
        values = {name: value for name, value in values.items() if name != "family"}
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise CheckpointError(
                f"The checkpoint describes its architecture with {', '.join(unknown)}, which this version does not "
                "know; update CRIS Edge."
            )
        return cls(**values)


class CandidateNet(nn.Module):
    """Image and prompt in, one logit per 4x4 pixels out."""

    def __init__(self, architecture: CandidateArchitecture | None = None) -> None:
        super().__init__()
        self.architecture = architecture or CandidateArchitecture()
        self.finder = CandidateFinder(self.architecture.candidates)
        self.selector = Selector(self.architecture.sizes)
        self.boxmask = BoxMask()

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Logits (P, 1, S/4, S/4) of P prompts about B images.

        Args:
            image: (B, 3, S, S), letterboxed and normalized by `cris_edge.image.preprocess`, S a multiple of 32.
            tokens: (P, L) int64, zero-padded, P a multiple of B: prompt j is about image j // (P / B).
        """
        return self.forward_with_presence(image, tokens)[0]

    def forward_with_presence(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, with the logit (P, 1) of whether the prompt means anything in the image."""
        self._check(image, tokens)
        times = len(tokens) // len(image)
        encoded, squares, features = encode_image(self.finder, self.selector, self.boxmask, image)
        encoded = CandidateTokens(*(tensor.repeat_interleave(times, 0) for tensor in encoded))
        features = MaskFeatures(*(tensor.repeat_interleave(times, 0) for tensor in features))
        scores, none = self.selector.match(encoded, self.selector.encode_words(tokens))
        boxes = choose(scores, squares.repeat_interleave(times, 0))
        return self.boxmask(features, boxes), presence(scores, none)

    def at_size(self, input_size: int) -> CandidateNet:
        """The same weights for another input size in pixels; parameters are shared, not copied."""
        other = copy.copy(self)
        other.architecture = dataclasses.replace(self.architecture, input_size=input_size)
        return other

    def deploy(
        self, *, with_presence: bool = False
    ) -> tuple[CandidateImageEncoder, CandidateTextEncoder, CandidateMaskDecoder]:
        """The same function as three modules arranged for static export; this network is left as it is.

        With `with_presence`, the mask decoder also returns the logit ``presence`` (1, 1).
        """
        frozen = copy.deepcopy(self).float().eval().requires_grad_(False)
        return (
            CandidateImageEncoder(frozen.finder, frozen.selector, frozen.boxmask),
            CandidateTextEncoder(frozen.selector),
            CandidateMaskDecoder(frozen.selector, frozen.boxmask, with_presence=with_presence),
        )

    @staticmethod
    def _check(image: Tensor, tokens: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[-1] % 32 or image.shape[-2] != image.shape[-1]:
            raise InputError(
                f"The image tensor is {tuple(image.shape)}; expected (batch, 3, S, S), S a multiple of 32: letterbox "
                "it first."
            )
        if tokens.ndim != 2 or len(tokens) == 0 or len(image) == 0 or len(tokens) % len(image):
            raise InputError(
                f"The token tensor is {tuple(tokens.shape)} for {len(image)} images; expected (prompts, length) with "
                "the same number of prompts for each image."
            )
