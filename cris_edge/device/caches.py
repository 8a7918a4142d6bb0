"""Cache folders of the platform."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Return the platform's cache folder for this package, without creating it.

    ``$XDG_CACHE_HOME/cris-edge`` or ``~/.cache/cris-edge``, ``~/Library/Caches/cris-edge`` on macOS,
    ``%LOCALAPPDATA%/cris-edge/cache`` on Windows.
    """
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else home / "AppData" / "Local") / "cris-edge" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "cris-edge"
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The specification ignores relative values.
    return (Path(given) if Path(given).is_absolute() else home / ".cache") / "cris-edge"


def chosen_cache(cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """Resolve a `cache_dir` argument: "auto" is `cache_folder`, None disables the cache, a path is itself."""
    if cache_dir is None:
        return None
    return cache_folder() if cache_dir == "auto" else Path(cache_dir).expanduser()
