"""Memory allocation of a training process on CPUs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of the GNU C library


def keep_memory() -> None:
    """Keep freed memory in this process; does nothing without the GNU C library.

    A training step allocates and frees the same large tensors repeatedly. By default, the GNU C library returns each
    to the system and gets fresh, zeroed pages the next time, which costs a compact network about a fifth of its step
    time on a CPU. Call this before large tensors are allocated.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch: huge pages for large tensors
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # not the GNU C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**28)
