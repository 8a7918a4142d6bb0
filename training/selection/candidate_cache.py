"""The detector's candidates of every photo, computed once and kept in files.

The selector reads only candidates, so its training needs no convolutions. The cache is a folder of shards, each with a
few hundred photos, written atomically: a run that was interrupted continues with the first missing shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cris_edge.errors import DataError
from cris_edge.image import load_image, preprocess
from training.data.photos import REFCOCO_SOURCES, Photo, PhotoObject
from training.model.candidates import CandidateFinder, Candidates, pairwise_iou
from training.model.colournames import COLOURS
from training.model.nanodet import CLASSES

SHARD = 256
"""Photos in a shard."""
BATCH = 8
"""Photos that go through the detector together."""
FOUND = 0.5
"""IoU from which a candidate is the labelled object."""
_PARTS = ((0.0, 1.0), (0.15, 0.5), (0.5, 0.9))  # of a mask's height: all, upper clothing, lower clothing


@dataclass(frozen=True, kw_only=True)
class CachedPhoto:
    """The candidates of one photo, as NumPy arrays.

    Attributes:
        image: name in the collection.
        mirrored: whether the photo was mirrored before detection.
        width, height: of the stored photo, in pixels.
        detected: number of candidates that the detector found; those after them are boxes of labelled objects.
        probabilities: (n, 80) float16.
        boxes: (n, 4) float32, fractions of the photo's width and height.
        features: (n, F) float16.
        colours: (n, C) float16.
        mask_colours: index of an object in the photo's list -> (3, 12) float32, shares of colour names in its mask:
            whole, upper, lower. Objects without a mask are missing.
    """

    image: str
    mirrored: bool
    width: int
    height: int
    detected: int
    probabilities: np.ndarray
    boxes: np.ndarray
    features: np.ndarray
    colours: np.ndarray
    mask_colours: dict[int, np.ndarray]


def build_cache(
    finder: CandidateFinder,
    photos: Sequence[Photo],
    root: Path,
    folder: Path,
    *,
    size: int = 320,
    mirrored: bool = False,
    progress: Callable[[str], None] = print,
) -> None:
    """Compute the candidates of all photos, shard by shard; shards that exist are kept.

    Args:
        finder: in eval mode.
        photos: in a fixed order, which decides what is in which shard.
        root: folder of the photo collection.
        folder: where the shards go.
        size: input size of the network in pixels.
        mirrored: whether to mirror the photos first.
        progress: called with a line per shard.

    Raises:
        ImageError: a photo cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = -(-len(photos) // SHARD)
    for number in range(total):
        path = folder / _shard_name(number, mirrored)
        if path.exists():
            continue
        part = photos[number * SHARD : (number + 1) * SHARD]
        entries: list[dict[str, Any]] = []
        for start in range(0, len(part), BATCH):
            entries += _measure(finder, part[start : start + BATCH], root, size, mirrored)
        partial = path.with_suffix(".partial")
        torch.save(entries, partial)
        partial.replace(path)
        progress(f"{path.name}: {number + 1} of {total} shards")


def read_cache(folder: Path, *, mirrored: bool = False) -> list[CachedPhoto]:
    """Read all shards of a cache, in order.

    Raises:
        DataError: there are none.
    """
    paths = sorted(folder.glob(_shard_name(None, mirrored)))
    if not paths and not mirrored:
        raise DataError(f"No cached candidates in {folder}. Run the cache stage first.")
    return [
        CachedPhoto(
            **{key: value.numpy() if isinstance(value, Tensor) else value for key, value in entry.items()}
            | {"mask_colours": {index: shares.numpy() for index, shares in entry["mask_colours"].items()}}
        )
        for path in paths
        for entry in torch.load(path, weights_only=True)
    ]


def missed_objects(photo: Photo, boxes: Tensor) -> list[PhotoObject]:
    """Return the objects with RefCOCO sentences that none of the boxes covers; boxes (n, 4) in pixels."""
    objects = [one for one in photo.objects if one.source in REFCOCO_SOURCES and one.refers_to_one]
    if not objects:
        return []
    truth = torch.tensor([one.box for one in objects], dtype=torch.float32)
    best = pairwise_iou(truth[None], boxes[None])[0].amax(1)
    return [one for one, iou in zip(objects, best.tolist(), strict=True) if iou <= FOUND]


def _shard_name(number: int | None, mirrored: bool) -> str:
    return f"{'mirrored' if mirrored else 'photos'}_{'*' if number is None else f'{number:04d}'}.pt"


@torch.inference_mode()
def _measure(
    finder: CandidateFinder, photos: Sequence[Photo], root: Path, size: int, mirrored: bool
) -> list[dict[str, Any]]:
    pixels = [load_image(root / photo.image) for photo in photos]
    pixels = [np.ascontiguousarray(one[:, ::-1]) if mirrored else one for one in pixels]
    images = torch.from_numpy(np.concatenate([preprocess(one, size)[0] for one in pixels]))
    found = finder(images)
    entries = []
    for index, (photo, rgb) in enumerate(zip(photos, pixels, strict=True)):
        height, width = rgb.shape[:2]
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        keep = found.valid[index]
        rows = [Candidates(*(part[index : index + 1] for part in found))]
        masks = [keep]
        missed = missed_objects(_mirror_labels(photo, width) if mirrored else photo, found.boxes[index][keep] * scale)
        if missed:
            boxes = (torch.tensor([one.box for one in missed], dtype=torch.float32) / scale).clamp(0, 1)[None]
            rows.append(finder.at_boxes(images[index : index + 1], boxes))
            masks.append(torch.ones(len(missed), dtype=torch.bool))
        joined = {
            name: torch.cat([getattr(row, name)[0][mask] for row, mask in zip(rows, masks, strict=True)])
            for name in ("probabilities", "boxes", "features", "colours")
        }
        entries.append(
            {
                "image": photo.image,
                "mirrored": mirrored,
                "width": width,
                "height": height,
                "detected": int(keep.sum()),
                "probabilities": joined["probabilities"].half(),
                "boxes": joined["boxes"].float(),
                "features": joined["features"].half(),
                "colours": joined["colours"].half(),
                "mask_colours": {} if mirrored else _mask_colours(finder, photo, rgb),
            }
        )
    return entries


def _mirror_labels(photo: Photo, width: int) -> Photo:
    """Return the photo with its boxes mirrored; masks stay as they are and are not to be used."""
    objects = tuple(
        PhotoObject(
            image=one.image,
            source=one.source,
            category=one.category,
            box=(width - one.box[2], one.box[1], width - one.box[0], one.box[3]),
            sentences=one.sentences,
            boxes=one.boxes,
            coco_id=one.coco_id,
            flags=one.flags,
        )
        for one in photo.objects
    )
    return Photo(image=photo.image, objects=objects, captions=photo.captions)


def _mask_colours(finder: CandidateFinder, photo: Photo, rgb: np.ndarray) -> dict[int, Tensor]:
    """Measure the colour names inside the masks of objects of the detector's classes."""
    chosen = [
        index
        for index, one in enumerate(photo.objects)
        if one.mask is not None and one.category in CLASSES and not one.flags & {"all_people_in_one_mask", "part"}
    ]
    if not chosen:
        return {}
    image, _ = preprocess(rgb, max(rgb.shape[:2]))
    square = torch.from_numpy(image)
    names = finder.colour_names(square)[0]  # (12, S, S)
    height, width = rgb.shape[:2]
    side = square.shape[-1]
    top, left = (side - height) // 2, (side - width) // 2
    names = names[:, top : top + height, left : left + width]
    found = {}
    for index in chosen:
        mask = photo.objects[index].decode_mask()
        rows = np.flatnonzero(mask.any(1))
        if mask.shape != (height, width) or not len(rows):
            continue
        first, extent = rows[0], rows[-1] + 1 - rows[0]
        shares = torch.zeros(len(_PARTS), len(COLOURS))
        for number, (low, high) in enumerate(_PARTS):
            band = np.zeros_like(mask)
            band[first + int(low * extent) : first + max(int(high * extent), int(low * extent) + 1)] = True
            inside = torch.from_numpy(mask & band)
            if inside.any():
                shares[number] = names[:, inside].mean(1)
        found[index] = shares
    return found
