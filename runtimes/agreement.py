"""``python -m runtimes.agreement``: compare a bundle's logits and masks with PyTorch's on labelled data.

Export compares logits on a few probes; this compares masks on the original images, through the SDK, in each runtime, in
float32 and in the precision that the runtime chooses.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cris_edge.backends import registry
from cris_edge.bundle import Bundle
from cris_edge.errors import CrisEdgeError
from cris_edge.image import Letterbox, postprocess, preprocess
from cris_edge.metrics import agreement
from cris_edge.tokenizer import Tokenizer
from quantization.deploy_network import Predictor as DeployPredictor
from quantization.quantized_checkpoint import is_quantized, load_quantized
from runtimes.quantized import in_form
from training.checkpoint import load_network, read_checkpoint
from training.data.samples import Source, open_source
from training.scoring import BundlePredictor, Predictor, TorchPredictor, run_predictor


@dataclass(frozen=True)
class Agreement:
    """A runtime compared with PyTorch, on all prompts or on those that match something, or nothing, in their image.

    Where nothing matches, networks answer noise, and runtimes agree less on it: the two kinds are judged apart.

    Attributes:
        runtime: Its name.
        precision: Precision that it computed in.
        prompts: "all", "matching" or "not matching".
        sentences: Number of prompts compared.
        logit_scale: Largest absolute logit of PyTorch.
        logit_difference: Largest absolute difference of a logit.
        mean_logit_difference: Mean absolute difference of logits.
        foreground: PyTorch's mean share of mask pixels; near 0 or 1 the comparison means little.
        mask_iou: Mean over the prompts of the IoU with PyTorch's mask on the original image.
        worst_mask_iou: The smallest of these.
        same_answer: Share of prompts for which both masks are empty, or neither is.
        presence_difference: Largest difference of the presence; None where it is not computed.
    """

    runtime: str
    precision: str
    prompts: str
    sentences: int
    logit_scale: float
    logit_difference: float
    mean_logit_difference: float
    foreground: float
    mask_iou: float
    worst_mask_iou: float
    same_answer: float
    presence_difference: float | None


@dataclass(frozen=True)
class _Pair:
    """One prompt as PyTorch and one other answer it."""

    matches: bool
    scale: float
    largest: float
    mean: float
    foreground: float
    iou: float
    same_answer: bool
    presence: float | None


def compare(
    reference: Predictor,
    others: Sequence[Predictor],
    source: Source,
    *,
    threshold: float,
    min_presence: float = 0.0,
    limit: int | None = None,
) -> list[Agreement]:
    """Compare predictors with a reference on every prompt of the first `limit` examples of `source`.

    Returns:
        A row for all prompts of each predictor; where some match nothing, two more, for either kind alone.
    """
    count = len(source) if limit is None else min(limit, len(source))
    tokenizer = Tokenizer()
    pairs: list[list[_Pair]] = [[] for _ in others]
    for index in tqdm(range(count), desc="compare", disable=None, unit="image"):
        example = source.load(index, reference.input_size)
        pixels, letterbox = preprocess(example.image, reference.input_size)
        tokens = tokenizer(example.sentences, length=reference.word_len)
        expected, known = run_predictor(reference, pixels, tokens)
        masks = _masks(expected, known, letterbox, threshold, min_presence)
        for number, other in enumerate(others):
            found, presence = run_predictor(other, pixels, tokens)
            for row, mask in enumerate(_masks(found, presence, letterbox, threshold, min_presence)):
                difference = np.abs(found[row] - expected[row])
                pairs[number].append(
                    _Pair(
                        matches=row not in example.absent,
                        scale=float(np.abs(expected[row]).max()),
                        largest=float(difference.max()),
                        mean=float(difference.mean()),
                        foreground=float(masks[row].mean()),
                        iou=agreement(mask, masks[row]),
                        same_answer=bool(mask.any()) == bool(masks[row].any()),
                        presence=None
                        if known is None or presence is None
                        else abs(float(known[row]) - float(presence[row])),
                    )
                )
    rows = []
    for other, own in zip(others, pairs, strict=True):
        groups = {"all": own}
        if absent := [pair for pair in own if not pair.matches]:
            groups |= {"matching": [pair for pair in own if pair.matches], "not matching": absent}
        rows += [_summary(other, prompts, group) for prompts, group in groups.items() if group]
    return rows


def _masks(
    logits: Any, presence: Any, letterbox: Letterbox, threshold: float, min_presence: float
) -> list[NDArray[np.bool_]]:
    masks = [postprocess(row[None], letterbox) > threshold for row in logits]
    if presence is None:
        return masks
    return [mask & (level >= min_presence) for mask, level in zip(masks, presence, strict=True)]


def _summary(other: Predictor, prompts: str, pairs: Sequence[_Pair]) -> Agreement:
    presences = [pair.presence for pair in pairs if pair.presence is not None]
    return Agreement(
        runtime=other.runtime,
        precision=other.precision,
        prompts=prompts,
        sentences=len(pairs),
        logit_scale=max(pair.scale for pair in pairs),
        logit_difference=max(pair.largest for pair in pairs),
        mean_logit_difference=float(np.mean([pair.mean for pair in pairs])),
        foreground=float(np.mean([pair.foreground for pair in pairs])),
        mask_iou=float(np.mean([pair.iou for pair in pairs])),
        worst_mask_iou=min(pair.iou for pair in pairs),
        same_answer=float(np.mean([pair.same_answer for pair in pairs])),
        presence_difference=max(presences) if presences else None,
    )


def predictors(bundle: Path) -> list[BundlePredictor]:
    """Return each runtime of a bundle in float32 and, if it differs, in the precision that it chooses."""
    found = []
    for runtime in [name for name in Bundle.open(bundle).manifest.runtimes if name in registry.available()]:
        forced = BundlePredictor(bundle, runtime, precision="float32")
        chosen = BundlePredictor(bundle, runtime)
        found += [forced] if chosen.precision == forced.precision else [forced, chosen]
    return found


def references(
    checkpoint: Path, others: Sequence[BundlePredictor]
) -> Iterator[tuple[Predictor, Sequence[BundlePredictor]]]:
    """Yield PyTorch with the predictors to compare; for a quantized checkpoint, in the form of each runtime."""
    if not is_quantized(read_checkpoint(checkpoint)):
        yield TorchPredictor(load_network(checkpoint)), others
        return
    network, _ = load_quantized(checkpoint)
    for runtime in dict.fromkeys(other.runtime for other in others):
        part = [other for other in others if other.runtime == runtime]
        yield DeployPredictor(in_form(network, runtime)), part


@click.command(help=__doc__)
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="Checkpoint behind the bundle.")
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="Bundle to compare.")
@click.option("--data", required=True, help="FILE.jsonl, or scenes:SPLIT:LENGTH:SEED.")
@click.option("--limit", type=click.IntRange(min=1), help="Number of images, from the first.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
def main(checkpoint: Path, bundle: Path, data: str, limit: int | None, as_json: bool) -> None:
    """Compare, and print a row for each runtime and precision."""
    try:
        others = predictors(bundle)
        source = open_source(data, by_image=True)
        rows = []
        for reference, part in references(checkpoint, others):
            levels = {"threshold": others[0].threshold, "min_presence": others[0].min_presence}
            rows += compare(reference, part, source, **levels, limit=limit)
    except CrisEdgeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    names: list[str] = list(asdict(rows[0]))
    click.echo("| " + " | ".join(name.replace("_", " ") for name in names) + " |")
    click.echo("|" + "---|" * len(names))
    for row in rows:
        click.echo("| " + " | ".join(_shown(value) for value in asdict(row).values()) + " |")


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
