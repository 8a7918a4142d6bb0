"""``cris-edge predict``: segment images and videos by prompt."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cris_edge.cli.program import complain, json_option, progress, segmenter_options
from cris_edge.errors import InputError, OptionError

if TYPE_CHECKING:
    from cris_edge.media.frames import Frame
    from cris_edge.media.live import Live
    from cris_edge.media.outputs import Outputs
    from cris_edge.media.rows import Rows
    from cris_edge.media.smoothing import Smoothing
    from cris_edge.media.sources import Image, Video
    from cris_edge.result import Segmentation
    from cris_edge.segmenter import Segmenter

_LIVE_RATE = 10.0  # frames per second of a live source's video where only a constant rate can be written


@click.command()
@click.argument("source")
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@segmenter_options
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="cris-edge-output",
    show_default=True,
    help="Folder for the files.",
)
@click.option(
    "--save",
    default="masks,overlays",
    show_default=True,
    help="Files to write, some of: masks, overlays, cutouts, coco, yolo, jsonl.",
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="Probability threshold.  [default: the model's]")
@click.option(
    "--min-presence", type=click.FloatRange(0, 1), help="Presence below which nothing matches.  [default: the model's]"
)
@click.option(
    "--smooth",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Temporal smoothing of videos, as the share of the frame before.",
)
@click.option("--max-frames", type=click.IntRange(min=1), help="Frames of each video or live source.  [default: all]")
@click.option("--resume", is_flag=True, help="Leave out what results.jsonl in the output folder already has.")
@click.option("--strict", is_flag=True, help="Exit with status 1 if a video is truncated.")
@click.option("--jsonl", "as_lines", is_flag=True, help="Print one JSON object for each result, as it comes.")
@json_option
@click.pass_context
def predict(
    context: click.Context,
    /,
    source: str,
    prompts: tuple[str, ...],
    model: str | None,
    output: Path,
    save: str,
    threshold: float | None,
    smooth: float,
    max_frames: int | None,
    resume: bool,
    strict: bool,
    as_lines: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Segment what each PROMPT describes in SOURCE.

    SOURCE is an image, a video, a folder of them, a pattern such as "*.jpg", a zip file of images, camera:0, an http or
    rtsp URL, or - for an image on standard input. By default, an overlay and a mask are written for each image and
    prompt. Ctrl-C ends a live source.
    """
    from cris_edge.media.outputs import COCO, ROWS, Outputs, check_kinds
    from cris_edge.media.rows import Rows, write_coco
    from cris_edge.media.smoothing import Smoothing
    from cris_edge.media.sources import find
    from cris_edge.segmenter import Segmenter

    if as_json and as_lines:
        raise OptionError("--json and --jsonl were both given; choose one.")
    kinds, unique = check_kinds(save), list(dict.fromkeys(prompts))
    sources = find(source)
    with _warnings_as_lines(), Segmenter(model, **options) as segmenter:
        for prompt in unique:
            segmenter.encode_text(prompt)  # fail on a bad prompt before opening any image
        outputs = Outputs(output, unique, kinds)
        printer = _Printer(as_json, as_lines)
        with tempfile.TemporaryDirectory(prefix="cris-edge-") as scratch:
            path = (outputs.folder if resume or "jsonl" in kinds else Path(scratch)) / ROWS
            with Rows(path, resume=resume) as rows:
                printer.begin(segmenter)
                job = _Job(segmenter, unique, outputs, rows, printer, threshold, Smoothing(smooth), max_frames)
                for item in progress(sources, "images"):
                    try:
                        job.run(item)
                    except InputError as error:
                        printer.fail(item.name, error)
            if "coco" in kinds:
                write_coco(path, outputs.folder / COCO, unique)
    printer.end()
    if printer.failures or (strict and any(video["truncated"] for video in printer.videos)):
        context.exit(1)


@dataclass
class _Printer:
    """Prints results as they come: as text, as one JSON document, or as JSON Lines."""

    as_json: bool
    as_lines: bool
    failures: list[dict[str, str]] = field(default_factory=list)
    videos: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    _count: int = 0

    def begin(self, segmenter: Segmenter) -> None:
        if self.as_json:
            click.echo(f'{{"segmenter": {json.dumps(segmenter.info.to_dict())}, "results": [', nl=False)

    def result(self, row: dict[str, Any], line: str = "") -> None:
        """Print a result, as text only where it has a line of its own."""
        if self.as_json:
            click.echo((",\n" if self._count else "\n") + json.dumps(row, ensure_ascii=False), nl=False)
        elif self.as_lines:
            click.echo(json.dumps(row, ensure_ascii=False))
        elif line:
            click.echo(line)
        self._count += 1

    def text(self, line: str) -> None:
        if not self.as_json and not self.as_lines:
            click.echo(line)

    def fail(self, source: str, error: InputError) -> None:
        self.failures.append({"source": source, "error": str(error)})
        complain(str(error))

    def end(self) -> None:
        if self.as_json:
            rest = {"videos": self.videos, "failures": self.failures, "skipped": self.skipped}
            click.echo(f"], {json.dumps(rest, ensure_ascii=False)[1:]}")
        elif self.skipped:
            click.echo(f"{self.skipped} results exist already and were left out.", err=True)


@dataclass
class _Job:
    """Segments sources and writes their results, holding one image at a time."""

    segmenter: Segmenter
    prompts: list[str]
    outputs: Outputs
    rows: Rows
    printer: _Printer
    threshold: float | None
    smoothing: Smoothing
    max_frames: int | None

    def run(self, source: Image | Video | Live) -> None:
        """Process one source."""
        from cris_edge.media.sources import Image

        for prompt in self.prompts:
            self.outputs.name(source.name, prompt)  # file names do not depend on what is left out
        left = [prompt for prompt in self.prompts if (source.name, prompt) not in self.rows.done]
        self.printer.skipped += len(self.prompts) - len(left)
        if not left:
            return
        if isinstance(source, Image):
            self._image(source, left)
        else:
            self._video(source, left)

    def _image(self, source: Image, prompts: list[str]) -> None:
        results = self.segmenter(source.read(), prompts, threshold=self.threshold)
        rows = []
        for result, files in zip(results, self.outputs.image(source.name, results), strict=True):
            rows.append({"source": source.name, **result.to_dict(), "files": files})
            found = "nothing matches"
            if result.box is not None:
                found = f"score {result.score:.2f}, box ({', '.join(f'{side:.0f}' for side in result.box)})"
            self.printer.result(rows[-1], f'{source.name}  "{result.prompt}"  {found}  {_shown(files)}'.rstrip())
        self.rows.add(rows)

    def _video(self, source: Video | Live, prompts: list[str]) -> None:
        from cris_edge.media.rows import Rows, read_rows

        counts = {prompt: [0, 0] for prompt in prompts}  # frames, and those in which something matches
        with tempfile.TemporaryDirectory(prefix="cris-edge-") as scratch:
            path = Path(scratch) / "frames.jsonl"
            with Rows(path) as frames:

                def note(number: int, result: Segmentation) -> None:
                    counts[result.prompt][0] += 1
                    counts[result.prompt][1] += result.matched
                    frames.add([{"source": source.name, "frame": number, **result.to_dict()}])

                rate = getattr(source, "rate", _LIVE_RATE)
                results = self.smoothing(self._stream(source, prompts))
                written = self.outputs.video(source.name, prompts, rate, results, note)
            if not written:
                raise InputError(f"The video {source.name} has no frames that can be decoded.")
            files = dict(zip(prompts, written, strict=True))
            for row in read_rows(path):
                # The number of frames tells a run that continues whether all of them are there.
                full = {**row, "frames": counts[row["prompt"]][0], "files": files[row["prompt"]]}
                self.rows.add([full])
                self.printer.result(full)
        for prompt, (count, matched) in counts.items():
            found = f"found in {matched} of {count} frames"
            self.printer.text(f'{source.name}  "{prompt}"  {found}  {_shown(files[prompt])}'.rstrip())
        self._report_length(source, counts[prompts[0]][0])

    def _stream(self, source: Video | Live, prompts: list[str]) -> Iterator[list[Segmentation]]:
        """The results of each frame. Ctrl-C ends a live source, and is an error otherwise."""
        frames = progress(_first(source, self.max_frames), Path(source.name).name, getattr(source, "length", 0))
        results = self.segmenter.stream(frames, prompts, threshold=self.threshold)
        try:
            yield from results
        except KeyboardInterrupt:
            if not source.live:
                raise

    def _report_length(self, source: Video | Live, frames: int) -> None:
        from cris_edge.media.sources import Video

        if not isinstance(source, Video):
            return
        truncated = source.truncated and (self.max_frames is None or frames < self.max_frames)
        self.printer.videos.append(
            {"source": source.name, "frames": frames, "expected": source.length, "truncated": truncated}
        )
        if truncated:
            message = f"{source.name} is truncated: {frames} of {source.length} frames can be decoded."
            click.echo(f"warning: {message}", err=True)


def _shown(files: dict[str, str]) -> str:
    """The file to name in a line of text."""
    return files.get("overlay") or next(iter(files.values()), "")


def _first(source: Video | Live, count: int | None) -> Iterator[Frame]:
    """At most `count` frames of a source."""
    for number, frame in enumerate(source, 1):
        yield frame
        if number == count:
            return


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print the SDK's warnings, such as a truncated prompt, as one line each."""
    from cris_edge.tokenizer import PromptWarning

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        click.echo(f"warning: {' '.join(str(message).split())}", err=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=PromptWarning)
        warnings.showwarning = show
        yield
