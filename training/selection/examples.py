"""Training examples of the selector: pools of prompts about cached candidates, and batches drawn from them.

An example is a prompt, up to ``SLOTS`` candidates and a target distribution over them and "none". Pools are tensors, so
that a batch is a few indexing operations; what can vary without reading anything again (jitter of boxes, mosaics of two
photos, dropped appearance) varies from batch to batch.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cris_edge.tokenizer import Tokenizer
from training.model.candidates import Candidates
from training.selection.candidate_cache import CachedPhoto

SLOTS = 32
"""Candidates an example has room for."""
WORDS = 20
"""Tokens of a prompt."""
_OWN_SHARE = 0.625  # of the slots of a mosaic: the rest belongs to the other photo
_JITTER = 0.02  # deviation of the boxes' sides, as a share of their lengths
_STEP_SLOTS = (16, 24, 32)  # slots of a training step; the weakest candidates are cut, which saves time
_ABSENT = 0.12  # a class below this in all candidates of a photo is not in the photo


class Bank:
    """The candidates of all photos in one row each.

    Attributes:
        probabilities: (T, 80) float16.
        boxes: (T, 4) float32.
        features: (T, F) float16.
        colours: (T, C) float16.
        start, count: (P,) int64, first row and number of rows of each photo; rows of labelled boxes come last.
        detected: (P,) int64, rows that the detector found.
        aspect: (P,) float32, width over height.
        strongest: (P, 80) float32, the largest probability of each class among the detections of a photo.
    """

    def __init__(self, cache: Sequence[CachedPhoto]) -> None:
        self.probabilities = _join([one.probabilities for one in cache])
        self.boxes = _join([one.boxes for one in cache])
        self.features = _join([one.features for one in cache])
        self.colours = _join([one.colours for one in cache])
        count = np.array([len(one.boxes) for one in cache], np.int64)
        self.count = torch.from_numpy(count)
        self.start = torch.from_numpy(np.cumsum(count) - count)
        self.detected = torch.tensor([one.detected for one in cache])
        self.aspect = torch.tensor([one.width / one.height for one in cache])
        self.strongest = torch.stack(
            [torch.from_numpy(one.probabilities[: one.detected].astype(np.float32).max(0)) for one in cache]
        )
        self.row_class = self.probabilities.float().argmax(1)
        self.row_score = self.probabilities.float().amax(1)

    def __len__(self) -> int:
        return len(self.count)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Examples of one kind.

    Attributes:
        rows: (n, SLOTS) int32, rows of the bank; -1 for an empty slot. Candidates that are right come first.
        targets: (n, SLOTS + 1) float32, sums to one; the last is "none".
        tokens: (n, WORDS) int64.
        aspect: (n,) float32.
        boxes: (n, SLOTS, 4) float32 where candidates are not where the bank has them, else None.
        seen: whether the candidates' appearance goes with the prompt; False for layouts, which have no pixels.
        mosaic: (n,) bool, whether the prompt stays true when another photo is put beside its own.
        weight: (n,) float32, how often an example is drawn, relative to the others.
        sentences: the prompts.
        human: whether people wrote the prompts.
    """

    rows: Tensor
    targets: Tensor
    tokens: Tensor
    aspect: Tensor
    boxes: Tensor | None
    seen: bool
    human: bool
    mosaic: Tensor
    weight: Tensor
    sentences: list[str]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt before it goes into a pool; fields as in `Pool`."""

    rows: Sequence[int]
    targets: Sequence[float]
    none: float
    sentence: str
    aspect: float
    boxes: np.ndarray | None = None
    mosaic: bool = False
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Candidates, prompts and targets of one step.

    Attributes:
        candidates: of B examples.
        tokens: (B, L) int64, L up to ``WORDS``.
        targets: (B, N + 1) float32, N of ``candidates``; the last is "none".
    """

    candidates: Candidates
    tokens: Tensor
    targets: Tensor


def make_pool(examples: Iterable[Example], tokenizer: Tokenizer, *, seen: bool = True, human: bool = False) -> Pool:
    """Pack examples into tensors; right candidates move to the front, and the best others fill the slots."""
    found = list(examples)
    count = len(found)
    rows = np.full((count, SLOTS), -1, np.int32)
    targets = np.zeros((count, SLOTS + 1), np.float32)
    boxes = None if seen else np.zeros((count, SLOTS, 4), np.float32)
    for index, one in enumerate(found):
        order = sorted(range(len(one.rows)), key=lambda i: one.targets[i] <= 0)[:SLOTS]
        rows[index, : len(order)] = [one.rows[i] for i in order]
        targets[index, : len(order)] = [one.targets[i] for i in order]
        targets[index, SLOTS] = one.none
        if boxes is not None and one.boxes is not None:
            boxes[index, : len(order)] = one.boxes[order]
    targets /= np.maximum(targets.sum(1, keepdims=True), 1e-9)
    sentences = [one.sentence for one in found]
    tokens = tokenizer(sentences, length=WORDS) if sentences else np.zeros((0, WORDS), np.int64)
    return Pool(
        rows=torch.from_numpy(rows),
        targets=torch.from_numpy(targets),
        tokens=torch.from_numpy(np.asarray(tokens, np.int64)),
        aspect=torch.tensor([one.aspect for one in found]),
        boxes=None if boxes is None else torch.from_numpy(boxes),
        seen=seen,
        human=human,
        mosaic=torch.tensor([one.mosaic for one in found], dtype=torch.bool),
        weight=torch.tensor([one.weight for one in found]),
        sentences=sentences,
    )


def soft_targets(iou: np.ndarray) -> np.ndarray:
    """Turn the IoU of candidates with the true box into target weights: none up to 0.5, then growing with the IoU."""
    return np.where(iou > 0.5, np.maximum(0.0, iou - 0.45) ** 1.5, 0.0)


def fixed_batches(pool: Pool, bank: Bank, size: int = 128) -> list[Batch]:
    """Return all examples of a pool in order, as they are, for validation."""
    return [take(pool, bank, torch.arange(at, min(at + size, len(pool)))) for at in range(0, len(pool), size)]


def take(pool: Pool, bank: Bank, index: Tensor) -> Batch:
    """Return examples of a pool, without augmentation."""
    rows = pool.rows[index].long()
    valid = rows >= 0
    safe = rows.clamp(min=0)
    probabilities = bank.probabilities[safe].float() * valid[..., None]
    boxes = (bank.boxes[safe] if pool.boxes is None else pool.boxes[index]) * valid[..., None]
    if pool.seen:
        features = bank.features[safe].float() * valid[..., None]
        colours = bank.colours[safe].float() * valid[..., None]
    else:
        features = probabilities.new_zeros(*rows.shape, bank.features.shape[1])
        colours = probabilities.new_zeros(*rows.shape, bank.colours.shape[1])
    candidates = Candidates(probabilities, boxes, pool.aspect[index], features, colours, valid)
    return _trim(Batch(candidates=candidates, tokens=pool.tokens[index], targets=pool.targets[index]))


class Sampler:
    """Draws augmented batches from several pools.

    Args:
        bank: the candidates.
        pools: name -> examples.
        mix: name -> share of the batches' examples; names without a pool are ignored.
        seed: of all that is random.
        size: examples per batch.
        mosaics: share of the examples that may become mosaics which do.
        unseen: share of the examples whose appearance is dropped.
        noise: deviation of the noise added to features, which makes photos hard to recognize.
        missing: share of the candidates dropped where they are not right.
        blanks: share of the words of human sentences that are replaced by ``blank``.
        blank: a token that says nothing, such as that of "the".
        photos: indices of the photos that may take part; None for all. Layouts take part in any case.
    """

    def __init__(
        self,
        bank: Bank,
        pools: dict[str, Pool],
        mix: dict[str, float],
        *,
        seed: int = 0,
        size: int = 96,
        mosaics: float = 0.35,
        unseen: float = 0.15,
        noise: float = 0.15,
        missing: float = 0.1,
        blanks: float = 0.1,
        blank: int = 0,
        photos: Sequence[int] | None = None,
    ) -> None:
        self._photos = torch.tensor(range(len(bank)) if photos is None else photos)
        allowed = torch.zeros(len(bank), dtype=torch.bool)
        allowed[self._photos] = True
        used = {name: _only(pool, bank, allowed) for name, pool in pools.items() if len(pool) and mix.get(name)}
        self._bank, self._pools = bank, {name: pool for name, pool in used.items() if pool.weight.any()}
        self._shares = torch.tensor([mix[name] for name in self._pools])
        self._shares = self._shares / self._shares.sum()
        self._size, self._mosaics, self._unseen = size, mosaics, unseen
        self._noise, self._missing = noise, missing
        self._blanks, self._blank = blanks if blank else 0.0, blank
        self.generator = torch.Generator().manual_seed(seed)
        self._random = random.Random(seed)

    def draw(self) -> Batch:
        """Return the next batch."""
        counts = self._counts()
        slots = self._random.choice(_STEP_SLOTS)
        parts = [
            self._part(pool, count, slots) for pool, count in zip(self._pools.values(), counts, strict=True) if count
        ]
        candidates = Candidates(*(torch.cat(part) for part in zip(*(one.candidates for one in parts), strict=True)))
        length = max(one.tokens.shape[1] for one in parts)
        tokens = torch.cat([torch.nn.functional.pad(one.tokens, (0, length - one.tokens.shape[1])) for one in parts])
        return Batch(candidates=candidates, tokens=tokens, targets=torch.cat([one.targets for one in parts]))

    def _counts(self) -> list[int]:
        """Split a batch among the pools; what is left over after rounding falls to pools by chance."""
        exact = self._shares * self._size
        counts = exact.floor().long()
        rest = self._size - int(counts.sum())
        if rest:
            extra = torch.multinomial(exact - counts + 1e-6, rest, replacement=True, generator=self.generator)
            counts += torch.bincount(extra, minlength=len(counts))
        return [int(count) for count in counts]

    def _part(self, pool: Pool, count: int, slots: int) -> Batch:
        bank, g = self._bank, self.generator
        index = torch.multinomial(pool.weight, count, replacement=True, generator=g)
        rows, targets, aspect = pool.rows[index, :slots].long(), pool.targets[index], pool.aspect[index]
        targets = torch.cat([targets[:, :slots], targets[:, -1:]], 1)  # right candidates come first
        boxes = bank.boxes[rows.clamp(min=0)] if pool.boxes is None else pool.boxes[index, :slots]
        if pool.seen and self._mosaics:
            rows, targets, aspect, boxes = self._mosaic(pool.mosaic[index], rows, targets, aspect, boxes)
        dropped = (torch.rand(rows.shape, generator=g) < self._missing) & (targets[:, :-1] == 0)
        dropped[:, 0] = False
        rows = torch.where(dropped, -1, rows)
        valid = rows >= 0
        safe = rows.clamp(min=0)
        sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
        boxes = (boxes + torch.randn(boxes.shape, generator=g) * _JITTER * sides).clamp(0, 1) * valid[..., None]
        probabilities = bank.probabilities[safe].float() * valid[..., None]
        features = bank.features[safe].float()
        colours = bank.colours[safe].float()
        if pool.seen:
            features = features + self._noise * torch.randn(features.shape, generator=g)
            keep = (torch.rand(count, 1, 1, generator=g) >= self._unseen) * valid[..., None]
            features, colours = features * keep, colours * keep
        else:
            features, colours = torch.zeros_like(features), torch.zeros_like(colours)
        return _trim(
            Batch(
                candidates=Candidates(probabilities, boxes, aspect, features, colours, valid),
                tokens=self._with_blanks(pool.tokens[index]) if pool.human else pool.tokens[index],
                targets=targets,
            )
        )

    def _with_blanks(self, tokens: Tensor) -> Tensor:
        """Replace words at random, but not the marks at the start and the end."""
        inside = (tokens != 0) & (torch.arange(tokens.shape[1]) > 0)
        inside[:, :-1] &= tokens[:, 1:] != 0
        inside[:, -1] = False
        chosen = inside & (torch.rand(tokens.shape, generator=self.generator) < self._blanks)
        return torch.where(chosen, self._blank, tokens)

    def _mosaic(
        self, allowed: Tensor, rows: Tensor, targets: Tensor, aspect: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Put another photo beside some examples' photos, if it has nothing of the target's class."""
        bank, g = self._bank, self.generator
        count, total = rows.shape
        own_slots = int(_OWN_SHARE * total)
        other = self._photos[torch.randint(len(self._photos), (count,), generator=g)]
        target_class = bank.row_class[rows[:, 0].clamp(min=0)]
        absent = bank.strongest[other].gather(1, target_class[:, None])[:, 0] < _ABSENT
        chosen = allowed & absent & (torch.rand(count, generator=g) < self._mosaics) & (targets[:, -1] == 0)
        if not chosen.any():
            return rows, targets, aspect, boxes
        room = total - own_slots
        places = torch.arange(room)
        added = bank.start[other][:, None] + places
        added = torch.where(places < bank.detected[other][:, None], added, -1)
        merged_rows = torch.cat([rows[:, :own_slots], added], 1)
        merged_targets = torch.cat([targets[:, :own_slots], targets.new_zeros(count, room), targets[:, -1:]], 1)
        merged_boxes = torch.cat([boxes[:, :own_slots], bank.boxes[added.clamp(min=0)]], 1)
        share = 0.4 + 0.2 * torch.rand(count, generator=g)  # of the side that the own photo takes
        first = torch.rand(count, generator=g) < 0.5  # whether the own photo comes first
        vertical = torch.rand(count, generator=g) < 0.5
        own = torch.arange(total) < own_slots
        scale = torch.where(own, share[:, None], 1 - share[:, None])
        shift = torch.where(
            own == first[:, None], torch.zeros(()), torch.where(own, 1 - share[:, None], share[:, None])
        )
        moved = merged_boxes * scale[..., None] + shift[..., None]
        across = torch.tensor([True, False, True, False])
        replace = torch.where(vertical[:, None], ~across, across)[:, None, :]
        merged_boxes = torch.where(replace, moved, merged_boxes)
        merged_aspect = torch.where(vertical, aspect * share, aspect / share).clamp(0.25, 4.0)
        pick = chosen[:, None]
        return (
            torch.where(pick, merged_rows, rows),
            torch.where(pick, merged_targets, targets),
            torch.where(chosen, merged_aspect, aspect),
            torch.where(pick[..., None], merged_boxes, boxes),
        )


def _only(pool: Pool, bank: Bank, photos: Tensor) -> Pool:
    """Give no weight to the examples whose photo may not take part; photos (P,) bool."""
    if not pool.seen:
        return pool
    owner = torch.searchsorted(bank.start, pool.rows[:, 0].long(), right=True) - 1
    return dataclasses.replace(pool, weight=pool.weight * photos[owner])


def _trim(batch: Batch) -> Batch:
    """Cut tokens to the longest prompt; the shapes of the candidates stay."""
    length = max(1, int((batch.tokens != 0).sum(1).max())) if len(batch.tokens) else 1
    return Batch(candidates=batch.candidates, tokens=batch.tokens[:, :length], targets=batch.targets)


def _join(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(0)
