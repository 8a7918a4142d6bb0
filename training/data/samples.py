"""Where examples come from: labelled JSON Lines or drawn scenes, behind one small protocol.

An example is an image with sentences and the mask each of them names. A source has a length and gives example ``i``,
always the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cris_edge.errors import DataError, OptionError
from cris_edge.image import load_image
from cris_edge.image.labelled import Sample, read_samples
from training.scenes.drawing import SMALLEST
from training.scenes.scene import SPLITS
from training.scenes.synthetic import SyntheticScenes

Mask = npt.NDArray[np.bool_]

SCENE_SHAPES = ((1.0, 1.0), (0.75, 1.0), (1.0, 0.75))
"""Height and width of drawn scenes relative to the input size, in turn: square, landscape and portrait photos."""
TRAIN_SCENES = 2_000_000
"""Drawn scenes per epoch unless the source says otherwise: more than a run sees, so that none comes twice."""


@dataclass(frozen=True)
class Example:
    """An image, its sentences, and a function from a sentence's number to its mask.

    Attributes:
        id: what error messages and galleries call it.
        image: (H, W, 3) uint8 RGB.
        sentences: at least one.
        truth: sentence number -> (H, W) bool; decoded when asked for.
    """

    id: str
    image: npt.NDArray[np.uint8]
    sentences: list[str]
    truth: Callable[[int], Mask]


class Source(Protocol):
    """A data set: ``len(source)`` examples, each given by its index and the input size it will be shown at."""

    name: str
    split: str

    def __len__(self) -> int: ...

    def load(self, index: int, size: int) -> Example:
        """Return example ``index``."""

    def id(self, index: int) -> str:
        """Return what the example is called, without loading it."""


class LabelledSource:
    """Samples of a JSON Lines file; by object as the reference trains, or all objects of an image together.

    Args:
        path: the file.
        by_image: whether lines of the same image become one example.

    Raises:
        DataError: the file cannot be used, or holds no samples.
    """

    def __init__(self, path: Path, *, by_image: bool = False) -> None:
        samples = read_samples(path)
        self.name, self.split = path.resolve().parent.name, path.stem
        groups: dict[object, list[Sample]] = {}
        for number, sample in enumerate(samples):
            groups.setdefault(sample.image if by_image else number, []).append(sample)
        self._groups = list(groups.values())
        self._ids = [self._name(group, path) for group in self._groups]

    @staticmethod
    def _name(group: list[Sample], path: Path) -> str:
        image = group[0].image
        shown = image.relative_to(path.parent) if image.is_relative_to(path.parent) else image
        return str(shown) if len(group) > 1 else f"{shown} ({group[0].sentences[0]!r})"

    def __len__(self) -> int:
        return len(self._groups)

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

        return Example(self._ids[index], image, [sentence for _, sentence in owner], truth)


class SceneSource:
    """Scenes drawn on demand, each one from its number, at the size the network is shown."""

    def __init__(self, split: str, length: int, seed: int) -> None:
        self.name, self.split = "scenes", split
        self._length, self._seed = length, seed
        self._scenes: dict[tuple[int, int], SyntheticScenes] = {}

    def __len__(self) -> int:
        return self._length

    def id(self, index: int) -> str:
        """Return split, seed and number, from which the scene can be drawn again."""
        return f"scenes:{self.split}:{self._seed}#{index}"

    def load(self, index: int, size: int) -> Example:
        """Draw scene ``index`` for an input of ``size`` pixels.

        Raises:
            DataError: nothing can be drawn so small.
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
            )
        image, sentences, masks = self._scenes[height, width][index]
        # A scene about which little can be said repeats a sentence; it counts once.
        first = list({sentence: number for number, sentence in reversed(list(enumerate(sentences)))}.items())[::-1]
        kept = [masks[number] for _, number in first]
        return Example(self.id(index), image, [sentence for sentence, _ in first], kept.__getitem__)


SENTENCES_PER_SCENE = 4
"""Sentences drawn for each scene."""


def open_source(text: str, *, by_image: bool = False) -> Source:
    """Open ``scenes[:SPLIT[:LENGTH[:SEED]]]`` or the path of a JSON Lines file.

    Raises:
        DataError: the file cannot be used.
        OptionError: the description of scenes cannot be read.
    """
    if text == "scenes" or text.startswith("scenes:"):
        parts = text.split(":")[1:]
        split = parts[0] if parts and parts[0] else "train"
        try:
            length = int(parts[1]) if len(parts) > 1 else (TRAIN_SCENES if split == "train" else 500)
            seed = int(parts[2]) if len(parts) > 2 else 0
        except ValueError:
            length, seed = 0, 0
        if length < 1 or not 0 <= seed < 1 << 64 or len(parts) > 3 or split not in SPLITS:
            raise OptionError(
                f"the data source {text!r} cannot be read; expected scenes:SPLIT:LENGTH:SEED, such as "
                f"scenes:val:500:1, with SPLIT one of {', '.join(SPLITS)}."
            )
        return SceneSource(split, length, seed)
    path = Path(text)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"the data file {text} {what}; give a JSON Lines file, or scenes:SPLIT:LENGTH:SEED.")
    return LabelledSource(path, by_image=by_image)
