"""Where caches belong on this platform."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The folder for things that can be computed again, as the platform has it; not created here.

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
    """The folder that `cache_dir` stands for: "auto" is `cache_folder`, None is none, anything else is itself."""
    if cache_dir is None:
        return None
    return cache_folder() if cache_dir == "auto" else Path(cache_dir).expanduser()
