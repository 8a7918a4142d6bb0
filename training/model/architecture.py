"""The sizes and options that define a CRIS network."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from cris_edge.errors import CheckpointError

_COUNTS = (
    *("vision_width", "image_resolution", "embed_dim", "vocab_size", "context_length", "text_width", "text_layers"),
    *("neck_width3", "neck_width5", "decoder_heads", "ffn_dim"),
)
_ADDED = ("neck_width3", "neck_width5", "presence")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a CRIS network; the defaults are CRIS-R50 at 416 pixels (paper, section 4.2).

    ``C = text_width`` is the width of neck, decoder and projector, because the decoder attends from image tokens to
    words without a projection between them (paper, equation 7). The neck's two other widths are free: the public code
    uses 256 and 1024 for CRIS-R50 and CRIS-R101 alike, although the latter's embedding has 512 channels.
    """

    input_size: int = 416  # pixels, side of the square input; a multiple of 32
    word_len: int = 17  # tokens of a sentence, start and end included: 17 for RefCOCO and RefCOCO+, 22 for G-Ref
    vision_layers: tuple[int, int, int, int] = (3, 4, 6, 3)  # bottlenecks in the four stages of CLIP's ResNet
    vision_width: int = 64  # channels after the stem; the stages put out 4, 8, 16 and 32 times as many
    image_resolution: int = 224  # pixels at which CLIP was trained: fixes the grid of the attention pool's embedding
    embed_dim: int = 1024  # CLIP's joint embedding: width of c5 and of the sentence vector
    vocab_size: int = 49408  # CLIP's byte-pair vocabulary
    context_length: int = 77  # rows of the text encoder's positional embedding
    text_width: int = 512  # width of the text encoder, and C, the width of neck, decoder and projector
    text_layers: int = 12
    neck_width3: int | None = None  # channels of the neck's projection of c3; None: text_width // 2
    neck_width5: int | None = None  # channels of the neck's projections of c5 and the sentence; None: embed_dim
    decoder_layers: int = 3  # n of the paper's table 4
    decoder_heads: int = 8
    ffn_dim: int = 2048  # hidden width of the decoder's feed-forward network
    dropout: float = 0.1  # in the decoder, as in the paper's code
    contrastive: bool = True  # False: one learned kernel for all sentences, the ablation of table 4
    presence: bool = False  # a head that says whether the prompt's object is in the image; not in the paper

    def __post_init__(self) -> None:
        """Check the sizes; a bad one would fail much later, deep in the network."""
        if self.input_size % 32 or self.input_size <= 0:
            raise CheckpointError(
                f"input_size is {self.input_size}; CRIS needs a positive multiple of 32, for example 416."
            )
        if len(self.vision_layers) != 4 or min(self.vision_layers) < 1:
            raise CheckpointError(
                f"vision_layers is {list(self.vision_layers)}; CLIP's ResNet has four stages of one block or more, for "
                "example 3,4,6,3."
            )
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CheckpointError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.decoder_layers < 0 or not 0 <= self.dropout < 1:
            raise CheckpointError(
                f"decoder_layers is {self.decoder_layers} and dropout {self.dropout}; expected 0 or more layers, and a "
                "dropout of at least 0 and below 1."
            )
        if not 3 <= self.word_len <= self.context_length:
            raise CheckpointError(
                f"word_len is {self.word_len}; this text encoder takes 3 to {self.context_length} tokens."
            )
        if self.text_width % self.decoder_heads or self.text_width % 4:
            raise CheckpointError(
                f"decoder_heads is {self.decoder_heads}, which does not divide the decoder's width {self.text_width}; "
                "give the number of heads that the checkpoint was trained with (8 in the paper)."
            )

    @property
    def neck_widths(self) -> tuple[int, int, int]:
        """Channels of the neck's projections of c3, c4 and c5: ``fpn_out`` in the public code."""
        return self.neck_width3 or self.text_width // 2, self.text_width, self.neck_width5 or self.embed_dim

    @property
    def vision_heads(self) -> int:
        """Heads of the attention pool: CLIP gives each 64 channels."""
        return max(1, self.vision_width * 32 // 64)

    @property
    def text_heads(self) -> int:
        """Heads of the text transformer: CLIP gives each 64 channels."""
        return max(1, self.text_width // 64)

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for a checkpoint or a manifest.

        Fields that later versions added are left out where they have their default: earlier versions read the result.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value or name not in _ADDED
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Inverse of `to_dict`; raises `CheckpointError` when a field is unknown."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise CheckpointError(
                f"The checkpoint describes its architecture with {', '.join(unknown)}, which this version does not "
                "know; update CRIS Edge."
            )
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)
