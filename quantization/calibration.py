"""Calibration samples: inputs of each of the three modules, from which the ranges of activations are calibrated."""

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

FEWEST = 8  # images; ranges of fewer do not hold for other images


class Calibration:
    """Images and prompts sampled from a source, and the float network's features of them.

    Args:
        network: In float.
        source: Labelled data or synthetic scenes.
        count: Number of images, sampled without replacement.
        seed: Seed of the sampling.

    Raises:
        DataError: The source has too few images.
    """

    def __init__(self, network: DeployNetwork, source: Source, count: int, seed: int) -> None:
        require_enough(source)
        generator = np.random.default_rng([seed, 1])
        chosen = generator.permutation(min(len(source), 1 << 24))[: min(count, len(source))]
        architecture, tokenizer = network.architecture, Tokenizer()
        self.samples: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in GRAPHS}
        for index in chosen:
            example = source.load(int(index), architecture.input_size)
            prompt = example.sentences[int(generator.integers(len(example.sentences)))]
            image = torch.from_numpy(preprocess(example.image, architecture.input_size)[0])
            tokens = torch.from_numpy(tokenizer([prompt], length=architecture.word_len))
            with torch.no_grad():
                features = {**network.encode_image(image), **network.encode_text(tokens)}
            self.samples["image_encoder"].append((image,))
            self.samples["text_encoder"].append((tokens,))
            self.samples["mask_decoder"].append(tuple(features[name] for name in network.mask_decoder.input_names))


class Part:
    """Every second example of a source."""

    def __init__(self, source: Source, indices: Sequence[int], name: str) -> None:
        self.name, self.split = source.name, f"{source.split} ({name})"
        self.label, self.negatives = f"{source.label} ({name})", source.negatives
        self._source, self._indices = source, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def id(self, index: int) -> str:
        """Return the source's name of an example."""
        return self._source.id(self._indices[index])

    def load(self, index: int, size: int) -> Example:
        """Load an example from the source."""
        return self._source.load(self._indices[index], size)


def halves(source: Source) -> tuple[Part, Part]:
    """Split a source by even and odd index: layers are chosen on the first half, and results reported on the second.

    Raises:
        DataError: One half would be empty.
    """
    require_two(source)
    count = range(len(source))
    return Part(source, count[::2], "chosen on"), Part(source, count[1::2], "reported")


def require_enough(source: Source) -> None:
    """Raise `DataError` if a source has too few images to calibrate with."""
    if len(source) < FEWEST:
        raise DataError(f"{source.label} has {_images(source)} to calibrate with; expected at least {FEWEST}.")


def require_two(source: Source) -> None:
    """Raise `DataError` if a source cannot be split into halves."""
    if len(source) < 2:
        raise DataError(
            f"{source.label} has {_images(source)} to validate with; expected at least 2, one half to choose on and "
            "one to report."
        )


def _images(source: Source) -> str:
    return "1 image" if len(source) == 1 else f"{len(source)} images"
