"""The command line: ``cris-edge predict``, ``benchmark``, ``info``, ``verify`` and ``doctor``.

Exit status: 0 done; 2 wrong usage; 1 anything else, with one line on stderr. ``--json`` prints one JSON document on
stdout and nothing else there.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cris_edge import __version__
from cris_edge.errors import CrisEdgeError, InputError

if TYPE_CHECKING:
    from cris_edge.bundle import Bundle
    from cris_edge.doctor import DoctorReport
    from cris_edge.outputs import Outputs
    from cris_edge.result import Segmentation
    from cris_edge.segmenter import Segmenter
    from cris_edge.verification import Report

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])


class Program(click.Group):
    """The group of commands; turns every error into one line and an exit status."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command and, as a program does, exit with its status."""
        run: Any = super().main
        if not extra.pop("standalone_mode", True):
            return run(*args, standalone_mode=False, **extra)
        try:
            status = run(*args, standalone_mode=False, **extra)
            sys.stdout.flush()
        except click.ClickException as error:
            error.show()
            status = error.exit_code
        except BrokenPipeError:  # whoever reads the output has enough; nothing more is to be flushed into it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 1
        except (CrisEdgeError, OSError, MemoryError) as error:
            _complain(str(error) or type(error).__name__)
            status = 1
        except click.Abort:
            _complain("interrupted")
            status = 1
        sys.exit(status if isinstance(status, int) else 0)


def _complain(message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)


def _json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cris-edge")
@click.option("--verbose", "-v", is_flag=True, help="Say on stderr what is done.")
def main(verbose: bool) -> None:
    """A sentence picks out one thing in a picture, on this device."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")


@main.command()
@click.argument("source")
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option("--model", metavar="DIR", help="Model folder.  [default: the embedded model]")
@click.option("--runtime", default="auto", show_default=True, help="openvino or onnxruntime; auto takes the best here.")
@click.option("--device", default="CPU", show_default=True, help="As the runtime names it; see cris-edge doctor.")
@click.option("--precision", default="auto", show_default=True, help="float32, bfloat16 or float16.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the processor.  [default: the runtime's choice]")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="cris-edge-output",
    show_default=True,
    help="Folder for overlays and masks.",
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="Of the probability.  [default: the model's]")
@_json_option
@click.pass_context
def predict(
    context: click.Context,
    /,
    source: str,
    prompts: tuple[str, ...],
    model: str | None,
    output: Path,
    threshold: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find what each PROMPT names in SOURCE: a picture, a video, a folder of them, or a pattern such as "*.jpg".

    Writes an overlay and a mask for each picture and sentence.
    """
    from cris_edge.outputs import Outputs
    from cris_edge.segmenter import Segmenter
    from cris_edge.sources import find

    paths = find(source)
    document: dict[str, Any] = {"results": [], "failures": []}
    with _warnings_as_lines(), Segmenter(model, **options) as segmenter:
        for prompt in prompts:
            segmenter.encode_text(prompt)  # a bad sentence is told before any picture is opened
        document["segmenter"] = segmenter.info.to_dict()
        job = _Predictions(
            segmenter, list(dict.fromkeys(prompts)), threshold, Outputs(output), None if as_json else click.echo
        )
        for path in _progress(paths, "pictures"):
            try:
                document["results"] += job.run(path)
            except InputError as error:
                document["failures"].append({"source": str(path), "error": str(error)})
                _complain(str(error))
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False))
    if document["failures"]:
        context.exit(1)


class _Predictions:
    """Pictures and videos through a segmenter into files."""

    def __init__(
        self,
        segmenter: Segmenter,
        prompts: list[str],
        threshold: float | None,
        outputs: Outputs,
        say: Callable[[str], None] | None,
    ) -> None:
        self._segmenter = segmenter
        self._prompts = prompts
        self._threshold = threshold
        self._outputs = outputs
        self._say = say

    def run(self, path: Path) -> list[dict[str, Any]]:
        """The entries of the JSON document for one file."""
        from cris_edge.sources import is_video

        return self._video(path) if is_video(path) else self._image(path)

    def _image(self, path: Path) -> list[dict[str, Any]]:
        entries = []
        for result in self._segmenter(str(path), self._prompts, threshold=self._threshold):
            files = self._outputs.image(path, result)
            self._tell(path, result, files["overlay"])
            entries.append({"source": str(path), **result.to_dict(), "files": files})
        return entries

    def _video(self, path: Path) -> list[dict[str, Any]]:
        from cris_edge.sources import Video

        video = Video.open(path)
        entries: list[dict[str, Any]] = []

        def note(frame: int, result: Segmentation) -> None:
            entries.append({"source": str(path), "frame": frame, **result.to_dict()})

        frames = _progress(video, path.name, video.length)
        results = self._segmenter.stream(frames, self._prompts, threshold=self._threshold, color="bgr")
        files = dict(
            zip(
                self._prompts,
                self._outputs.video(path, self._prompts, video.rate, results, note),
                strict=False,  # a video without frames has no files
            )
        )
        if not entries:
            raise InputError(f"The video {path} has no frames that can be decoded.")
        for prompt, paths in files.items():
            if self._say:
                count = sum(entry["prompt"] == prompt for entry in entries)
                found = sum(entry["prompt"] == prompt and not entry["empty"] for entry in entries)
                self._say(f'{path}  "{prompt}"  found in {found} of {count} frames  {paths["overlay"]}')
        return [{**entry, "files": files[entry["prompt"]]} for entry in entries]

    def _tell(self, path: Path, result: Segmentation, overlay: str) -> None:
        if self._say:
            found = "nothing found"
            if result.box is not None:
                box = ", ".join(f"{side:.0f}" for side in result.box)
                found = f"score {result.score:.2f}, box ({box})"
            self._say(f'{path}  "{result.prompt}"  {found}  {overlay}')


@main.command()
@click.argument("model", metavar="[DIR]", required=False)
@_json_option
def info(model: str | None, as_json: bool) -> None:
    """Tell what is in a model folder, by default the embedded one."""
    from cris_edge.bundle import Bundle, embedded

    bundle = Bundle.open(embedded() if model is None else model)
    if as_json:
        document = {"path": str(bundle.path), "digest": bundle.digest, **bundle.manifest.to_dict()}
        click.echo(json.dumps(document, ensure_ascii=False))
    else:
        click.echo(_describe(bundle))


def _describe(bundle: Bundle) -> str:
    manifest = bundle.manifest
    size = sum(file.size for file in manifest.files.values())
    lines = [
        f"{manifest.name}  {bundle.path}",
        *([manifest.description] if manifest.description else []),
        f"input       {manifest.input_size} x {manifest.input_size} pixels, {manifest.word_len} tokens",
        f"threshold   {manifest.threshold:g}",
        f"weights     {manifest.precision}, {len(manifest.files)} files, {size / 1e6:.1f} MB",
        f"runtimes    {', '.join(manifest.runtimes)}",
    ]
    for name, graph in manifest.graphs.items():
        work = f", {graph.macs / 1e9:.2f} GMAC" if graph.macs else ""
        lines.append(f"{name}{work}")
        lines += [f"  takes     {tensor}" for tensor in graph.inputs]
        lines += [f"  gives     {tensor}" for tensor in graph.outputs]
    for row in manifest.metrics:
        figures = "  ".join(f"{key} {value:.2f}" for key, value in row.items() if isinstance(value, float))
        where = " ".join(str(row[key]) for key in ("dataset", "split", "runtime", "precision") if row.get(key))
        lines.append(f"measured    {where}: {figures}")
    lines += [f"{key:<12} {value}" for key, value in manifest.provenance.items() if isinstance(value, str)]
    return "\n".join(lines)


@main.command()
@click.argument("model", metavar="[DIR]", required=False)
@_json_option
@click.pass_context
def verify(context: click.Context, /, model: str | None, as_json: bool) -> None:
    """Check a model folder: hashes, shapes, and golden inputs through every runtime in it."""
    from cris_edge.bundle import embedded
    from cris_edge.verification import verify as run

    report = run(embedded() if model is None else model)
    click.echo(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else _tell_verified(report))
    if not report.passed:
        failed = [check for check in report.checks if check.outcome == "failed"]
        if failed:
            _complain(f"{report.name} failed in {failed[0].runtime}: {failed[0].message}")
        else:
            _complain(f"{report.name} could not be checked: {report.checks[0].runtime}: {report.checks[0].message}")
        context.exit(1)


def _tell_verified(report: Report) -> str:
    lines = [f"{report.name}: the hashes of {report.files} files hold, {report.size / 1e6:.1f} MB"]
    for check in report.checks:
        line = f"{check.runtime} {check.precision or check.asked}: {check.outcome}"
        if check.max_abs_diff is not None:
            allowed = f" of {check.tolerance:.3g} allowed" if check.tolerance is not None else ""
            line += f", logits differ by {check.max_abs_diff:.2g}{allowed} on {report.pairs} golden pairs"
            line += f", mask IoU {check.mask_iou:.4f}"
        if check.accuracy is not None:
            line += f"; mIoU {check.accuracy[0]:.1f}, and {check.accuracy[1]:.1f} in PyTorch"
        lines.append(line + (f" ({check.message})" if check.message else ""))
    return "\n".join(lines)


@main.command()
@click.argument("models", metavar="[DIR]...", nargs=-1)
@_json_option
def doctor(models: tuple[str, ...], as_json: bool) -> None:
    """Tell which runtimes, devices and instruction sets are here, and what to install for the rest.

    For every model folder given, or for the embedded model: what it could run on here.
    """
    from cris_edge.bundle import embedded
    from cris_edge.doctor import examine

    report = examine(models or [embedded()])
    click.echo(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else _tell_examined(report))


def _tell_examined(report: DoctorReport) -> str:
    memory = f", {report.memory / 2**30:.1f} GiB of memory" if report.memory else ""
    lines = [
        f"cris-edge {report.version}, Python {report.python}, {report.system}",
        f"processor: {report.processor}, {report.cores} cores ({report.physical_cores} physical){memory}",
        f"instruction sets: {', '.join(report.instruction_sets) or 'not told by this system'}",
        f"cache: {report.cache}, {report.cache_size / 1e6:.1f} MB",
    ]
    for runtime in report.runtimes:
        if not runtime.usable:
            lines.append(f"{runtime.name}: cannot be used; {runtime.advice}")
            continue
        lines.append(f"{runtime.name} {runtime.version}:")
        for device in runtime.devices:
            precisions = f", {', '.join(device.precisions)}" if device.precisions else ""
            name = f" ({device.full_name})" if device.full_name else ""
            lines.append(f"  {device.name}{name}{precisions}")
        if runtime.advice:
            lines.append(f"  {runtime.advice}")
    lines.append(f"NPU drivers: {', '.join(report.npus) or 'none found'}")
    for bundle in report.bundles:
        lines.append(f"{bundle.name or bundle.path}: {bundle.message or 'can run here in'}")
        for prospect in bundle.prospects:
            where = f"on {', '.join(prospect.devices)}" if prospect.devices else "on nothing here"
            lines.append(f"  {prospect.runtime} {where}" + (f" ({prospect.message})" if prospect.message else ""))
    return "\n".join(lines)


@main.command()
@click.option("--model", "models", metavar="DIR", multiple=True, help="Model folder.  [default: the embedded model]")
@click.option("--runtime", "runtimes", metavar="NAME", multiple=True, help="[default: all that are here]")
@click.option("--device", "devices", metavar="NAME", multiple=True, default=["CPU"], show_default=True)
@click.option(
    "--precision", "precisions", metavar="NAME", multiple=True, default=["auto", "float32"], show_default=True
)
@click.option("--threads", type=click.IntRange(min=1), help="Of the processor.  [default: the runtime's choice]")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="Labelled data to score on.")
@click.option("--image", type=click.Path(path_type=Path), metavar="FILE", help="[default: a drawn one of 640 x 480]")
@click.option("--runs", default=100, show_default=True, help="Turns at least.")
@click.option("--seconds", default=60.0, show_default=True, help="For each combination, about.")
@click.option("--starts", default=5, show_default=True, help="Of a process, with and without a cache; 0 leaves it out.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for JSON, CSV and a picture.")
@_json_option
@click.pass_context
def benchmark(context: click.Context, /, output: Path | None, as_json: bool, **settings: Any) -> None:
    """Measure latency, start, memory and accuracy on this device.

    Takes every combination of the models, runtimes, devices and precisions given; each option may come several times.
    """
    from cris_edge.benchmark import Settings
    from cris_edge.benchmark import benchmark as run

    def say(what: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\033[K{what[:78]}", err=True, nl=False)

    if output is not None:
        output.mkdir(parents=True, exist_ok=True)  # before an hour is spent
    report = run(Settings(**settings, stream_seconds=settings["seconds"] / 6), say)
    say("")
    files = report.write(output) if output is not None else []
    click.echo(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else report.to_text())
    if not as_json:
        click.echo("".join(f"\n{file}" for file in files), nl=bool(files))
    for failure in report.failures:
        _complain(f"{failure['case']}: {failure['error']}")
    if report.failures:
        context.exit(1)


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show what the SDK warns of, such as a sentence that was cut, as one line each."""
    from cris_edge.tokenizer import PromptWarning

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        click.echo(f"warning: {' '.join(str(message).split())}", err=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=PromptWarning)
        warnings.showwarning = show
        yield


def _progress(items: Iterable[T], label: str, length: int | None = None) -> Iterator[T]:
    """The items, with a bar on stderr where that is a terminal and there are several."""
    if length is None and isinstance(items, list):
        length = len(items)
    if length == 1 or not sys.stderr.isatty():
        yield from items
        return
    with click.progressbar(items, length=length or None, label=label, file=sys.stderr) as bar:
        yield from bar
