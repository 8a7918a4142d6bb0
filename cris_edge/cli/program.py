"""What all commands share: errors as one line and an exit status, ``--json``, and progress bars."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, TypeVar

import click

from cris_edge.errors import CrisEdgeError

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])


class Program(click.Group):
    """The group of commands, which reports every error as one line and an exit status."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command and exit with its status."""
        run: Any = super().main
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a console of few characters is no reason to fail
                stream.reconfigure(errors="backslashreplace")
        if not extra.pop("standalone_mode", True):
            return run(*args, standalone_mode=False, **extra)
        try:
            status = run(*args, standalone_mode=False, **extra)
            sys.stdout.flush()
        except click.ClickException as error:
            error.show()
            status = error.exit_code
        except BrokenPipeError:  # the reader closed the pipe; keep Python from flushing into it at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 1
        except (CrisEdgeError, OSError, MemoryError) as error:
            complain(str(error) or type(error).__name__)
            status = 1
        except click.Abort:
            complain("interrupted")
            status = 1
        sys.exit(status if isinstance(status, int) else 0)


def complain(message: str) -> None:
    """Print an error on stderr as one line."""
    click.echo(f"error: {' '.join(message.split())}", err=True)


def json_option(command: Command) -> Command:
    """Add the option ``--json``, passed as `as_json`, to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def segmenter_options(command: Command) -> Command:
    """Add the options that choose a model and how it runs, passed by the names of `Segmenter`'s arguments."""
    options = (
        click.option("--model", metavar="DIR", help="Bundle.  [default: the default model]"),
        click.option(
            "--runtime",
            default="auto",
            show_default=True,
            help="openvino, onnxruntime or qnn; auto is the best installed one.",
        ),
        click.option(
            "--device", default="CPU", show_default=True, help="Name used by the runtime; see cris-edge doctor."
        ),
        click.option(
            "--precision",
            default="auto",
            show_default=True,
            help="Precision to compute in: float32, bfloat16 or float16; auto is the device's choice. How weights are "
            "stored is chosen at export.",
        ),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the runtime's choice]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def progress(items: Iterable[T], label: str, length: int | None = None) -> Iterator[T]:
    """Yield the items, with a progress bar if stderr is a terminal and there are several."""
    if length is None and isinstance(items, list):
        length = len(items)
    if length == 1 or not sys.stderr.isatty():
        yield from items
        return
    began, done = monotonic(), 0

    def rate(_: T | None) -> str:
        return f"{done / max(monotonic() - began, 1e-6):.1f}/s"

    with click.progressbar(
        items, length=length or None, label=label, item_show_func=rate, show_pos=True, file=sys.stderr
    ) as bar:
        for item in bar:
            yield item
            done += 1
