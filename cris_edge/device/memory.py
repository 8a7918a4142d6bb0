"""The memory of this device."""

from __future__ import annotations

import os


def memory_bytes() -> int | None:
    """Physical memory, or None where the operating system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
