"""``cris-edge cache``: contents of the cache folder, and clearing it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from cris_edge.cli.program import json_option


@click.group()
def cache() -> None:
    """Describe or clear the cache of compiled graphs and verified files."""


def _folder(given: str | None) -> Path:
    from cris_edge.device.caches import chosen_cache
    from cris_edge.errors import OptionError

    folder = chosen_cache("auto" if given is None else given)
    if folder is None:
        raise OptionError("The home folder is unknown, so nothing is cached; set HOME, or pass --cache-dir.")
    return folder


_cache_dir = click.option("--cache-dir", metavar="DIR", help="The cache folder; the platform's by default.")


@cache.command()
@_cache_dir
@json_option
def info(cache_dir: str | None, as_json: bool) -> None:
    """Describe the cache."""
    from cris_edge.device.compiled_cache import report

    found = report(_folder(cache_dir))
    if as_json:
        click.echo(json.dumps({**asdict(found), "folder": str(found.folder)}, ensure_ascii=False))
        return
    click.echo(
        f"{found.folder}\n"
        f"compiled graphs    {found.graphs} of {found.models} bundles, {found.graph_bytes / 1e6:.1f} MB\n"
        f"verified bundles   {found.records}\n"
        f"other files        {found.other_bytes / 1e6:.1f} MB"
    )


@cache.command()
@_cache_dir
def clear(cache_dir: str | None) -> None:
    """Remove compiled graphs and records of verified files; downloads are left."""
    from cris_edge.device.compiled_cache import clear as remove

    folder = _folder(cache_dir)
    click.echo(f"{remove(folder) / 1e6:.1f} MB removed from {folder}")
