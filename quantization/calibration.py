"""Samples from which the ranges of activations are learnt: what each of the three modules is called with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cris_edge.errors import DataError
from cris_edge.image import preprocess
from cris_edge.tokenizer import Tokenizer
from quantization.deploy_network import GRAPHS, DeployNetwork
from training.data.samples import Example, Source

FEWEST = 8  # images: ranges seen on fewer say nothing about the next image


class Calibration:
    """Images and sentences drawn from a source, and what the float network makes of them.

    Args:
        network: In float.
        source: Labelled data or drawn scenes.
        count: Images to draw, without repetition.
        seed: Which.

    Raises:
        DataError: The source has too few images.
    """

    def __init__(self, network: DeployNetwork, source: Source, count: int, seed: int) -> None:
        if len(source) < FEWEST:
            raise DataError(
                f"{source.name} has {len(source)} image{'s' if len(source) > 1 else ''} to calibrate with; "
                f"expected at least {FEWEST}: give more data with --data."
            )
        generator = np.random.default_rng([seed, 1])
        chosen = generator.permutation(min(len(source), 1 << 24))[: min(count, len(source))]
        architecture, tokenizer = network.architecture, Tokenizer()
        self.samples: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in GRAPHS}
        for index in chosen:
            example = source.load(int(index), architecture.input_size)
            sentence = example.sentences[int(generator.integers(len(example.sentences)))]
            image = torch.from_numpy(preprocess(example.image, architecture.input_size)[0])
            tokens = torch.from_numpy(tokenizer([sentence], length=architecture.word_len))
            with torch.no_grad():
                features = {**network.encode_image(image), **network.encode_text(tokens)}
            self.samples["image_encoder"].append((image,))
            self.samples["text_encoder"].append((tokens,))
            self.samples["mask_decoder"].append(tuple(features[name] for name in network.mask_decoder.input_names))


class Part:
    """Every second example of a source: layers are chosen on one half, and what they give is measured on the other."""

    def __init__(self, source: Source, indices: Sequence[int], name: str) -> None:
        self.name, self.split = source.name, f"{source.split} ({name})"
        self._source, self._indices = source, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def id(self, index: int) -> str:
        """As the source calls it."""
        return self._source.id(self._indices[index])

    def load(self, index: int, size: int) -> Example:
        """As the source gives it."""
        return self._source.load(self._indices[index], size)


def halves(source: Source) -> tuple[Part, Part]:
    """The examples of even and of odd number; raises `DataError` where one of them would be empty."""
    if len(source) < 2:
        raise DataError(
            f"{source.name} has {len(source)} image to validate with; expected two or more, one half to choose on and "
            "one to report: give more data with --val."
        )
    count = range(len(source))
    return Part(source, count[::2], "chosen on"), Part(source, count[1::2], "reported")
