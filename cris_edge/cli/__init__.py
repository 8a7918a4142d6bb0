"""The command line, one module per command.

Exit status: 0 on success, 2 on wrong usage, 1 on any other error, with one line on stderr. ``--json`` prints one JSON
document on stdout and nothing else.
"""

from __future__ import annotations

import logging

import click

from cris_edge import __version__
from cris_edge.cli.benchmark import benchmark
from cris_edge.cli.cache import cache
from cris_edge.cli.doctor import doctor
from cris_edge.cli.info import info
from cris_edge.cli.predict import predict
from cris_edge.cli.program import Program
from cris_edge.cli.serve import serve
from cris_edge.cli.verify import verify

__all__ = ["main"]


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cris-edge")
@click.option("--verbose", "-v", is_flag=True, help="Log details to stderr.")
def main(verbose: bool) -> None:
    """Segment anything you can describe: referring image segmentation on a CPU or NPU."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")


for command in (predict, info, verify, doctor, benchmark, cache, serve):
    main.add_command(command)
