"""``python -m runtimes.export --checkpoint FILE --output DIR``: a trained CRIS becomes a bundle.

Nothing appears at ``--output`` before every graph, in every runtime, was found to compute what PyTorch computes.
"""

from __future__ import annotations

import gc
import logging
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from shutil import copyfile
from typing import Any

import click
import numpy as np
import onnx
from tqdm import tqdm

from cris_edge.backends import registry
from cris_edge.bundle import BundleWriter, default_model
from cris_edge.bundle.manifest import GRAPHS, GraphSpec, TensorSpec
from cris_edge.errors import CrisEdgeError, ExportError, OptionError, RuntimeMissingError
from cris_edge.image import MEAN, STD, THRESHOLD
from cris_edge.tokenizer import Tokenizer
from runtimes import accuracy, npu_rules, onnx_graph, qnn, socs
from runtimes.accuracy import NetworkPredictor
from runtimes.cost import multiply_accumulates
from runtimes.htp import Compiler
from runtimes.lowering import LOWERINGS, Lowering
from runtimes.network import Array, example_inputs
from runtimes.parity import Reference, check, compiled
from runtimes.probes import Probes, draw, free_photos
from runtimes.subject import Subject, entry, open_subject
from training.checkpoint import sha256
from training.data.samples import Source, open_source
from training.download import fetch
from training.model import Architecture

logger = logging.getLogger("cris_edge.runtimes")

PRECISIONS = ("fp32", "fp16", "int8")

Step = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `export` is asked for; ``python -m runtimes.export --help`` says what each means."""

    precision: str = "fp32"
    runtimes: tuple[str, ...] = tuple(LOWERINGS)
    soc: str | None = None
    shared_onnx: bool = False
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
        known = ", ".join((*LOWERINGS, qnn.NAME))
        if self.precision not in PRECISIONS:
            raise OptionError(f"The precision {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}.")
        if not self.runtimes:
            raise OptionError(f"No runtime was given; choose from {known}.")
        for runtime in self.runtimes:
            if runtime not in (*LOWERINGS, qnn.NAME):
                raise OptionError(f"There is no lowering to the runtime {runtime!r}; choose from {known}.")
        if qnn.NAME in self.runtimes:
            if self.soc is None:
                raise OptionError(
                    f"The runtime {qnn.NAME} is compiled for one chip; name it with --soc: {', '.join(socs.SOCS)}."
                )
            socs.find(self.soc)
        elif self.soc is not None:
            raise OptionError(
                f"The chip {self.soc!r} was given, but none of {', '.join(self.runtimes)} compiles for one."
            )
        if self.max_drop is not None and self.data is None:
            raise OptionError("A largest drop was given, but no labelled data to measure it on; give --data too.")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise OptionError(f"The largest drop is {self.max_drop}; expected points of mIoU, 0 or more.")

    @property
    def at_home(self) -> tuple[str, ...]:
        """The runtimes that are compared with PyTorch on this machine's processor."""
        return tuple(runtime for runtime in self.runtimes if runtime != qnn.NAME)


def export(checkpoint: Path, output: Path, options: Options, *, lowerings: Mapping[str, Lowering] = LOWERINGS) -> Path:
    """Write the bundle `output` from `checkpoint`; returns its path.

    Each graph and the chain of three are run in each runtime at its default optimization level, in float32 and in the
    precision that it chooses on this machine, and compared with PyTorch (`runtimes.parity` states the tolerances).
    With labelled data, PyTorch and every runtime are scored on it.

    Raises:
        CheckpointError: The file is not a CRIS checkpoint, or an option disagrees with it.
        ExportError: A graph cannot be lowered, differs from PyTorch, or loses more accuracy than allowed.
        BundleError: `output` exists.
        RuntimeMissingError: A runtime is not installed.
    """
    _require_installed(options.at_home)
    compiler = Compiler(socs.find(options.soc)) if options.soc is not None else None
    source = None if options.data is None else open_source(options.data, by_image=True)
    with BundleWriter(output, overwrite=options.overwrite) as writer, _progress(options) as step:
        step("load the checkpoint")
        given = {name: getattr(options, name) for name in ("word_len", "decoder_heads", "input_size")}
        subject = open_subject(checkpoint, options.precision, before=options.before, **given)
        architecture = subject.architecture
        copyfile(default_model() / "tokenizer.json", writer.path / "tokenizer.json")
        tokenizer = Tokenizer(writer.path / "tokenizer.json")
        probes = draw(architecture.input_size, architecture.word_len, tokenizer, _photos(source))
        _require_vocabulary(probes, architecture, checkpoint)
        if source is not None:
            step("score PyTorch")
        metrics = subject.metrics(source)
        step("run PyTorch")
        forms = {runtime: "onnxruntime" if options.shared_onnx else runtime for runtime in options.at_home}
        references: dict[str, Reference] = {}
        parity: list[dict[str, Any]] = []
        for form in dict.fromkeys(forms.values() or ["onnxruntime"]):
            references[form], rows = subject.reference(probes, form)
            parity += rows
        ours = {name: references[form] for name, form in forms.items()} or references
        golden = _golden(probes, ours)
        graphs, files = _lower(subject, probes, options, forms, lowerings, writer.path, step)
        for runtime in options.at_home:
            step(f"compare {runtime}")
            parity += _compare(references[forms[runtime]], runtime, files[runtime], graphs)
            if source is not None:
                step(f"score {runtime}")
                form, weights = forms[runtime], options.precision
                metrics.append(accuracy.score(subject, runtime, form, files[runtime], graphs, source, weights))
                accuracy.require(metrics[0], metrics[-1], options.data, options.max_drop)
        npu: dict[str, Any] = {}
        if "openvino" in files:
            npu["openvino"] = npu_rules.examine(files["openvino"], writer.path)
        if compiler is not None:
            lowered = qnn.lower(subject.modules, architecture, source, probes, THRESHOLD, writer.path, compiler, step)
            golden[f"logits_{qnn.NAME}"] = qnn.golden_logits(lowered, probes)
            graphs, files[qnn.NAME], npu[qnn.NAME] = graphs or lowered.graphs, lowered.files, lowered.record
            parity += lowered.parity
            if source is not None:
                step(f"score {qnn.NAME}")
                size = architecture.input_size, architecture.word_len
                simulated = NetworkPredictor(lowered.simulated, qnn.NAME, lowered.simulation, *size)
                metrics.append(entry(simulated, source))
                accuracy.require(metrics[0], metrics[-1], options.data, options.max_drop)
        step("write")
        np.savez_compressed(writer.path / "golden.npz", **golden)  # type: ignore[arg-type]
        recorded = subject.recorded
        writer.manifest = {
            "name": options.name or writer.target.name,
            "description": options.description or recorded.get("description") or _description(architecture, recorded),
            "architecture": architecture.to_dict(),
            "input_size": architecture.input_size,
            "word_len": architecture.word_len,
            "mean": list(MEAN),
            "std": list(STD),
            "threshold": THRESHOLD,
            "precision": options.precision if options.at_home else "int8",
            "graphs": {name: _plain(spec) for name, spec in graphs.items()},
            "runtimes": {
                runtime: {name: path.relative_to(writer.path).as_posix() for name, path in paths.items()}
                for runtime, paths in files.items()
            },
            "golden": "golden.npz",
            "golden_prompts": list(probes.golden_prompts),
            "parity": parity,
            "metrics": metrics,
            **({"npu": npu} if npu else {}),
            "provenance": {
                "recipe": recorded.get("recipe"),
                "checkpoint_sha256": sha256(checkpoint),
                "versions": _versions(options.runtimes),
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            },
        }
    return writer.target


def _lower(
    subject: Subject,
    probes: Probes,
    options: Options,
    forms: Mapping[str, str],
    lowerings: Mapping[str, Lowering],
    folder: Path,
    step: Step,
) -> tuple[dict[str, GraphSpec], dict[str, dict[str, Path]]]:
    """Each graph in the form of each runtime, one at a time; its tensors by graph, its file by runtime and graph."""
    examples = example_inputs(subject.modules, probes.images[0][1], probes.sentences[0][1])
    graphs: dict[str, GraphSpec] = {}
    files: dict[str, dict[str, Path]] = {runtime: {} for runtime in forms}
    for index, name in enumerate(GRAPHS):
        step(f"lower {name}")
        inputs = examples.pop(name)
        written: dict[str, Path] = {}
        for runtime, form in forms.items():
            if form not in written:
                graph = subject.trace(index, name, inputs, form)
                graphs[name] = _spec(graph)
                written[form] = lowerings[form](graph, options.precision, folder)
                del graph
            files[runtime][name] = written[form]
        gc.collect()
    return graphs, files


def _golden(probes: Probes, references: Mapping[str, Reference]) -> dict[str, Array]:
    """The golden pairs: inputs, what they mean, and PyTorch's logits, of each runtime whose form has its own."""
    count = len(probes.golden_prompts)
    first = next(iter(references.values()))
    own = {
        f"logits_{runtime}": np.concatenate(reference.logits[:count])
        for runtime, reference in references.items()
        if reference is not first
    }
    return {
        "image": probes.golden_images,
        "tokens": np.concatenate([probes.sentences[text][1] for _, text in probes.pairs[:count]]),
        "logits": np.concatenate(first.logits[:count]),
        "truth": probes.golden_truth,
        **own,
    }


def _compare(
    reference: Reference, runtime: str, files: Mapping[str, Path], graphs: Mapping[str, GraphSpec]
) -> list[dict[str, Any]]:
    """A runtime held against PyTorch in float32 and, where that is another one, in the precision of its own choice."""
    found: dict[str, list[dict[str, Any]]] = {}
    for asked in ("float32", "auto"):
        with compiled(runtime, files, graphs, asked) as (network, precision):
            if precision not in found:
                found[precision] = check(reference, network, runtime, precision)
    return [row for rows in found.values() for row in rows]


def _spec(graph: onnx.ModelProto) -> GraphSpec:
    inputs, outputs = (
        tuple(TensorSpec(*tensor) for tensor in onnx_graph.tensors(values))
        for values in (graph.graph.input, graph.graph.output)
    )
    return GraphSpec(inputs, outputs, multiply_accumulates(graph))


def _plain(spec: GraphSpec) -> dict[str, Any]:
    tensors = {
        kind: [{"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype} for tensor in values]
        for kind, values in (("inputs", spec.inputs), ("outputs", spec.outputs))
    }
    return {**tensors, "macs": spec.macs}


def _require_installed(runtimes: tuple[str, ...]) -> None:
    installed = registry.available()
    for runtime in runtimes:
        if runtime not in installed:
            raise RuntimeMissingError(
                f"The runtime {runtime} is not installed, so the bundle's graphs cannot be checked in it; run "
                f"`pip install {runtime}`, or leave it out of --runtimes."
            )


def _require_vocabulary(probes: Probes, architecture: Architecture, checkpoint: Path) -> None:
    largest = max(int(tokens.max()) for _, tokens in probes.sentences)
    if largest >= architecture.vocab_size:
        raise ExportError(
            f"{checkpoint} has a table of {architecture.vocab_size} tokens, and CLIP's tokenizer gives ids up to "
            f"{largest}; expected a CRIS that was trained with CLIP's vocabulary."
        )


def _photos(source: Source | None) -> dict[str, Array]:
    """Photos to compare on: those that come with scikit-image, where it is installed, and the first of the data."""
    photos = free_photos()
    if source is not None:
        photos[f"the image {source.id(0)}"] = source.load(0, 416).image
    if not photos:
        logger.warning("no photo is at hand, so the graphs are compared on drawn scenes; pip install scikit-image")
    return photos


def _description(architecture: Architecture, recorded: Mapping[str, Any]) -> str:
    origin = f"trained by the recipe {recorded['recipe']}" if "recipe" in recorded else "of unrecorded training"
    return (
        f"CRIS with {architecture.decoder_layers} decoder layers for {architecture.input_size} pixels and "
        f"{architecture.word_len} tokens, {origin}."
    )


def _versions(runtimes: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "onnx", "numpy", *("onnxruntime-qnn" if name == qnn.NAME else name for name in runtimes)):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # several distributions carry ONNX Runtime under other names
            found[package] = "unknown"
    return found


@contextmanager
def _progress(options: Options) -> Iterator[Step]:
    scored = options.data is not None
    total = 3 + len(GRAPHS) + scored + len(options.runtimes) * (1 + scored)
    total += (options.soc is not None) * (1 + 2 * len(GRAPHS))
    form = "{desc:24} {bar} {n_fmt}/{total_fmt} {elapsed}"
    with tqdm(total=total, disable=None, file=sys.stderr, bar_format=form) as bar:

        def step(what: str) -> None:
            logger.info("%s", what)
            bar.set_description_str(what)
            bar.update()

        yield step


@click.command(help=__doc__)
@click.option(
    "--checkpoint",
    required=True,
    metavar="FILE",
    help="A CRIS checkpoint: path, URL, or owner/name/file on the hub.",
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the bundle; must not exist.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="Of the weights.")
@click.option("--runtimes", default=",".join(LOWERINGS), show_default=True, help="Names, separated by commas.")
@click.option("--soc", metavar="NAME", help="The chip to compile for, of a runtime that compiles ahead of time.")
@click.option("--shared-onnx", is_flag=True, help="One set of ONNX files for all runtimes: half the bytes.")
@click.option("--data", metavar="FILE.jsonl", help="Labelled data to score on, or scenes:SPLIT:LENGTH:SEED.")
@click.option("--max-drop", type=float, metavar="POINTS", help="Fail where a runtime loses more mIoU than this.")
@click.option("--input-size", type=int, help="Pixels; for checkpoints that do not say.  [default: 416]")
@click.option("--word-len", type=int, help="Tokens; for checkpoints that do not say.  [default: 17]")
@click.option("--decoder-heads", type=int, help="For checkpoints that do not say.  [default: 8]")
@click.option(
    "--float",
    "before",
    type=click.Path(path_type=Path),
    help="The float checkpoint behind a quantized one, to measure the drop against.  [default: where it was]",
)
@click.option("--name", help="Of the model.  [default: the folder's]")
@click.option("--description", help="One or two sentences: what the model knows, what not.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle that is at --output.")
def main(checkpoint: str, output: Path, runtimes: str, **others: Any) -> None:
    """Read the command line."""
    try:
        names = tuple(dict.fromkeys(name.strip() for name in runtimes.split(",") if name.strip()))
        options = Options(runtimes=names, **others)
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
