"""``python -m benchmarks.emulator``: a bundle's NPU graphs on the emulator, scored beside PyTorch and the CPU runtimes.

The emulator takes seconds per pair of image and prompt, so each image gets one prompt by default; all networks get the
same pairs.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import click
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import harness
from benchmarks.provenance import bundle_record
from cris_edge.benchmark.results import table
from cris_edge.bundle import Bundle
from cris_edge.image import postprocess, preprocess
from cris_edge.metrics import Scores, agreement, iou, overlap
from cris_edge.tokenizer import PromptWarning, Tokenizer
from runtimes.htp_calibration import OnCpu
from runtimes.network import Network
from training.checkpoint import load_network
from training.data.samples import open_source
from training.scoring import BundlePredictor, Predictor, TorchPredictor

SIMULATED = "simulated"

Results: TypeAlias = "list[tuple[NDArray[np.bool_], NDArray[np.float32]]]"
"""Mask and logits of each pair."""


class Simulated:
    """The quantized graphs from which an NPU's binaries were compiled, on the CPU.

    Args:
        bundle: A bundle with such graphs.
    """

    runtime, precision = SIMULATED, "integers, on the CPU"

    def __init__(self, bundle: Path) -> None:
        opened = Bundle.open(bundle)
        manifest = json.loads((opened.path / "manifest.json").read_text(encoding="utf-8"))
        sources = manifest["npu"]["qnn"]["sources"]
        self._network = Network({name: OnCpu(opened.file(path)) for name, path in sources.items()})
        self.input_size, self.word_len = opened.manifest.input_size, opened.manifest.word_len
        self.logits = self._network.logits


@dataclass
class Row:
    """The results of one network.

    Attributes:
        scores: Against the labels.
        overlaps: IoU with the masks of each reference.
        differences: Largest and mean absolute difference of logits from each reference.
        foreground: Share of the image inside each mask.
        seconds: Total time.
    """

    scores: Scores = field(default_factory=Scores)
    overlaps: dict[str, list[float]] = field(default_factory=dict)
    differences: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    foreground: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def compare(self, name: str, own: Results, reference: Results) -> None:
        """Add the agreement with a reference."""
        for (mask, logits), (other, expected) in zip(own, reference, strict=True):
            self.overlaps.setdefault(name, []).append(agreement(mask, other))
            difference = np.abs(logits - expected)
            self.differences.setdefault(name, []).append((float(difference.max()), float(difference.mean())))

    def to_dict(self) -> dict[str, Any]:
        """Figures, ready for JSON."""
        figures: dict[str, Any] = {**self.scores.to_dict(), "seconds_per_pair": self.seconds / len(self.foreground)}
        figures["foreground"] = float(np.mean(self.foreground))
        for name, values in self.overlaps.items():
            largest, mean = zip(*self.differences[name], strict=True)
            figures[name] = {
                "mask_iou": float(np.mean(values)),
                "worst_mask_iou": float(np.min(values)),
                "max_logit_difference": max(largest),
                "mean_logit_difference": float(np.mean(mean)),
            }
        return figures


def measure(predictors: Sequence[Predictor], data: str, prompts: int, threshold: float) -> list[dict[str, Any]]:
    """Score all networks on the same pairs; each is compared with the first one and with the simulated one.

    Args:
        predictors: One per runtime.
        data: A JSON Lines file, or ``scenes:SPLIT:LENGTH:SEED``.
        prompts: Prompts per image, from the first on.
        threshold: Probability threshold of the masks.
    """
    source, tokenizer = open_source(data, by_image=True), Tokenizer()
    rows = [Row() for _ in predictors]
    references = {0, *(n for n, other in enumerate(predictors) if other.runtime == SIMULATED)}
    for index in tqdm(range(len(source)), desc="emulate", disable=None, unit="image", leave=False):
        example = source.load(index, predictors[0].input_size)
        pixels, letterbox = preprocess(example.image, predictors[0].input_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptWarning)  # long prompts are truncated, as in the reference
            tokens = tokenizer(example.sentences[:prompts], length=predictors[0].word_len)
        results: list[Results] = []
        for row, predictor in zip(rows, predictors, strict=True):
            began = perf_counter()
            logits = predictor.logits(pixels, tokens)
            row.seconds += perf_counter() - began
            masks = [postprocess(one[None], letterbox) > threshold for one in logits]
            results.append(list(zip(masks, logits, strict=True)))
            for number, mask in enumerate(masks):
                truth = example.truth(number)
                row.scores.add(iou(mask, truth), *overlap(mask, truth))
                row.foreground.append(float(mask.mean()))
        for row, own in zip(rows, results, strict=True):
            for reference in references:
                row.compare(predictors[reference].runtime, own, results[reference])
    return [
        {"runtime": predictor.runtime, "precision": predictor.precision, **row.to_dict()}
        for predictor, row in zip(predictors, rows, strict=True)
    ]


def to_text(found: harness.Document, markdown: bool = False) -> str:
    """A table of the rows, and one of their agreement with the first row and with the simulated one."""
    rows = found["rows"]
    names = ["", "precision", "pairs", "mIoU", "Pr@50", "foreground", "s/pair"]
    cells = [
        [
            row["runtime"],
            row["precision"],
            str(row["samples"]),
            *(f"{row[name]:.2f}" for name in ("mIoU", "Pr@50")),
            f"{row['foreground']:.4f}",
            f"{row['seconds_per_pair']:.3f}",
        ]
        for row in rows
    ]
    references = [name for name in dict.fromkeys((rows[0]["runtime"], SIMULATED)) if name in rows[0]]
    for name in references:
        names += [f"mean IoU with {name}", "worst", "logits differ"]
        for row, line in zip(rows, cells, strict=True):
            held = row[name]
            line += [f"{held[key]:.4f}" for key in ("mask_iou", "worst_mask_iou")]
            line.append(f"{held['max_logit_difference']:.3g}")
    return table(names, cells, markdown=markdown)


@click.command(help=__doc__)
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="Exported with --runtimes ...,qnn.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Its checkpoint: adds PyTorch in float32, first.")
@click.option(
    "--other", type=click.Path(path_type=Path), multiple=True, help="Bundle whose CPU runtimes are added too."
)
@click.option(
    "--data", default="scenes:val:50:2026", show_default=True, help="FILE.jsonl, or scenes:SPLIT:LENGTH:SEED."
)
@click.option("--sentences", "prompts", type=click.IntRange(min=1), default=1, show_default=True, help="Per image.")
@click.option("--device", default="emulator", show_default=True, help="emulator or NPU.")
@harness.written
def main(
    bundle: Path,
    checkpoint: Path | None,
    other: tuple[Path, ...],
    data: str,
    prompts: int,
    device: str,
    output: Path | None,
    markdown: bool,
) -> None:
    """Run the command line."""

    def measured() -> harness.Document:
        torch.set_num_threads(1)
        opened = bundle_record(bundle)
        predictors: list[Predictor] = []
        if checkpoint is not None:
            predictors.append(TorchPredictor(load_network(checkpoint)))
        for path in (bundle, *other):
            for runtime in Bundle.open(path).manifest.runtimes:
                if runtime != "qnn":
                    predictors.append(BundlePredictor(path, runtime, threads=1))
        npu = BundlePredictor(bundle, "qnn", device=device)
        rows = measure([*predictors, Simulated(bundle), npu], data, prompts, npu.threshold)
        return {"data": data, "bundles": [opened], "rows": rows}

    harness.conclude(measured, to_text, output=output, markdown=markdown)


if __name__ == "__main__":
    main()
