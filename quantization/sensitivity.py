"""``python -m quantization.sensitivity``: the effect of quantizing each group of layers alone, as a table and a chart.

Measures a checkpoint that `quantization.finetune` wrote, whose second stage leaves the most sensitive groups in float.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cris_edge.errors import CheckpointError, CrisEdgeError
from cris_edge.image import THRESHOLD, postprocess, preprocess
from cris_edge.metrics import iou, logits_agreement
from cris_edge.tokenizer import Tokenizer
from quantization.deploy_network import DeployNetwork, Features
from quantization.layout import groups
from quantization.quantizers import FakeQuantizer
from training.data.samples import Example, Source

Groups = dict[str, list[FakeQuantizer]]


@dataclass(frozen=True)
class Row:
    """One group of layers.

    Attributes:
        group: Graph and block, such as ``mask_decoder/layers.1``.
        quantizers: Number of its quantizers.
        change: 1 minus the mean IoU of the masks with only this group quantized and those in float, in percent.
        drop: Drop in mIoU, in points.
    """

    group: str
    quantizers: int
    change: float
    drop: float


@dataclass
class _Case:
    example: Example
    letterbox: Any
    image: Tensor
    tokens: Tensor
    features: tuple[Features, Features]
    logits: Tensor


def grouped(network: DeployNetwork, bare: DeployNetwork) -> Groups:
    """Group the quantizers of `network` by graph and block; `bare` is the same network in float."""
    architecture = network.architecture
    image = torch.zeros(1, 3, architecture.input_size, architecture.input_size)
    tokens = torch.ones(1, architecture.word_len, dtype=torch.int64)
    with torch.no_grad():
        known = {"image": image, "tokens": tokens, **bare.encode_image(image), **bare.encode_text(tokens)}
    found: Groups = {}
    for name, module in network.graphs.items():
        plain: Any = bare.graphs[name]
        inputs = [known[tensor] for tensor in plain.input_names]
        for block, members in groups(module, plain, inputs).items():
            found[f"{name}/{block}"] = members
    return found


@contextmanager
def only(every: Groups, enabled: Sequence[str]) -> Iterator[None]:
    """Quantize only the `enabled` groups; quantizers that were disabled stay so."""
    before = {quantizer: quantizer.enabled for members in every.values() for quantizer in members}
    try:
        for group, members in every.items():
            for quantizer in members:
                quantizer.enabled = before[quantizer] and group in enabled
        yield
    finally:
        for quantizer, was in before.items():
            quantizer.enabled = was


@torch.no_grad()
def measure(network: DeployNetwork, every: Groups, source: Source, *, limit: int = 32) -> list[Row]:
    """Measure all groups; returns the most sensitive first.

    The order is by the change of masks: mIoU, the mean of few and coarse numbers, separates groups much later.

    Args:
        network: Quantized.
        every: Its groups (`grouped`).
        source: Labelled images and prompts.
        limit: Number of images, evenly spaced in the source.
    """
    indices = np.unique(np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int))
    with only(every, ()):
        cases = [_case(network, source, int(index)) for index in indices]
        before = _accuracy(cases, [case.logits for case in cases])
    rows = []
    for group, members in tqdm(every.items(), desc="sensitivity", disable=None, unit="group", file=sys.stderr):
        with only(every, (group,)):
            logits = [_run(network, case, group.partition("/")[0]) for case in cases]
        change = 100 * (1 - float(np.mean([_agreement(a, case.logits) for a, case in zip(logits, cases, strict=True)])))
        rows.append(Row(group, len(members), change, before - _accuracy(cases, logits)))
    return sorted(rows, key=lambda row: row.change, reverse=True)


def _case(network: DeployNetwork, source: Source, index: int) -> _Case:
    architecture = network.architecture
    example = source.load(index, architecture.input_size)
    pixels, letterbox = preprocess(example.image, architecture.input_size)
    tokens = torch.from_numpy(Tokenizer()(example.sentences, length=architecture.word_len))
    image = torch.from_numpy(pixels)
    features = network.encode_image(image), network.encode_text(tokens)
    return _Case(example, letterbox, image, tokens, features, network.decode(*features))


def _run(network: DeployNetwork, case: _Case, graph: str) -> Tensor:
    """The logits; features that do not depend on `graph` are taken from the run in float."""
    image, text = case.features
    if graph == "image_encoder":
        image = network.encode_image(case.image)
    if graph == "text_encoder":
        text = network.encode_text(case.tokens)
    return network.decode(image, text)


def _agreement(found: Tensor, expected: Tensor) -> float:
    pairs = zip(found.numpy(), expected.numpy(), strict=True)
    return float(np.mean([logits_agreement(ours, theirs, THRESHOLD) for ours, theirs in pairs]))


def _accuracy(cases: Sequence[_Case], logits: Sequence[Tensor]) -> float:
    """Mean IoU on the original images, in percent."""
    found = []
    for case, several in zip(cases, logits, strict=True):
        for number, one in enumerate(several.numpy()):
            if number not in case.example.absent:
                mask = postprocess(one[None], case.letterbox) > THRESHOLD
                found.append(iou(mask, case.example.truth(number)))
    return 100 * float(np.mean(found))


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "quantizers", "mask_change_percent", "miou_drop_points"])
        for row in rows:
            writer.writerow([row.group, row.quantizers, f"{row.change:.3f}", f"{row.drop:.3f}"])


def write_chart(rows: Sequence[Row], path: Path, title: str) -> None:
    """Plot the rows as horizontal bars (PNG or SVG, by the path's suffix)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = {"image_encoder": "#4477aa", "text_encoder": "#ccbb44", "mask_decoder": "#aa3377"}
    figure = Figure(figsize=(7, 0.8 + 0.22 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.barh(
        [row.group for row in rows],
        [row.change for row in rows],
        color=[colours.get(row.group.partition("/")[0], "#777777") for row in rows],
    )
    axes.invert_yaxis()
    axes.set_xlabel("change of masks, % (1 − mean IoU with the masks in float)")
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.margins(y=0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


@click.command(help=__doc__)
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="A quantized checkpoint.")
@click.option("--data", required=True, metavar="FILE.jsonl", help="Labelled data, or scenes:SPLIT:LENGTH:SEED.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder for the table and the chart.")
@click.option("--images", type=click.IntRange(1), default=32, show_default=True, help="Images to measure on.")
def main(checkpoint: Path, data: str, output: Path, images: int) -> None:
    """Run the command line."""
    from quantization.quantized_checkpoint import deploy, load_quantized
    from training.data.samples import open_source
    from training.model import CRIS, Architecture

    try:
        source = open_source(data, by_image=True)
        network, _ = load_quantized(checkpoint)
        if not isinstance(network.architecture, Architecture):
            raise CheckpointError(f"{checkpoint} is not a quantized CRIS; sensitivity is only measured for CRIS.")
        bare = deploy(CRIS(network.architecture), network.mask_decoder.resolution)
        rows = measure(network, grouped(network, bare), source, limit=images)
        write_table(rows, output / "sensitivity.csv")
        write_chart(rows, output / "sensitivity.png", f"{checkpoint.stem}, one group quantized at a time")
    except CrisEdgeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    for row in rows[:10]:
        click.echo(f"{row.group:40} {row.change:6.2f} %  {row.drop:+.2f} points", err=True)


if __name__ == "__main__":
    main()
