"""CandidateNet as three modules for static export, with the contract of `training.model.deploy`.

What depends on the image alone is computed by `CandidateImageEncoder`, what depends on the prompt alone by
`CandidateTextEncoder`, the rest, for each pair, by `CandidateMaskDecoder`. The functions are those of the network, one
image and one prompt at a time; only the word table is joined, so that one row is looked up for each token.

`quantized_layers` names the weights that an int8 network quantizes: the deepest convolutions of the detector, and those
of the mask head. Boxes, scores, crops and words stay in float, as do the layers that give them, sensitive to rounding.

`chooses` marks the modules whose output jumps where two boxes or two scores are nearly tied.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.boxmask import BoxMask, MaskFeatures
from training.model.candidates import CandidateFinder
from training.model.selector import CandidateTokens, Selector, Words, choose, presence

CANDIDATES = tuple(f"candidate_{name}" for name in CandidateTokens._fields)
MASKS = tuple(f"mask_{name}" for name in MaskFeatures._fields)
WORDS = tuple(f"word_{name}" for name in Words._fields)


def encode_image(
    finder: CandidateFinder, selector: Selector, boxmask: BoxMask, image: Tensor
) -> tuple[CandidateTokens, Tensor, MaskFeatures]:
    """All that depends on the image alone: candidates, their boxes (B, N, 4) in the square, the masks' features."""
    candidates, squares, pyramid = finder.find(image)
    return selector.encode_candidates(candidates), squares, boxmask.encode(image, pyramid)


class CandidateImageEncoder(nn.Module):
    """Everything that sees the image alone: detector, candidates, what the mask is cropped from."""

    input_names = ("image",)
    output_names = (*CANDIDATES, "candidate_squares", *MASKS)
    chooses = True

    def __init__(self, finder: CandidateFinder, selector: Selector, boxmask: BoxMask) -> None:
        super().__init__()
        self.finder, self.selector, self.boxmask = finder, _without_words(selector), boxmask

    @property
    def quantized_layers(self) -> tuple[str, ...]:
        """The convolutions of the detector's two deepest stages, which hold most of its weights.

        In the earlier ones and in its heads eight bits change which box is chosen, more than twice as often.
        """
        names = _convolutions("finder.detector", self.finder.detector)
        return tuple(name for name in names if ".stage3." in name or ".stage4." in name)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(1, 3, S, S) -> the fields of `CandidateTokens`, the boxes (1, N, 4), the fields of `MaskFeatures`."""
        candidates, squares, features = encode_image(self.finder, self.selector, self.boxmask, image)
        return (*candidates, squares, *features)


class CandidateTextEncoder(nn.Module):
    """Everything that sees the prompt alone."""

    input_names = ("tokens",)
    output_names = WORDS

    row: Tensor
    rows: Tensor

    def __init__(self, selector: Selector) -> None:
        super().__init__()
        self.selector = selector
        self.register_buffer("row", selector.table.row.to(torch.int32))
        self.register_buffer("rows", selector.word_rows().detach().clone())
        self.selector = _without_words(selector)

    @property
    def quantized_layers(self) -> tuple[str, ...]:
        """None."""
        return ()

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(1, L) int64 -> the fields of `Words`."""
        row = self.row.index_select(0, tokens.flatten()).reshape(tokens.shape)
        return tuple(self.selector.encode_rows(tokens, F.embedding(row, self.rows)))


class CandidateMaskDecoder(nn.Module):
    """What sees both: the choice of a candidate, and its mask."""

    input_names = (*CANDIDATES, "candidate_squares", *MASKS, *WORDS)
    output_names: tuple[str, ...] = ("logits",)
    chooses = True

    def __init__(self, selector: Selector, boxmask: BoxMask, *, with_presence: bool = False) -> None:
        super().__init__()
        self.selector, self.boxmask, self.with_presence = _without_words(selector), boxmask, with_presence
        if with_presence:
            self.output_names = ("logits", "presence")

    @property
    def quantized_layers(self) -> tuple[str, ...]:
        """The mask head's convolutions but the last."""
        own = ("from_", "last2")
        names = _convolutions("boxmask", self.boxmask)
        return tuple(name for name in names if not name.removeprefix("boxmask.").startswith(own))

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The encoders' outputs in the order of `input_names` -> logits (1, 1, S/4, S/4)."""
        tokens, rest = inputs[: len(CANDIDATES)], inputs[len(CANDIDATES) :]
        squares, features, words = rest[0], rest[1 : 1 + len(MASKS)], rest[1 + len(MASKS) :]
        scores, none = self.selector.match(CandidateTokens(*tokens), Words(*words))
        logits = self.boxmask(MaskFeatures(*features), choose(scores, squares))
        return (logits, presence(scores, none)) if self.with_presence else logits


def _without_words(selector: Selector) -> Selector:
    """A copy that shares all but the word table, which only the text encoder has, joined."""
    other = copy.copy(selector)
    other._modules = {name: module for name, module in selector._modules.items() if name != "table"}
    other._parameters = {name: value for name, value in selector._parameters.items() if name != "learned"}
    return other


def _convolutions(prefix: str, module: nn.Module) -> tuple[str, ...]:
    """Names of the weights of all convolutions in a module that is called `prefix`."""
    found = [name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)]
    return tuple(f"{prefix}.{name}.weight" for name in found)
