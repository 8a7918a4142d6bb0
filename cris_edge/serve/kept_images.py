"""Images kept by id with their features, so that each further prompt costs only the decoder."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from cris_edge.backends.features import ImageFeatures


@dataclass
class _Entry:
    features: ImageFeatures
    size: int
    expires: float


class KeptImages:
    """A cache of image features: least recently used ones go when memory is short, unused ones expire.

    Args:
        limit: Memory for images and features, in bytes. One image larger than that is kept alone.
        seconds: How long an image is kept after its last use.
        clock: Seconds that only grow; tests give their own.
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self.seconds = seconds
        self._limit, self._clock = limit, clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Memory held, in bytes."""
        return self._size

    def add(self, features: ImageFeatures) -> str:
        """Keep features; returns the id, which cannot be guessed."""
        size = features.image.nbytes + sum(array.nbytes for array in features.tensors.values())
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._expire()
            while self._entries and self._size + size > self._limit:
                self._drop(next(iter(self._entries)))
            self._entries[name] = _Entry(features, size, self._clock() + self.seconds)
            self._size += size
        return name

    def get(self, name: str) -> ImageFeatures | None:
        """The features kept under an id, whose time starts again; None where there are none."""
        with self._lock:
            self._expire()
            entry = self._entries.get(name)
            if entry is None:
                return None
            entry.expires = self._clock() + self.seconds
            self._entries.move_to_end(name)
            return entry.features

    def remove(self, name: str) -> bool:
        """Forget an image; returns whether it was there."""
        with self._lock:
            if name not in self._entries:
                return False
            self._drop(name)
            return True

    def clear(self) -> None:
        """Forget all images."""
        with self._lock:
            self._entries.clear()
            self._size = 0

    def _expire(self) -> None:
        # The order of last use is the order of expiry.
        now = self._clock()
        while self._entries:
            name, entry = next(iter(self._entries.items()))
            if entry.expires > now:
                return
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._size -= self._entries.pop(name).size
