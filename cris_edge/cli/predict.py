"""``cris-edge predict``: masks and overlays of what prompts describe."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cris_edge.cli.program import complain, json_option, progress
from cris_edge.errors import InputError

if TYPE_CHECKING:
    from cris_edge.media.outputs import Outputs
    from cris_edge.result import Segmentation
    from cris_edge.segmenter import Segmenter


@click.command()
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
@json_option
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
    from cris_edge.media.outputs import Outputs
    from cris_edge.media.sources import find
    from cris_edge.segmenter import Segmenter

    paths = find(source)
    document: dict[str, Any] = {"results": [], "failures": []}
    with _warnings_as_lines(), Segmenter(model, **options) as segmenter:
        for prompt in prompts:
            segmenter.encode_text(prompt)  # a bad sentence is told before any picture is opened
        document["segmenter"] = segmenter.info.to_dict()
        job = _Predictions(
            segmenter, list(dict.fromkeys(prompts)), threshold, Outputs(output), None if as_json else click.echo
        )
        for path in progress(paths, "pictures"):
            try:
                document["results"] += job.run(path)
            except InputError as error:
                document["failures"].append({"source": str(path), "error": str(error)})
                complain(str(error))
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
        from cris_edge.media.sources import is_video

        return self._video(path) if is_video(path) else self._image(path)

    def _image(self, path: Path) -> list[dict[str, Any]]:
        entries = []
        for result in self._segmenter(str(path), self._prompts, threshold=self._threshold):
            files = self._outputs.image(path, result)
            self._tell(path, result, files["overlay"])
            entries.append({"source": str(path), **result.to_dict(), "files": files})
        return entries

    def _video(self, path: Path) -> list[dict[str, Any]]:
        from cris_edge.media.sources import Video

        video = Video.open(path)
        entries: list[dict[str, Any]] = []

        def note(frame: int, result: Segmentation) -> None:
            entries.append({"source": str(path), "frame": frame, **result.to_dict()})

        frames = progress(video, path.name, video.length)
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
