"""``python -m training.maskhead``: train the box-to-mask head on the objects of a photo collection that have masks.

The backbone is frozen and computed on the fly; the head sees each object in its labelled box or in the detection that
found it, jittered. A run that was interrupted continues from its checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cris_edge.errors import CheckpointError, CrisEdgeError
from cris_edge.image import THRESHOLD, load_image, postprocess, preprocess
from cris_edge.metrics import iou
from training.checkpoint import read_checkpoint, write_atomically
from training.data.photos import Photo, PhotoObject, read_photos
from training.finder import load_finder
from training.model.boxmask import SIDE, BoxMask, MaskFeatures, expand
from training.model.candidates import CandidateFinder, content_box, pairwise_iou, select, to_content, to_square
from training.model.roi import sample_weights

logger = logging.getLogger("cris_edge.training")

FORMAT = "cris-edge-boxmask"
SIZE = 320

_REJECTED = frozenset(("part", "all_people_in_one_mask", "approximate_split"))
_SMALLEST = 120  # square pixels of a box
_SAME = 0.5  # IoU of a detection with the label that it found


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the head is trained.

    Attributes:
        minutes: Of training, all runs together.
        photos: A step.
        objects: Of a photo, at most.
        learning_rate: The highest; cosine decay.
        decay: Of the averaged weights.
        jitter: Deviation of the boxes' sides, as a fraction of their lengths.
        stuff_share: Share of photos that are ADE20K's: masks of scenes, where most objects are not COCO's.
        seed: Of everything random.
    """

    minutes: float = 30
    photos: int = 4
    objects: int = 5
    learning_rate: float = 2e-3
    decay: float = 0.998
    jitter: float = 0.07
    stuff_share: float = 0.25
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A photo, ready for the network.

    Attributes:
        image: (1, 3, S, S).
        boxes: (N, 4), labelled, fractions of the photo.
        masks: (H, W) bool each, of the photo as it is seen.
    """

    image: Tensor
    boxes: Tensor
    masks: list[NDArray[np.bool_]]


def usable(item: PhotoObject) -> bool:
    """Whether an object teaches what fills a box."""
    if item.mask is None or item.flags & _REJECTED or item.same_class_components > 3:
        return False
    left, top, right, bottom = item.box
    return (right - left) * (bottom - top) >= _SMALLEST


def load(folder: Path, photo: Photo, items: Sequence[PhotoObject], random: np.random.Generator | None) -> Sample | None:
    """Read a photo with some of its objects; with `random`, mirrored, cropped and recoloured at random."""
    rgb = load_image(folder / photo.image)
    masks = [item.decode_mask() for item in items]
    masks = [mask for mask in masks if mask.shape == rgb.shape[:2]]
    if random is not None and masks:
        rgb, masks = _augment(rgb, masks, random)
    boxes, kept = [], []
    height, width = rgb.shape[:2]
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows) > 3 and len(columns) > 3:
            x0, x1, y0, y1 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
            boxes.append((x0 / width, y0 / height, x1 / width, y1 / height))
            kept.append(mask)
    if not kept:
        return None
    return Sample(
        image=torch.from_numpy(preprocess(rgb, SIZE)[0]), boxes=torch.tensor(boxes, dtype=torch.float32), masks=kept
    )


def _augment(
    rgb: NDArray[np.uint8], masks: list[NDArray[np.bool_]], random: np.random.Generator
) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    if random.random() < 0.5:
        rgb, masks = np.ascontiguousarray(rgb[:, ::-1]), [mask[:, ::-1] for mask in masks]
    if random.random() < 0.5:
        height, width = rgb.shape[:2]
        scale = random.uniform(0.5, 1.0)
        tall, wide = max(round(height * scale), 48), max(round(width * scale), 48)
        chosen = np.argwhere(masks[random.integers(len(masks))])
        cy, cx = chosen[random.integers(len(chosen))] if len(chosen) else (height // 2, width // 2)
        top = int(np.clip(cy - random.uniform(0.2, 0.8) * tall, 0, max(height - tall, 0)))
        left = int(np.clip(cx - random.uniform(0.2, 0.8) * wide, 0, max(width - wide, 0)))
        window = slice(top, top + tall), slice(left, left + wide)
        whole = [int(mask.sum()) for mask in masks]
        masks = [mask[window] for mask in masks]
        masks = [mask for mask, area in zip(masks, whole, strict=True) if mask.sum() > 0.3 * area]
        rgb = np.ascontiguousarray(rgb[window])
    if random.random() < 0.5:
        values = rgb.astype(np.float32)
        mean = values.mean()
        values = (values - mean) * random.uniform(0.75, 1.25) + mean * random.uniform(0.75, 1.25)
        rgb = (values * random.uniform(0.93, 1.07, 3)).clip(0, 255).astype(np.uint8)
    return rgb, masks


def targets(masks: Sequence[NDArray[np.bool_]], regions: Tensor) -> Tensor:
    """Masks of photos and regions (N, 4), fractions of the photo -> shares of mask in each cell, (N, 56, 56)."""
    found = []
    for mask, region in zip(masks, regions, strict=True):
        x0, y0, x1, y1 = region
        height, width = mask.shape
        pixels = torch.from_numpy(np.ascontiguousarray(mask)).float()
        down, across = sample_weights(y0, y1, SIDE, height), sample_weights(x0, x1, SIDE, width)
        u = x0 + (x1 - x0) * (torch.arange(SIDE) + 0.5) / SIDE
        v = y0 + (y1 - y0) * (torch.arange(SIDE) + 0.5) / SIDE
        inside = ((v >= 0) & (v <= 1))[:, None] & ((u >= 0) & (u <= 1))
        found.append((down @ pixels @ across.T) * inside)
    return torch.stack(found)


def loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy, heavier along the border of the object, and Dice; logits and truth (N, 56, 56)."""
    near = F.avg_pool2d(truth[:, None], 5, 1, 2, count_include_pad=False)[:, 0]
    weight = 1 + 8 * near * (1 - near)
    entropy = (F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * weight).mean((1, 2))
    share = logits.sigmoid()
    dice = 1 - (2 * (share * truth).sum((1, 2)) + 1) / (share.sum((1, 2)) + truth.sum((1, 2)) + 1)
    return (entropy + dice).mean()


class Trainer:
    """The loop, its state and its validation.

    Args:
        folder: The photo collection.
        finder: The frozen backbone and detector.
        options: How to train.
        output: Checkpoint, written every minute and read at the start where it exists.
    """

    def __init__(self, folder: Path, finder: CandidateFinder, options: Options, output: Path) -> None:
        self.folder, self.finder, self.options, self.output = folder, finder, options, output
        torch.manual_seed(options.seed)
        photos = [(photo, [item for item in photo.objects if usable(item)]) for photo in read_photos(folder)]
        photos = [(photo, items) for photo, items in photos if items]
        self.validation = [pair for pair in photos if pair[0].validation and "ade20k" not in pair[0].sources]
        training = [pair for pair in photos if not pair[0].validation]
        self.things = [pair for pair in training if "ade20k" not in pair[0].sources]
        self.scenes = [pair for pair in training if "ade20k" in pair[0].sources]
        self.head = BoxMask()
        self.optimizer = torch.optim.AdamW(self.head.parameters(), options.learning_rate, weight_decay=1e-3)
        self.average = AveragedModel(self.head, multi_avg_fn=get_ema_multi_avg_fn(options.decay))
        self.step, self.seconds = 0, 0.0
        if output.exists():
            self._restore()

    def run(self) -> None:
        """Train until the minutes are used up."""
        options, total = self.options, self.options.minutes * 60
        random = np.random.default_rng((options.seed, self.step))
        started, saved, losses = time.monotonic() - self.seconds, self.seconds, []
        while self.seconds < total:
            rate = options.learning_rate * min(1, (self.step + 1) / 100)
            rate *= 0.5 + 0.5 * math.cos(math.pi * min(1, self.seconds / total))
            for group in self.optimizer.param_groups:
                group["lr"] = rate + 1e-5
            losses.append(self._step(random))
            self.step += 1
            self.seconds = time.monotonic() - started
            if self.seconds - saved > 60 or self.seconds >= total:
                saved = self.seconds
                self._save()
                logger.info("%5.0f s, step %d, loss %.4f", self.seconds, self.step, float(np.mean(losses)))
                losses = []

    def _step(self, random: np.random.Generator) -> float:
        samples: list[Sample] = []
        while len(samples) < self.options.photos:
            pool = self.scenes if self.scenes and random.random() < self.options.stuff_share else self.things
            photo, items = pool[random.integers(len(pool))]
            picked = [items[i] for i in random.permutation(len(items))[: self.options.objects]]
            sample = load(self.folder, photo, picked, random)
            if sample is not None:
                samples.append(sample)
        image = torch.cat([sample.image for sample in samples])
        with torch.no_grad():
            pyramid = self.finder.detector(image)
            content = content_box(image)
            found = select(self.finder.detector.detect(pyramid), content, self.finder.count)
            detected = to_content(found.squares, content)
        which, squares, truth = [], [], []
        for number, sample in enumerate(samples):
            boxes = sample.boxes
            overlap, best = pairwise_iou(boxes[None], detected[number : number + 1])[0].max(1)
            swapped = (overlap > _SAME) & (torch.rand(len(boxes)) < 0.6)
            boxes = torch.where(swapped[:, None], detected[number][best], boxes)
            sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
            boxes = boxes + torch.randn_like(boxes) * self.options.jitter * sides
            truth.append(targets(sample.masks, expand(boxes)))
            squares.append(to_square(boxes[None], content[number : number + 1])[0])
            which += [number] * len(boxes)
        index = torch.tensor(which)
        features = self.head.encode(image, pyramid)
        logits = self.head.logits(MaskFeatures(*(part[index] for part in features)), torch.cat(squares))
        value = loss(logits[:, 0], torch.cat(truth))
        self.optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 2.0)
        self.optimizer.step()
        self.average.update_parameters(self.head)
        return float(value.detach())

    def _save(self) -> None:
        content = {
            "format": FORMAT,
            "state_dict": self.average.module.state_dict(),
            "resume": {
                "head": self.head.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
            },
        }
        write_atomically(self.output, content)

    def _restore(self) -> None:
        state = read_checkpoint(self.output)["resume"]
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.step, self.seconds = state["step"], state["seconds"]
        logger.info("continuing at step %d", self.step)


def load_boxmask(path: str | Path) -> BoxMask:
    """The averaged head from a checkpoint of this command, in eval mode; raises `CheckpointError` for other files."""
    content = read_checkpoint(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no box-to-mask head: train one with `python -m training.maskhead`.")
    head = BoxMask()
    head.load_state_dict(content["state_dict"])
    return head.eval().requires_grad_(False)


@torch.no_grad()
def score(
    folder: Path,
    finder: CandidateFinder,
    head: BoxMask,
    pairs: Sequence[tuple[Photo, list[PhotoObject]]],
    thresholds: Sequence[float] = (0.25, THRESHOLD, 0.45),
) -> dict[str, Any]:
    """IoU of masks on the photos themselves, pasted back and brought to their size as the SDK does.

    Returns:
        For boxes as labelled ("labelled") and as detected ("detected", only of objects that were) the number of
        objects, and by threshold their mean IoU and the share above 0.5 and 0.8.
    """
    found: dict[str, dict[float, list[float]]] = {"labelled": {}, "detected": {}}
    for photo, items in pairs:
        rgb = load_image(folder / photo.image)
        pixels, letterbox = preprocess(rgb, SIZE)
        image = torch.from_numpy(pixels)
        pyramid = finder.detector(image)
        content = content_box(image)
        detected = to_content(select(finder.detector.detect(pyramid), content, finder.count).squares, content)
        features = head.encode(image, pyramid)
        height, width = rgb.shape[:2]
        for item in items:
            truth = item.decode_mask()
            if truth.shape != (height, width):
                continue
            labelled = (torch.tensor(item.box) / torch.tensor([width, height, width, height]))[None, None]
            overlap, best = pairwise_iou(labelled, detected)[0, 0].max(0)
            boxes = {"labelled": labelled[0]}
            if overlap > _SAME:
                boxes["detected"] = detected[0, best][None]
            for kind, box in boxes.items():
                logits = head(features, to_square(box[None], content)[0])
                probability = postprocess(logits.numpy(), letterbox)
                for threshold in thresholds:
                    found[kind].setdefault(threshold, []).append(iou(probability > threshold, truth))
    return {
        kind: {
            "objects": len(next(iter(by_threshold.values()), [])),
            **{
                str(threshold): {
                    "miou": float(np.mean(values)),
                    "pr50": float(np.mean(np.array(values) > 0.5)),
                    "pr80": float(np.mean(np.array(values) > 0.8)),
                }
                for threshold, values in by_threshold.items()
            },
        }
        for kind, by_threshold in found.items()
    }


@click.command(help=__doc__)
@click.option("--photos", required=True, type=click.Path(path_type=Path), help="Folder of the photo collection.")
@click.option("--finder", required=True, type=click.Path(path_type=Path), help="From `python -m training.finder`.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Checkpoint to write, or to continue.")
@click.option("--minutes", default=30.0, show_default=True, help="Of training, all runs together.")
@click.option("--threads", default=1, show_default=True, help="Of PyTorch.")
@click.option("--score-only", is_flag=True, help="Do not train; score the checkpoint on held-out photos.")
@click.option("--held-out", default=200, show_default=True, help="Held-out photos to score.")
def main(
    photos: Path, finder: Path, output: Path, minutes: float, threads: int, score_only: bool, held_out: int
) -> None:
    """Read the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    try:
        frozen = load_finder(finder)
        trainer = Trainer(photos, frozen, Options(minutes=minutes), output)
        if not score_only:
            trainer.run()
        chosen = np.random.default_rng(0).permutation(len(trainer.validation))[:held_out]
        found = score(photos, frozen, load_boxmask(output), [trainer.validation[i] for i in chosen])
        click.echo(json.dumps(found, indent=1))
    except CrisEdgeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
