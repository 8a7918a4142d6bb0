"""Synthetic scenes with prompts that each match exactly one object: the default model's training data.

`python -m training.scenes.synthetic --output DIR --split val --count 500` writes them as labelled JSON Lines.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cris_edge.errors import DataError
from cris_edge.image.coco import encode_rle
from training.data.lines import write_lines
from training.scenes.describing import Reference, describe
from training.scenes.drawing import RESERVED, SMALLEST, draw_scene, scene_rng
from training.scenes.generalized import Prompt, generalize
from training.scenes.scene import SPLITS, Scene


class SyntheticScenes:
    """Scenes with prompts, drawn on access; scene i depends only on (split, seed, i).

    Args:
        split: One of `SPLITS`.
        length: Number of scenes.
        seed: 0 <= seed < 2**64.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        sentences_per_scene: Number of prompts of every scene; one is repeated where a scene allows fewer.
        generalized: Whether some prompts match nothing, or several objects (`training.scenes.generalized`).

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        split: str,
        length: int,
        seed: int = 0,
        height: int = 240,
        width: int = 320,
        sentences_per_scene: int = 4,
        *,
        generalized: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}. Available: {', '.join(SPLITS)}.")
        if length < 0 or sentences_per_scene < 1 or not 0 <= seed < 1 << 64:
            raise ValueError(
                f"length {length}, sentences_per_scene {sentences_per_scene} or seed {seed} is out of range; "
                "expected length >= 0, sentences_per_scene >= 1 and 0 <= seed < 2**64."
            )
        self.split, self.length, self.seed = split, length, seed
        self.height, self.width, self.sentences_per_scene = height, width, sentences_per_scene
        self.generalized = generalized

    def __len__(self) -> int:
        return self.length

    def example(self, index: int) -> tuple[Scene, list[Reference]]:
        """Return scene `index` and its `sentences_per_scene` references."""
        if not 0 <= index < self.length:
            raise IndexError(f"Scene {index} of {self.length}; expected 0 to {self.length - 1}.")
        targets = RESERVED if self.split == "compositions" else None
        for attempt in range(256):  # a scene without any unambiguous prompt is replaced
            seed = (self.seed << 48 | index) << 8 | attempt
            scene = draw_scene(seed, self.split, self.height, self.width)
            rng = scene_rng(seed, self.split, stream=1)
            found = describe(scene, rng, self.split, self.sentences_per_scene, targets=targets)
            if found:
                missing = self.sentences_per_scene - len(found)
                return scene, [*found, *(rng.choice(found) for _ in range(missing))]
        raise AssertionError(f"no prompt for scene {index} of {self.split}, seed {self.seed}")

    def prompts(self, index: int) -> tuple[Scene, list[Prompt]]:
        """Return scene `index` and its prompts; where `generalized`, some match nothing or several objects."""
        scene, references = self.example(index)
        if not self.generalized:
            return scene, [Prompt(r.prompt, (r.index,), r.family) for r in references]
        return scene, generalize(scene, references, scene_rng(self.seed << 48 | index, self.split, stream=1))

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], list[str], list[NDArray[np.bool_]]]:
        """Return the image (H, W, 3) uint8 RGB, its prompts, and for each a mask (H, W) bool."""
        scene, prompts = self.prompts(index)
        return scene.image, [prompt.text for prompt in prompts], [scene.union(p.indices) for p in prompts]


def write(output: Path, scenes: SyntheticScenes) -> int:
    """Write scenes as labelled JSON Lines, one line per described object, with PNG images beside it.

    Args:
        output: Folder for `SPLIT.jsonl` and `images/`.
        scenes: The scenes to write.

    Returns:
        Number of lines written.

    Raises:
        OSError: The folder cannot be written.
        DataError: The JSON Lines file cannot be written.
    """
    folder = output / "images"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in tqdm(range(len(scenes)), desc=scenes.split, unit="scene", disable=None):
        scene, references = scenes.example(i)
        name = f"{scenes.split}_{i:06d}.png"
        ok, data = cv2.imencode(".png", cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
        if not ok:
            raise OSError(f"{name} could not be encoded")
        (folder / name).write_bytes(data.tobytes())
        named: dict[int, list[Reference]] = {}
        for reference in dict.fromkeys(references):
            named.setdefault(reference.index, []).append(reference)
        for index, group in named.items():
            thing = scene.objects[index]
            lines.append(
                {
                    "image": f"images/{name}",
                    "sentences": [r.prompt for r in group],
                    "mask": encode_rle(scene.mask(index)),
                    "category": thing.kind,
                    "colour": thing.colour,
                    "families": [r.family for r in group],
                    "split": scenes.split,
                }
            )
    write_lines(output / f"{scenes.split}.jsonl", (json.dumps(line) + "\n" for line in lines))
    return len(lines)


@click.command()
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Output folder.")
@click.option("--split", type=click.Choice(SPLITS), default="val", show_default=True)
@click.option("--count", type=click.IntRange(1), default=500, show_default=True, help="Number of scenes.")
@click.option("--seed", type=click.IntRange(0, (1 << 64) - 1), default=0, show_default=True)
@click.option("--height", type=click.IntRange(SMALLEST), default=240, show_default=True, help="In pixels.")
@click.option("--width", type=click.IntRange(SMALLEST), default=320, show_default=True, help="In pixels.")
@click.option("--sentences", type=click.IntRange(1), default=4, show_default=True, help="Prompts per scene.")
def main(output: Path, split: str, count: int, seed: int, height: int, width: int, sentences: int) -> None:
    """Write synthetic scenes as labelled JSON Lines."""
    try:
        written = write(output, SyntheticScenes(split, count, seed, height, width, sentences))
    except (OSError, DataError) as error:
        message = f"The scenes could not be written: {error}. Check the folder and the free space."
        raise click.ClickException(message) from None
    click.echo(f"{output / split}.jsonl: {count} scenes, {written} objects", err=True)


if __name__ == "__main__":
    main()
