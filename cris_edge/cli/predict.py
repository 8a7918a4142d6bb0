"""``cris-edge predict``: segment images and videos by prompt."""

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
@click.option("--model", metavar="DIR", help="Bundle.  [default: the default model]")
@click.option(
    "--runtime", default="auto", show_default=True, help="openvino, onnxruntime or qnn; auto is the best installed one."
)
@click.option("--device", default="CPU", show_default=True, help="Name used by the runtime; see cris-edge doctor.")
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    help="Precision to compute in: float32, bfloat16 or float16; auto is the device's choice. How weights are stored "
    "is chosen at export.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the runtime's choice]")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="cris-edge-output",
    show_default=True,
    help="Folder for overlays and masks.",
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="Probability threshold.  [default: the model's]")
@click.option(
    "--min-presence", type=click.FloatRange(0, 1), help="Presence below which nothing matches.  [default: the model's]"
)
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
    """Segment what each PROMPT describes in SOURCE: an image, a video, a folder of them, or a pattern such as "*.jpg".

    Writes an overlay and a mask for each image and prompt.
    """
    from cris_edge.media.outputs import Outputs
    from cris_edge.media.sources import find
    from cris_edge.segmenter import Segmenter

    paths = find(source)
    document: dict[str, Any] = {"results": [], "failures": []}
    with _warnings_as_lines(), Segmenter(model, **options) as segmenter:
        for prompt in prompts:
            segmenter.encode_text(prompt)  # fail on a bad prompt before opening any image
        document["segmenter"] = segmenter.info.to_dict()
        job = _Predictions(
            segmenter, list(dict.fromkeys(prompts)), threshold, Outputs(output), None if as_json else click.echo
        )
        for path in progress(paths, "images"):
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
    """Segment images and videos and write the results to files."""

    def __init__(
        self,
        segmenter: Segmenter,
        prompts: list[str],
        threshold: float | None,
        outputs: Outputs,
        report: Callable[[str], None] | None,
    ) -> None:
        self._segmenter = segmenter
        self._prompts = prompts
        self._threshold = threshold
        self._outputs = outputs
        self._report = report

    def run(self, path: Path) -> list[dict[str, Any]]:
        """Process one file and return its entries of the JSON document."""
        from cris_edge.media.sources import is_video

        return self._video(path) if is_video(path) else self._image(path)

    def _image(self, path: Path) -> list[dict[str, Any]]:
        entries = []
        for result in self._segmenter(str(path), self._prompts, threshold=self._threshold):
            files = self._outputs.image(path, result)
            if self._report:
                found = "nothing matches"
                if result.box is not None:
                    found = f"score {result.score:.2f}, box ({', '.join(f'{side:.0f}' for side in result.box)})"
                self._report(f'{path}  "{result.prompt}"  {found}  {files["overlay"]}')
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
        if self._report:
            for prompt, paths in files.items():
                empty = [entry["empty"] for entry in entries if entry["prompt"] == prompt]
                found = f"found in {empty.count(False)} of {len(empty)} frames"
                self._report(f'{path}  "{prompt}"  {found}  {paths["overlay"]}')
        return [{**entry, "files": files[entry["prompt"]]} for entry in entries]


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
