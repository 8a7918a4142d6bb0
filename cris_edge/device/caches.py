"""Cache folders of the platform."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cris_edge.errors import OptionError


def cache_folder() -> Path | None:
    """Return the platform's cache folder for this package, without creating it; None if there is no home folder.

    ``$XDG_CACHE_HOME/cris-edge`` or ``~/.cache/cris-edge``, ``~/Library/Caches/cris-edge`` on macOS,
    ``%LOCALAPPDATA%/cris-edge/cache`` on Windows.
    """
    # Unresolved, it stays "~", which must not become a folder in the working directory.
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        folder = (Path(local) if local else home / "AppData" / "Local") / "cris-edge" / "cache"
    elif sys.platform == "darwin":
        folder = home / "Library" / "Caches" / "cris-edge"
    else:
        given = os.environ.get("XDG_CACHE_HOME", "")
        # The specification ignores relative values.
        folder = (Path(given) if Path(given).is_absolute() else home / ".cache") / "cris-edge"
    return folder if folder.is_absolute() else None


def chosen_cache(cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """Resolve a `cache_dir` argument: "auto" is `cache_folder`, None disables the cache, a path is itself.

    Raises:
        OptionError: The path begins with "~", and the home folder is unknown.
    """
    if cache_dir is None:
        return None
    if cache_dir == "auto":
        return cache_folder()
    try:
        return Path(cache_dir).expanduser()
    except RuntimeError:
        raise OptionError(
            f"cache_dir is {os.fspath(cache_dir)!r}, but the home folder is unknown; set HOME, or give a whole path."
        ) from None
