"""``python -m runtimes.export --checkpoint FILE --output DIR``: turn a trained checkpoint into a bundle.

Nothing appears at ``--output`` before every graph, in every runtime, was found to compute what PyTorch computes.
"""

from __future__ import annotations

import gc
import logging
import platform
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from shutil import copyfile
from typing import Any

import click
import numpy as np
from click.core import ParameterSource
from tqdm import tqdm

from cris_edge.bundle import BundleWriter, default_model
from cris_edge.bundle.manifest import GRAPHS, PRECISIONS, GraphSpec, long_precision
from cris_edge.errors import CrisEdgeError, ExportError, OptionError
from cris_edge.image import MEAN, STD, THRESHOLD
from cris_edge.tokenizer import Tokenizer
from runtimes import accuracy
from runtimes.network import Array, example_inputs
from runtimes.probes import draw, free_photos
from runtimes.quantized import FORMS
from runtimes.source_model import Metrics, SourceModel, open_model
from runtimes.targets.target import Job, Target, known_targets
from training.checkpoint import sha256
from training.data.samples import Source, open_source
from training.download import fetch

logger = logging.getLogger("cris_edge.runtimes")


def default_runtimes() -> tuple[str, ...]:
    """Return the names of the targets that an export includes by default."""
    return tuple(name for name, target in known_targets().items() if target.default)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `export`; ``python -m runtimes.export --help`` explains them.

    `settings` holds the values of the targets' own options, by parameter name.
    """

    precision: str = "float32"
    runtimes: tuple[str, ...] = field(default_factory=default_runtimes)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    max_drop: float | None = None
    input_size: int | None = None
    word_len: int | None = None
    decoder_heads: int | None = None
    before: Path | None = None
    name: str | None = None
    description: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked before any work is done."""
        object.__setattr__(self, "precision", long_precision(self.precision))
        if self.precision not in PRECISIONS:
            raise OptionError(f"Unknown precision {self.precision!r}. Available: {', '.join(PRECISIONS)}.")
        if self.max_drop is not None and self.data is None:
            raise OptionError("--max-drop needs labelled data to measure on: pass --data.")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise OptionError(f"--max-drop is {self.max_drop}; expected points of mIoU, 0 or more.")
        self.targets()

    def targets(self) -> list[Target]:
        """Return a new target for each runtime; raises `OptionError` if one does not take these options."""
        known, chosen = known_targets(), ", ".join(self.runtimes)
        if not self.runtimes:
            raise OptionError(f"No runtime was given. Available: {', '.join(known)}.")
        for name in self.runtimes:
            if name not in known:
                raise OptionError(f"Unknown runtime {name!r}. Available: {', '.join(known)}.")
            if self.precision not in known[name].precisions:
                raise OptionError(f"The runtime {name} does not take {self.precision}; leave it out of --runtimes.")
        taken = {option.name for name in self.runtimes for option in known[name].options}
        for setting, value in self.settings.items():
            if setting not in taken:
                flag = f"--{setting.replace('_', '-')}"
                raise OptionError(f"{flag} {value!r} was given, but none of the runtimes ({chosen}) has this option.")
        return [known[name](self.settings) for name in self.runtimes]


class Progress:
    """A progress bar on stderr, with a log line for each step."""

    def __init__(self, steps: int) -> None:
        form = "{desc:24} {bar} {n_fmt}/{total_fmt} {elapsed}"
        self._bar = tqdm(total=steps, disable=None, file=sys.stderr, bar_format=form)

    def detail(self, what: str) -> None:
        """Show a part of the current step."""
        logger.info("%s", what)
        self._bar.set_description_str(what)

    def step(self, what: str) -> None:
        """Begin the next step."""
        self.detail(what)
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def export(checkpoint: Path, output: Path, options: Options) -> Path:
    """Write the bundle `output` from `checkpoint`; returns its path.

    Each graph and the chain of three are run in each runtime and compared with PyTorch (`runtimes.parity` states the
    tolerances). With labelled data, PyTorch and every runtime are scored on it.

    Raises:
        CheckpointError: The file is not a checkpoint, or an option contradicts it.
        ExportError: A graph cannot be lowered, differs from PyTorch, or loses more accuracy than allowed.
        BundleError: `output` exists.
        RuntimeMissingError: A runtime is not installed.
    """
    targets = options.targets()
    for target in targets:
        target.require()
    source = None if options.data is None else open_source(options.data, by_image=True)
    with BundleWriter(output, overwrite=options.overwrite) as writer, _progress(options) as progress:
        model = _load(checkpoint, options, progress)
        job = _prepare(model, checkpoint, source, options, writer.path, progress)
        metrics = _score_pytorch(job, progress)
        parity = _run_pytorch(job, targets, progress)
        graphs = _lower(job, targets, progress)
        for target in targets:
            progress.step(f"compare {target.name}")
            parity += target.check(job)
            if source is not None:
                progress.step(f"score {target.name}")
                metrics.append(target.score(job, source))
                accuracy.require(metrics[0], metrics[-1], options.data, options.max_drop)
        progress.step("write")
        np.savez_compressed(writer.path / "golden.npz", **_golden(job, targets))  # type: ignore[arg-type]
        writer.manifest = {
            **_stated(model, options, writer.target.name),
            **_written(job, targets, graphs),
            "parity": parity,
            "metrics": metrics,
            **({"presence": asdict(job.presence)} if job.presence is not None else {}),
            "provenance": _provenance(model, checkpoint, targets),
        }
    return writer.target


def _load(checkpoint: Path, options: Options, progress: Progress) -> SourceModel:
    progress.step("load the checkpoint")
    given = {name: getattr(options, name) for name in ("word_len", "decoder_heads", "input_size")}
    return open_model(checkpoint, options.precision, before=options.before, **given)


def _prepare(
    model: SourceModel, checkpoint: Path, source: Source | None, options: Options, folder: Path, progress: Progress
) -> Job:
    """Write the tokenizer and prepare the inputs on which graphs are compared."""
    copyfile(default_model() / "tokenizer.json", folder / "tokenizer.json")
    sizes = model.architecture
    probes = draw(sizes.input_size, sizes.word_len, Tokenizer(folder / "tokenizer.json"), _photos(source))
    largest = max(int(tokens.max()) for _, tokens in probes.prompts)
    if largest >= sizes.vocab_size:
        raise ExportError(
            f"{checkpoint} has a table of {sizes.vocab_size} tokens, and CLIP's tokenizer gives ids up to {largest}: "
            "expected a model trained with CLIP's vocabulary."
        )
    return Job(model, probes, source, options.precision, folder, progress.detail)


def _photos(source: Source | None) -> dict[str, Array]:
    """Return photos to compare on: those of scikit-image, if it is installed, and the first of the data."""
    photos = free_photos()
    if source is not None:
        photos[f"the image {source.id(0)}"] = source.load(0, 416).image
    if not photos:
        logger.warning("no photo found, so graphs are compared on synthetic scenes; pip install scikit-image")
    return photos


def _score_pytorch(job: Job, progress: Progress) -> list[Metrics]:
    if job.source is not None:
        progress.step("score PyTorch")
    job.presence = job.model.presence(job.source)
    return job.model.metrics(job.source, job.presence)


def _run_pytorch(job: Job, targets: Sequence[Target], progress: Progress) -> list[dict[str, Any]]:
    """Compute what the graphs will be compared with, and return the manifest's entries about PyTorch."""
    progress.step("run PyTorch")
    rows: list[dict[str, Any]] = []
    for form in dict.fromkeys([target.form for target in targets if target.form] or FORMS[:1]):
        job.references[form], found = job.model.reference(job.probes, form)
        rows += found
    job.examples |= example_inputs(job.model.modules, job.probes.images[0][1], job.probes.prompts[0][1])
    return rows


def _lower(job: Job, targets: Sequence[Target], progress: Progress) -> dict[str, GraphSpec]:
    """Write every graph for every target, one graph at a time; returns the tensors of each graph."""
    for target in targets:
        target.prepare(job)
    for name in GRAPHS:
        for target in targets:
            progress.step(f"lower {name}")
            target.lowered[name] = target.lower(name, job)
        del job.examples[name]
        gc.collect()
    return {name: lowered.spec for name, lowered in targets[0].lowered.items()}


def _golden(job: Job, targets: Sequence[Target]) -> dict[str, Array]:
    """Return the golden pairs: inputs, true masks and PyTorch's logits, and those of targets with other arithmetic."""
    probes, count = job.probes, len(job.probes.golden_prompts)
    logits = {f"logits_{target.name}": target.golden_logits(job) for target in targets}
    return {
        "image": probes.golden_images,
        "tokens": np.concatenate([probes.prompts[text][1] for _, text in probes.pairs[:count]]),
        "logits": np.concatenate(next(iter(job.references.values())).logits[:count]),
        "truth": probes.golden_truth,
        **{name: values for name, values in logits.items() if values is not None},
    }


def _stated(model: SourceModel, options: Options, name: str) -> dict[str, Any]:
    """Return the part of the manifest that is about the model."""
    sizes, recorded = model.architecture, model.recorded
    origin = f"trained by the recipe {recorded['recipe']}" if "recipe" in recorded else "of unrecorded training"
    default = f"{model.kind} for {sizes.input_size} pixels and {sizes.word_len} tokens, {origin}."
    return {
        "name": options.name or name,
        "description": options.description or recorded.get("description") or default,
        "architecture": sizes.to_dict(),
        "input_size": sizes.input_size,
        "word_len": sizes.word_len,
        "mean": list(MEAN),
        "std": list(STD),
        "threshold": THRESHOLD,
    }


def _written(job: Job, targets: Sequence[Target], graphs: Mapping[str, GraphSpec]) -> dict[str, Any]:
    """Return the part of the manifest that is about the files."""
    stored = [target.stored(job.precision) for target in targets]
    accelerators = {target.name: target.record(job) for target in targets}
    accelerators = {name: entry for name, entry in accelerators.items() if entry}
    return {
        "precision": job.precision if job.precision in stored else stored[0],
        "graphs": {name: _plain(spec) for name, spec in graphs.items()},
        "runtimes": {
            target.name: {
                name: lowered.path.relative_to(job.folder).as_posix() for name, lowered in target.lowered.items()
            }
            for target in targets
        },
        "golden": "golden.npz",
        "golden_prompts": list(job.probes.golden_prompts),
        **({"npu": accelerators} if accelerators else {}),
    }


def _plain(spec: GraphSpec) -> dict[str, Any]:
    tensors = {
        kind: [{"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype} for tensor in values]
        for kind, values in (("inputs", spec.inputs), ("outputs", spec.outputs))
    }
    return {**tensors, "macs": spec.macs}


def _provenance(model: SourceModel, checkpoint: Path, targets: Sequence[Target]) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in ("torch", "onnx", "numpy", *(target.distribution for target in targets)):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # several distributions carry ONNX Runtime under other names
            versions[package] = "unknown"
    return {
        "recipe": model.recorded.get("recipe"),
        "checkpoint_sha256": sha256(checkpoint),
        "versions": versions,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@contextmanager
def _progress(options: Options) -> Iterator[Progress]:
    scored = options.data is not None
    progress = Progress(3 + scored + len(options.runtimes) * (len(GRAPHS) + 1 + scored))
    try:
        yield progress
    finally:
        progress.close()


class _Command(click.Command):
    """A command that also has the options of every target, those registered after this module was imported included."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        *own, help_option = super().get_params(ctx)
        return [*own, *_target_options(), help_option]


def _target_options() -> list[click.Option]:
    return [option for target in known_targets().values() for option in target.options]


@click.command(help=__doc__, cls=_Command)
@click.option(
    "--checkpoint",
    required=True,
    metavar="FILE",
    help="A checkpoint: path, URL, or owner/name/file on the hub.",
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the bundle; must not exist.")
@click.option(
    "--precision",
    metavar="|".join(PRECISIONS),
    default="float32",
    show_default=True,
    help="How the bundle stores weights.",
)
@click.option(
    "--runtimes",
    default=",".join(default_runtimes()),
    show_default=True,
    help="Names, separated by commas.",
)
@click.option("--data", metavar="FILE.jsonl", help="Labelled data to score on, or scenes:SPLIT:LENGTH:SEED.")
@click.option("--max-drop", type=float, metavar="POINTS", help="Fail if a runtime loses more mIoU than this.")
@click.option("--input-size", type=int, help="Pixels, for checkpoints that do not state it.  [default: 416]")
@click.option("--word-len", type=int, help="Tokens, for checkpoints that do not state it.  [default: 17]")
@click.option("--decoder-heads", type=int, help="For checkpoints that do not state it.  [default: 8]")
@click.option(
    "--float",
    "before",
    type=click.Path(path_type=Path),
    help="The float checkpoint behind a quantized one, to measure the drop against.  [default: where it was]",
)
@click.option("--name", help="Name of the model.  [default: the folder's]")
@click.option("--description", help="One or two sentences: what the model knows and what it does not.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle at --output.")
@click.pass_context
def main(context: click.Context, /, checkpoint: str, output: Path, runtimes: str, **others: Any) -> None:
    """Read the command line and export."""
    settings = {option.name: others.pop(option.name) for option in _target_options() if option.name}
    given = {
        name: value for name, value in settings.items() if context.get_parameter_source(name) != ParameterSource.DEFAULT
    }
    try:
        names = tuple(dict.fromkeys(name.strip() for name in runtimes.split(",") if name.strip()))
        options = Options(runtimes=names, settings=given, **others)
    except OptionError as error:
        raise click.UsageError(str(error)) from error
    # As Ctrl-C does: unwind, and so remove what was written so far.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: the export was terminated; nothing was written."))
    try:
        export(fetch(checkpoint), output, options)
    except CrisEdgeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
