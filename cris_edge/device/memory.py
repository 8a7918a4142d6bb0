"""Memory of this machine."""

from __future__ import annotations

import os
from pathlib import Path

from cris_edge.device.control_groups import memory_limit


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that this process may use in bytes, in a container its limit; None if unknown.

    Args:
        root: The root of the file system, for tests.
    """
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    limit = memory_limit(root)
    return physical if limit is None else min(physical, limit)
