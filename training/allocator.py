"""Memory of a training process on CPUs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of the GNU C library


def keep_memory() -> None:
    """Keep freed memory in this process, where the C library can be told to.

    A training step allocates and frees the same large tensors again and again. By default the GNU C library returns
    each to the system and asks for fresh, zeroed pages the next time, which costs a compact network about a fifth of
    its step on a CPU. Elsewhere this does nothing. Call it before large tensors are made.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch: large tensors in large pages
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**28)
