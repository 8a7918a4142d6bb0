"""Sources of examples: labelled JSON Lines or synthetic scenes, behind one small protocol.

An example is an image with sentences and the mask of each. A source has a length and returns the same example for the
same index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cris_edge.errors import DataError, OptionError
from cris_edge.image import load_image
from cris_edge.image.labelled import Sample, read_samples
from training.data.negatives import Negatives
from training.scenes.drawing import SMALLEST
from training.scenes.generalized import absent_prompt
from training.scenes.scene import SPLITS
from training.scenes.synthetic import SyntheticScenes

Mask = npt.NDArray[np.bool_]

SCENE_SHAPES = ((1.0, 1.0), (0.75, 1.0), (1.0, 0.75))
"""Height and width of synthetic scenes relative to the input size, in turn: square, landscape and portrait."""
TRAIN_SCENES = 2_000_000
"""Synthetic scenes per epoch unless the source says otherwise: more than a run sees, so that none repeats."""


@dataclass(frozen=True)
class Example:
    """An image, its sentences, and a function from a sentence's number to its mask.

    Attributes:
        id: its name in error messages and galleries.
        image: (H, W, 3) uint8 RGB.
        sentences: at least one.
        truth: sentence number -> (H, W) bool, decoded on demand; all False for those in `absent`.
        absent: numbers of the sentences that match nothing.
        negative: draws a further prompt that matches nothing, or None where none is known.
    """

    id: str
    image: npt.NDArray[np.uint8]
    sentences: list[str]
    truth: Callable[[int], Mask]
    absent: frozenset[int] = frozenset()
    negative: Callable[[np.random.Generator], str | None] | None = None


class Source(Protocol):
    """A data set: ``len(source)`` examples, each by its index and the input size it is loaded for."""

    name: str
    split: str
    label: str
    """Name in messages: the path of a file, or a description of scenes."""

    @property
    def negatives(self) -> bool:
        """Whether examples have prompts that match nothing."""

    def __len__(self) -> int: ...

    def load(self, index: int, size: int) -> Example:
        """Return example ``index``."""

    def id(self, index: int) -> str:
        """Return the example's name without loading it."""


class LabelledSource:
    """Samples of a JSON Lines file, one example per line as in the reference's training, or one per image.

    Args:
        path: the file.
        by_image: whether lines of the same image become one example.

    Raises:
        DataError: the file cannot be used, or holds no samples.
    """

    def __init__(self, path: Path, *, by_image: bool = False) -> None:
        samples = read_samples(path)
        self.name, self.split, self.label = path.resolve().parent.name, path.stem, str(path)
        groups: dict[object, list[Sample]] = {}
        for number, sample in enumerate(samples):
            groups.setdefault(sample.image if by_image else number, []).append(sample)
        self._groups = list(groups.values())
        self._negatives = Negatives(samples)
        self._ids = [self._name(group, path) for group in self._groups]

    @staticmethod
    def _name(group: list[Sample], path: Path) -> str:
        image = group[0].image
        shown = image.relative_to(path.parent) if image.is_relative_to(path.parent) else image
        return str(shown) if len(group) > 1 else f"{shown} ({group[0].sentences[0]!r})"

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def negatives(self) -> bool:
        """Whether the data states what its images do not contain."""
        return bool(self._negatives)

    def id(self, index: int) -> str:
        """Return the image's path relative to the file, and the first sentence."""
        return self._ids[index]

    def load(self, index: int, size: int) -> Example:
        """Return example ``index``; ``size`` makes no difference.

        Raises:
            ImageError: the image cannot be read.
            DataError: (from the example's ``truth``) a mask is not of its image's size, or cannot be decoded.
        """
        group = self._groups[index]
        image = load_image(group[0].image)
        owner = [(sample, sentence) for sample in group for sentence in sample.sentences]
        cache: dict[int, Mask] = {}

        def truth(number: int) -> Mask:
            sample = owner[number][0]
            if id(sample) not in cache:
                cache[id(sample)] = sample.truth(image.shape[:2])
            return cache[id(sample)]

        absent = frozenset(number for number, (sample, _) in enumerate(owner) if sample.no_target)
        sentences = [sentence for _, sentence in owner]
        return Example(self._ids[index], image, sentences, truth, absent, lambda rng: self._negatives.draw(group, rng))


class SceneSource:
    """Synthetic scenes, each drawn on demand from its number, at the input size of the network.

    Args:
        split: one of ``training.scenes.scene.SPLITS``.
        length: number of scenes.
        seed: 0 <= seed < 2**64.
        generalized: whether a third of the prompts match nothing, and some mean several objects.
    """

    negatives = True

    def __init__(self, split: str, length: int, seed: int, *, generalized: bool = False) -> None:
        self.name, self.split, self.label = "scenes", split, f"scenes:{split}:{length}:{seed}"
        self._generalized = generalized
        self._length, self._seed = length, seed
        self._scenes: dict[tuple[int, int], SyntheticScenes] = {}

    def __len__(self) -> int:
        return self._length

    def id(self, index: int) -> str:
        """Return split, seed and number, from which the scene can be drawn again."""
        return f"scenes:{self.split}:{self._seed}{':generalized' * self._generalized}#{index}"

    def load(self, index: int, size: int) -> Example:
        """Draw scene ``index`` for an input of ``size`` pixels.

        Raises:
            DataError: the size is too small for a scene.
        """
        height, width = (round(size * side) for side in SCENE_SHAPES[index % len(SCENE_SHAPES)])
        if min(height, width) < SMALLEST:
            raise DataError(
                f"a scene for an input of {size} pixels would be {width} x {height}, and its shorter side has at least "
                f"{SMALLEST}; give larger --sizes and --input-size, such as 128."
            )
        if (height, width) not in self._scenes:
            self._scenes[height, width] = SyntheticScenes(
                self.split,
                self._length,
                seed=self._seed,
                height=height,
                width=width,
                sentences_per_scene=SENTENCES_PER_SCENE,
                generalized=self._generalized,
            )
        scene, prompts = self._scenes[height, width].prompts(index)
        # A scene about which little can be said repeats a sentence; it counts once.
        prompts = list({prompt.text: prompt for prompt in reversed(prompts)}.values())[::-1]

        def negative(rng: np.random.Generator) -> str | None:
            return absent_prompt(scene, Random(int(rng.integers(1 << 62))))

        return Example(
            self.id(index),
            scene.image,
            [prompt.text for prompt in prompts],
            lambda number: scene.union(prompts[number].indices),
            frozenset(number for number, prompt in enumerate(prompts) if not prompt.indices),
            negative,
        )


SENTENCES_PER_SCENE = 4
"""Prompts per scene."""


def open_source(text: str, *, by_image: bool = False) -> Source:
    """Open ``scenes[:SPLIT[:LENGTH[:SEED[:generalized]]]]`` or the path of a JSON Lines file.

    Parts between colons may be left empty for their defaults.

    Raises:
        DataError: the file cannot be used.
        OptionError: the description of scenes cannot be read.
    """
    if text == "scenes" or text.startswith("scenes:"):
        parts = text.split(":")[1:]
        split = parts[0] if parts and parts[0] else "train"
        try:
            length = int(parts[1]) if parts[1:] and parts[1] else (TRAIN_SCENES if split == "train" else 500)
            seed = int(parts[2]) if parts[2:] and parts[2] else 0
        except ValueError:
            length, seed = 0, 0
        known = parts[3:] in ([], ["generalized"])
        if length < 1 or not 0 <= seed < 1 << 64 or not known or split not in SPLITS:
            raise OptionError(
                f"the data source {text!r} cannot be read; expected scenes:SPLIT:LENGTH:SEED, such as "
                f"scenes:val:500:1, with SPLIT one of {', '.join(SPLITS)}, and :generalized after it for prompts that "
                "match nothing or several objects."
            )
        return SceneSource(split, length, seed, generalized=bool(parts[3:]))
    path = Path(text)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"the data file {text} {what}; give a JSON Lines file, or scenes:SPLIT:LENGTH:SEED.")
    return LabelledSource(path, by_image=by_image)
