"""Memory of this machine."""

from __future__ import annotations

import os


def memory_bytes() -> int | None:
    """Return the physical memory in bytes; None if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
