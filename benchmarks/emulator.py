"""Emulator: a bundle's graphs for an NPU, run by the emulator, scored beside PyTorch and the CPU on the same pairs.

``python -m benchmarks.emulator --bundle DIR --checkpoint FILE --data scenes:val:50:2026``. The emulator needs seconds
for a pair, so one sentence is asked of each image unless more are wanted; all others are asked the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cris_edge.bundle import Bundle
from cris_edge.errors import CrisEdgeError
from cris_edge.files import write_whole
from cris_edge.image import postprocess, preprocess
from cris_edge.metrics import Scores, agreement, iou, overlap
from cris_edge.tokenizer import PromptWarning, Tokenizer
from runtimes.network import Network
from runtimes.qnn import OnCpu
from training.checkpoint import load_model
from training.data.samples import open_source
from training.evaluate import BundlePredictor, Predictor, TorchPredictor

SIMULATED = "simulated"

Given: TypeAlias = "list[tuple[NDArray[np.bool_], NDArray[np.float32]]]"


class Simulated:
    """The quantized graphs that an NPU's binaries were made from, on the CPU.

    Args:
        bundle: With such graphs.
    """

    runtime, precision = SIMULATED, "integers, on the CPU"

    def __init__(self, bundle: Path) -> None:
        opened = Bundle.open(bundle)
        told = json.loads((opened.path / "manifest.json").read_text(encoding="utf-8"))["npu"]["qnn"]
        self._network = Network({name: OnCpu(opened.file(path)) for name, path in told["sources"].items()})
        self.input_size, self.word_len = opened.manifest.input_size, opened.manifest.word_len
        self.logits = self._network.logits


@dataclass
class Row:
    """What one network gave.

    Attributes:
        scores: Against the truth.
        overlaps: IoU with the masks of each reference.
        differences: Largest and mean absolute difference of logits from each reference.
        foreground: Share of the picture, by mask.
        seconds: Altogether.
    """

    scores: Scores = field(default_factory=Scores)
    overlaps: dict[str, list[float]] = field(default_factory=dict)
    differences: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    foreground: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def hold(self, name: str, mine: Given, theirs: Given) -> None:
        """Compare with a reference."""
        for (mask, logits), (wanted, expected) in zip(mine, theirs, strict=True):
            self.overlaps.setdefault(name, []).append(agreement(mask, wanted))
            difference = np.abs(logits - expected)
            self.differences.setdefault(name, []).append((float(difference.max()), float(difference.mean())))

    def to_dict(self) -> dict[str, Any]:
        """Figures."""
        told = {**self.scores.to_dict(), "seconds_per_pair": self.seconds / len(self.foreground)}
        told["foreground"] = float(np.mean(self.foreground))
        for name, values in self.overlaps.items():
            largest, mean = zip(*self.differences[name], strict=True)
            told[name] = {
                "mask_iou": float(np.mean(values)),
                "worst_mask_iou": float(np.min(values)),
                "max_logit_difference": max(largest),
                "mean_logit_difference": float(np.mean(mean)),
            }
        return told


def measure(predictors: Sequence[Predictor], data: str, sentences: int, threshold: float) -> list[dict[str, Any]]:
    """Ask all the same; each is held against the first and against the graphs in integers on the CPU.

    Args:
        predictors: By runtime.
        data: A JSON Lines file, or drawn scenes.
        sentences: Of each image, the first ones.
        threshold: On the probability.
    """
    source, tokenizer = open_source(data, by_image=True), Tokenizer()
    rows = [Row() for _ in predictors]
    for index in tqdm(range(len(source)), desc="emulate", disable=None, unit="image", leave=False):
        example = source.load(index, predictors[0].input_size)
        pixels, letterbox = preprocess(example.image, predictors[0].input_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptWarning)  # long sentences are cut, as the reference cuts them
            tokens = tokenizer(example.sentences[:sentences], length=predictors[0].word_len)
        given: list[Given] = []
        for row, predictor in zip(rows, predictors, strict=True):
            began = perf_counter()
            logits = predictor.logits(pixels, tokens)
            row.seconds += perf_counter() - began
            masks = [postprocess(one[None], letterbox) > threshold for one in logits]
            given.append(list(zip(masks, logits, strict=True)))
            for place, mask in enumerate(masks):
                truth = example.truth(place)
                row.scores.add(iou(mask, truth), *overlap(mask, truth))
                row.foreground.append(float(mask.mean()))
        for number, row in enumerate(rows):
            for reference in {0, *(n for n, other in enumerate(predictors) if other.runtime == SIMULATED)}:
                row.hold(predictors[reference].runtime, given[number], given[reference])
    return [
        {"runtime": predictor.runtime, "precision": predictor.precision, **row.to_dict()}
        for predictor, row in zip(predictors, rows, strict=True)
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lines of text; the masks are held against those of the first row, and of the graphs in integers."""
    names = [name for name in dict.fromkeys((rows[0]["runtime"], SIMULATED)) if name in rows[0]]
    lines = [f"{'':12}{'':24}{'pairs':>6}{'mIoU':>8}{'Pr@50':>8}{'covered':>9}{'s/pair':>9}"]
    lines[0] += "".join(f"   with {name}: masks, worst, logits" for name in names)
    for row in rows:
        line = f"{row['runtime']:12}{row['precision']:24}{row['samples']:6}{row['mIoU']:8.2f}{row['Pr@50']:8.2f}"
        line += f"{row['foreground']:9.4f}{row['seconds_per_pair']:9.3f}"
        for name in names:
            held = row[name]
            line += f"{held['mask_iou']:11.4f}{held['worst_mask_iou']:8.3f}{held['max_logit_difference']:9.3g}"
        lines.append(line)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emulator", description=__doc__, allow_abbrev=False)
    parser.add_argument("--bundle", type=Path, required=True, help="exported with --runtimes ...,qnn")
    parser.add_argument("--checkpoint", type=Path, help="that it was exported from; PyTorch in float32 comes first")
    parser.add_argument("--other", type=Path, action="append", default=[], help="bundles whose CPU runtimes come along")
    parser.add_argument("--data", default="scenes:val:50:2026", help="a JSON Lines file, or scenes:SPLIT:LENGTH:SEED")
    parser.add_argument("--sentences", type=int, default=1, help="of each image (default: 1)")
    parser.add_argument("--device", default="emulator", help="emulator or NPU")
    parser.add_argument("--output", type=Path, help="write the figures as JSON to this file")
    options = parser.parse_args(arguments)
    try:
        torch.set_num_threads(1)
        predictors: list[Predictor] = []
        if options.checkpoint is not None:
            predictors.append(TorchPredictor(load_model(options.checkpoint)))
        for bundle in (options.bundle, *options.other):
            for runtime in Bundle.open(bundle).manifest.runtimes:
                if runtime != "qnn":
                    predictors.append(BundlePredictor(bundle, runtime, threads=1))
        npu = BundlePredictor(options.bundle, "qnn", device=options.device)
        rows = measure([*predictors, Simulated(options.bundle), npu], options.data, options.sentences, npu.threshold)
    except (CrisEdgeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.output:
        write_whole(options.output, json.dumps(rows, indent=2) + "\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
