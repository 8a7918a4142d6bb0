"""Drawn scenes with sentences that are each true of exactly one object: the data of the embedded model.

`python -m training.scenes.synthetic --output DIR --split val --count 500` writes them as labelled JSON Lines.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

import click
import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cris_edge.errors import DataError
from training.data.lines import write_lines
from training.scenes.backdrop import backdrop, camera, cast_shadows, clutter
from training.scenes.describing import Reference, describe
from training.scenes.drawing import sprite
from training.scenes.generalized import Prompt, generalize
from training.scenes.scene import COLOURS, SPLITS, Scene, SceneObject
from training.scenes.shapes import KINDS

_KIND_NAMES = tuple(KINDS)
_COLOUR_NAMES = tuple(COLOURS)
RESERVED = frozenset((kind, _COLOUR_NAMES[(3 * k + 1) % 10]) for k, kind in enumerate(_KIND_NAMES))
"""Pairs (kind, colour) that only the split `compositions` draws: one colour of each kind, a tenth of all."""

SMALLEST = 96
"""Pixels of the shorter side of a picture below which nothing can be told apart."""

_SIZE_FACTOR = {"small": 0.74, "medium": 1.0, "large": 1.32}


def scene_rng(seed: int, split: str, stream: int = 0) -> Random:
    """Return the random numbers of one scene; no two splits, seeds or streams share any.

    Args:
        seed: 0 <= seed < 2**128.
        split: one of `SPLITS`.
        stream: 0 for the picture, 1 for the sentences.

    Raises:
        ValueError: the split is unknown or the seed out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; give one of {', '.join(SPLITS)}")
    if not 0 <= seed < 1 << 128:
        raise ValueError(f"seed {seed} is out of range; give 0 <= seed < 2**128")
    return Random(((SPLITS.index(split) + 1) << 128 | seed) << 1 | stream)


def _allowed(kind: str, colour: str, split: str) -> bool:
    return split == "compositions" or (kind, colour) not in RESERVED


def _cast(rng: Random, split: str) -> list[tuple[str, str, str, str]]:
    """Choose what is in the scene as (kind, colour, pattern, size), with look-alikes so that sentences matter."""
    count = rng.choices(range(3, 11), (10, 14, 18, 18, 14, 11, 8, 7))[0]
    things: list[tuple[str, str, str, str]] = []

    def add(kind: str | None = None, colour: str | None = None) -> None:
        for _ in range(20):
            k = kind or rng.choice(_KIND_NAMES)
            c = colour or rng.choice(_COLOUR_NAMES)
            if _allowed(k, c, split):
                pattern = rng.choices(("plain", "striped", "dotted"), (60, 22, 18))[0]
                things.append((k, c, pattern, rng.choices(("small", "medium", "large"), (33, 34, 33))[0]))
                return

    if split == "compositions":
        kind, colour = rng.choice(sorted(RESERVED))
        add(kind, colour)
        add(kind)
        add(None, colour)
        if rng.random() < 0.5:
            add(*rng.choice(sorted(RESERVED)))
    focus = rng.choice(_KIND_NAMES) if not things or rng.random() < 0.5 else things[0][0]
    for _ in range(min(count, rng.choices((1, 2, 3, 4), (15, 40, 30, 15))[0])):
        add(focus)
    second = rng.choice(_KIND_NAMES)
    for _ in range(rng.choices((0, 1, 2, 3), (20, 30, 35, 15))[0]):
        add(second)
    while len(things) < count:
        draw = rng.random()
        other = rng.choice(things)
        if draw < 0.3:
            add(None, other[1])
        elif draw < 0.42:
            add(other[0], other[1])
        else:
            add()
    things = things[: max(count, 3)]
    rng.shuffle(things)
    return things


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Shared area of two boxes over the smaller one's."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _paste(image: NDArray[np.uint8], rgb: NDArray[np.uint8], alpha: NDArray[np.float32], x: int, y: int) -> None:
    """Blend a sprite that lies wholly inside the picture."""
    h, w = alpha.shape
    part = image[y : y + h, x : x + w]
    part[:] = cv2.blendLinear(rgb, part, alpha, 1 - alpha)


def draw_scene(seed: int, split: str = "train", height: int = 240, width: int = 320) -> Scene:
    """Draw one scene; the same arguments give the same scene.

    Args:
        seed: 0 <= seed < 2**128; the same number in two splits gives unrelated scenes.
        split: "train", "val", "compositions" (may draw the pairs of `RESERVED`) or "relations".
        height: of the picture in pixels, at least `SMALLEST`.
        width: of the picture in pixels, at least `SMALLEST`.

    Raises:
        ValueError: an argument is out of range.
    """
    if min(height, width) < SMALLEST:
        raise ValueError(f"a scene of {width}x{height} is too small; give at least {SMALLEST} pixels each way")
    rng = scene_rng(seed, split)
    unit = math.sqrt(height * width / (240 * 320))
    image, horizon = backdrop(height, width, rng)
    things = _cast(rng, split)
    crowd = 1.34 - 0.062 * len(things)
    nearest, farthest = height - 4.0, max(horizon + 0.06 * height, 0.3 * height)

    placed: list[tuple[int, tuple[float, float, float, float], float]] = []
    row = rng.random() < 0.22
    level = rng.uniform(farthest + 0.35 * (nearest - farthest), nearest)
    for k, (kind, _, _, size) in enumerate(things):
        factor = crowd * unit * 240 * KINDS[kind].height * _SIZE_FACTOR[size] * rng.uniform(0.94, 1.06)
        beside = rng.choice(placed)[1] if placed and rng.random() < 0.34 else None
        limit = 0.55 if beside or rng.random() < 0.25 else 0.16
        for trial in range(14):
            x = rng.uniform(0, width)
            ground = rng.uniform(farthest, nearest)
            if row and trial < 4:
                x = (k + 0.5 + rng.uniform(-0.2, 0.2)) * width / len(things)
                ground = level + rng.uniform(-0.04, 0.04) * height
            elif beside and trial < 6:  # in front of another or behind it, so that such sentences have a subject
                x = (beside[0] + beside[2]) / 2 + rng.uniform(-0.4, 0.4) * (beside[2] - beside[0])
                ground = beside[3] + rng.choice((-1, 1)) * rng.uniform(0.07, 0.24) * height
                ground = min(nearest, max(farthest, ground))
            tall = factor * (0.82 + 0.36 * (ground - farthest) / (nearest - farthest))
            wide = tall * KINDS[kind].aspect
            ground = min(nearest, max(ground, tall + 4))
            x = min(width - wide / 2 - 3, max(wide / 2 + 3, x))
            place = (x - wide / 2, ground - tall, x + wide / 2, ground)
            if tall > height * 0.62 or wide > width * 0.5:
                continue
            if all(_overlap(place, other[1]) < limit for other in placed):
                placed.append((k, place, tall))
                break
    placed.sort(key=lambda p: p[1][3])

    feet, drawn = [], []
    for k, place, tall in placed:
        kind, colour, pattern, size = things[k]
        base = COLOURS[colour]
        jitter = rng.randint(-12, 12)
        shade = tuple(min(255, max(0, c + jitter + rng.randint(-7, 7))) for c in base)
        rgb, alpha = sprite(kind, (shade[0], shade[1], shade[2]), pattern, tall, rng)
        h, w = alpha.shape
        x = min(width - w, max(0, round((place[0] + place[2]) / 2 - w / 2)))
        y = min(height - h, max(0, round(place[3] - h)))
        drawn.append((k, rgb, alpha, x, y))
        feet.append((x + w / 2, float(y + h), float(w), float(h)))
    litter = []
    for _ in range(rng.choices((0, 1, 2, 3, 4), (30, 25, 20, 15, 10))[0]):
        x, y = rng.randint(12, width - 13), rng.randint(int(farthest), height - 8)
        w, h = clutter(image, x, y, unit, rng)
        spot = (x - w // 2, y - h // 2, x + w // 2, y + h // 2)
        centre = (float(x), float(y))
        litter.append(SceneObject(-1, "clutter", "", "plain", "medium", centre, spot, float(y), (w, h), w * h, w * h))
    cast_shadows(image, feet, rng)

    labels = np.zeros((height, width), np.uint8)
    whole = []
    for i, (_, rgb, alpha, x, y) in enumerate(drawn):
        h, w = alpha.shape
        solid = cv2.compare(alpha, 0.5, cv2.CMP_GE)
        whole.append(cv2.countNonZero(solid))
        _paste(image, rgb, alpha, x, y)
        cv2.copyTo(np.full((h, w), i + 1, np.uint8), solid, labels[y : y + h, x : x + w])

    objects = []
    for i, (k, _, alpha, x, y) in enumerate(drawn):
        kind, colour, pattern, size = things[k]
        h, w = alpha.shape
        seen = cv2.compare(labels[y : y + h, x : x + w], i + 1, cv2.CMP_EQ)
        moments = cv2.moments(seen, binaryImage=True)
        visible = round(moments["m00"])
        bx, by, bw, bh = cv2.boundingRect(seen)
        middle = (x + moments["m10"] / visible, y + moments["m01"] / visible) if visible else (x + w / 2, y + h / 2)
        box = (x + bx, y + by, x + bx + bw, y + by + bh)
        thing = SceneObject(i, kind, colour, pattern, size, middle, box, float(y + h), (w, h), whole[i], visible)
        objects.append(thing)
    return Scene(camera(image, rng), labels, tuple(objects), tuple(litter))


class SyntheticScenes:
    """Scenes with sentences by number, drawn when asked for; example i depends on (split, seed, i) alone.

    Args:
        split: one of `SPLITS`.
        length: how many examples there are.
        seed: 0 <= seed < 2**64.
        height: of the pictures in pixels.
        width: of the pictures in pixels.
        sentences_per_scene: every example has exactly so many; one may come twice where a scene allows fewer.
        generalized: whether some prompts match nothing, or several objects (`training.scenes.generalized`).

    Raises:
        ValueError: an argument is out of range.
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
            raise ValueError(f"split {split!r} is unknown; give one of {', '.join(SPLITS)}")
        if length < 0 or sentences_per_scene < 1 or not 0 <= seed < 1 << 64:
            raise ValueError(
                f"length {length}, sentences_per_scene {sentences_per_scene} or seed {seed} is out of range; "
                "give length >= 0, sentences_per_scene >= 1 and 0 <= seed < 2**64"
            )
        self.split, self.length, self.seed = split, length, seed
        self.height, self.width, self.sentences_per_scene = height, width, sentences_per_scene
        self.generalized = generalized

    def __len__(self) -> int:
        return self.length

    def example(self, index: int) -> tuple[Scene, list[Reference]]:
        """Return scene `index` and its references, as many as asked for."""
        if not 0 <= index < self.length:
            raise IndexError(f"example {index} of {self.length}; give 0 to {self.length - 1}")
        targets = RESERVED if self.split == "compositions" else None
        for attempt in range(256):  # a scene about which nothing can be said is drawn anew
            seed = (self.seed << 48 | index) << 8 | attempt
            scene = draw_scene(seed, self.split, self.height, self.width)
            rng = scene_rng(seed, self.split, stream=1)
            found = describe(scene, rng, self.split, self.sentences_per_scene, targets=targets)
            if found:
                wanted = self.sentences_per_scene
                return scene, [*found, *(rng.choice(found) for _ in range(wanted - len(found)))]
        raise AssertionError(f"no sentence for example {index} of {self.split}, seed {self.seed}")

    def prompts(self, index: int) -> tuple[Scene, list[Prompt]]:
        """Return scene `index` and its prompts; where `generalized`, some match nothing or several objects."""
        scene, references = self.example(index)
        if not self.generalized:
            return scene, [Prompt(r.sentence, (r.index,), r.family) for r in references]
        return scene, generalize(scene, references, scene_rng(self.seed << 48 | index, self.split, stream=1))

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], list[str], list[NDArray[np.bool_]]]:
        """Return the picture (H, W, 3) uint8 RGB, its sentences, and for each a mask (H, W) bool."""
        scene, prompts = self.prompts(index)
        masks = [np.isin(scene.labels, [number + 1 for number in prompt.indices]) for prompt in prompts]
        return scene.image, [prompt.sentence for prompt in prompts], masks


def rle(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Return a mask (H, W) as an uncompressed COCO RLE object: runs of 0 and 1 in turn, column by column."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def write(output: Path, scenes: SyntheticScenes) -> int:
    """Write scenes as labelled JSON Lines, one line per object named, with PNG pictures beside it.

    Args:
        output: a folder; `SPLIT.jsonl` and `images/` are written into it.
        scenes: what to write.

    Returns:
        How many lines were written.

    Raises:
        OSError: the folder cannot be written.
        DataError: the list cannot be written.
    """
    folder = output / "images"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in tqdm(range(len(scenes)), desc=scenes.split, unit="scene", disable=None):
        scene, references = scenes.example(i)
        name = f"{scenes.split}_{i:06d}.png"
        ok, data = cv2.imencode(".png", cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
        if not ok:
            raise OSError(f"the picture {name} could not be encoded")
        (folder / name).write_bytes(data.tobytes())
        named: dict[int, list[Reference]] = {}
        for reference in dict.fromkeys(references):
            named.setdefault(reference.index, []).append(reference)
        for index, group in named.items():
            thing = scene.objects[index]
            lines.append(
                {
                    "image": f"images/{name}",
                    "sentences": [r.sentence for r in group],
                    "mask": rle(scene.mask(index)),
                    "category": thing.kind,
                    "colour": thing.colour,
                    "families": [r.family for r in group],
                    "split": scenes.split,
                }
            )
    write_lines(output / f"{scenes.split}.jsonl", (json.dumps(line) + "\n" for line in lines))
    return len(lines)


@click.command()
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write into.")
@click.option("--split", type=click.Choice(SPLITS), default="val", show_default=True)
@click.option("--count", type=click.IntRange(1), default=500, show_default=True, help="Scenes.")
@click.option("--seed", type=click.IntRange(0, (1 << 64) - 1), default=0, show_default=True)
@click.option("--height", type=click.IntRange(SMALLEST), default=240, show_default=True)
@click.option("--width", type=click.IntRange(SMALLEST), default=320, show_default=True)
@click.option("--sentences", type=click.IntRange(1), default=4, show_default=True, help="Sentences per scene.")
def main(output: Path, split: str, count: int, seed: int, height: int, width: int, sentences: int) -> None:
    """Write drawn scenes as labelled JSON Lines."""
    try:
        written = write(output, SyntheticScenes(split, count, seed, height, width, sentences))
    except (OSError, DataError) as error:
        message = f"the scenes could not be written: {error}; check the folder and the space left"
        raise click.ClickException(message) from None
    click.echo(f"{output / split}.jsonl: {count} scenes, {written} objects named", err=True)


if __name__ == "__main__":
    main()
