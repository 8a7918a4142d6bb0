"""What the service accepts, and how much of it at once."""

from __future__ import annotations

from dataclasses import dataclass

from cris_edge.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the service.

    Attributes:
        body_bytes: Largest request body, in bytes; larger ones get status 413.
        pixels: Most pixels of an image, before it is decoded; larger ones get status 413.
        prompts: Most prompts of a request, status 422.
        queue: Requests that wait or run at the same time; further ones get status 429.
        cache_bytes: Memory for images kept by id, in bytes; the least recently used go first.
        cache_seconds: How long an image is kept after its last use, in seconds.
    """

    body_bytes: int = 20 << 20
    pixels: int = 50_000_000
    prompts: int = 16
    queue: int = 64
    cache_bytes: int = 256 << 20
    cache_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("body_bytes", "pixels", "prompts", "queue", "cache_bytes", "cache_seconds"):
            value = getattr(self, name)
            if value <= 0:
                raise OptionError(f"{name} is {value!r}, expected a positive number.")
