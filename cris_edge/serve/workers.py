"""A fixed number of threads behind a bounded queue: the event loop never computes, and memory stays bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from cris_edge.errors import CrisEdgeError

T = TypeVar("T")


class QueueFullError(CrisEdgeError):
    """As many calls wait or run as the queue takes."""


class DrainingError(CrisEdgeError):
    """The service is shutting down."""


class Workers:
    """Runs blocking calls for an event loop.

    Args:
        threads: Calls that run at the same time.
        limit: Calls that wait or run; one more is refused.
    """

    def __init__(self, threads: int, limit: int) -> None:
        self.limit = limit
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="cris-edge-serve")
        self._lock = threading.Lock()
        self._pending = 0
        self._closed = False

    @property
    def pending(self) -> int:
        """Calls that wait or run."""
        return self._pending

    @property
    def closed(self) -> bool:
        """Whether further calls are refused."""
        return self._closed

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call on one of the threads. Cancelling it frees its slot unless it already runs.

        Raises:
            QueueFullError: The queue is full.
            DrainingError: `close` was called.
        """
        with self._lock:
            if self._closed:
                raise DrainingError("The service is shutting down; send the request again in a moment.")
            if self._pending >= self.limit:
                raise QueueFullError(f"{self._pending} requests wait already; send this one again in a moment.")
            self._pending += 1
        future = self._pool.submit(call)
        future.add_done_callback(self._done)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Refuse further calls, and wait for those that were accepted."""
        self._closed = True
        self._pool.shutdown(wait=True)

    def _done(self, _: Future[T]) -> None:
        with self._lock:
            self._pending -= 1
