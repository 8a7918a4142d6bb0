"""Emulator: a bundle's graphs for an NPU, run by the emulator, scored beside PyTorch and the CPU on the same pairs.

``python -m benchmarks.emulator --bundle DIR --checkpoint FILE --data scenes:val:50:2026``. The emulator needs seconds
for a pair, so one sentence is asked of each image unless more are wanted; all others are asked the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cris_edge.bundle import Bundle
from cris_edge.errors import CrisEdgeError
from cris_edge.metrics import Scores, iou, overlap
from cris_edge.tokenizer import Tokenizer
from runtimes.network import Network
from runtimes.qnn import OnCpu
from training.checkpoint import load_model
from training.data.samples import Example, open_source
from training.evaluate import BundlePredictor, Predictor, TorchPredictor, predict


class Simulated:
    """The quantized graphs that an NPU's binaries were made from, on the CPU.

    Args:
        bundle: With such graphs.
    """

    runtime, precision = "simulated", "integers, on the CPU"

    def __init__(self, bundle: Path) -> None:
        opened = Bundle.open(bundle)
        told = json.loads((opened.path / "manifest.json").read_text(encoding="utf-8"))["npu"]["qnn"]
        self._network = Network({name: OnCpu(opened.file(path)) for name, path in told["sources"].items()})
        self.input_size, self.word_len = opened.manifest.input_size, opened.manifest.word_len
        self.logits = self._network.logits


def measure(predictors: Sequence[Predictor], data: str, sentences: int, threshold: float) -> list[dict[str, Any]]:
    """Ask all the same; the first is what the masks of the others are compared with.

    Args:
        predictors: By runtime.
        data: A JSON Lines file, or drawn scenes.
        sentences: Of each image, the first ones.
        threshold: On the probability.
    """
    source, tokenizer = open_source(data, by_image=True), Tokenizer()
    scores = [Scores() for _ in predictors]
    shares: list[list[float]] = [[] for _ in predictors]
    seconds = [0.0 for _ in predictors]
    count = 0
    for index in tqdm(range(len(source)), desc="emulate", disable=None, unit="image", leave=False):
        example = source.load(index, predictors[0].input_size)
        asked = Example(example.id, example.image, example.sentences[:sentences], example.truth)
        first: list[Any] = []
        for number, predictor in enumerate(predictors):
            began = perf_counter()
            masks = list(predict(predictor, asked, tokenizer, threshold))
            seconds[number] += perf_counter() - began
            first = first or masks
            for place, mask in enumerate(masks):
                truth = example.truth(place)
                scores[number].add(iou(mask, truth), *overlap(mask, truth))
                shares[number].append(iou(mask, first[place]) if mask.any() or first[place].any() else 1.0)
        count += len(asked.sentences)
    return [
        {
            "runtime": predictor.runtime,
            "precision": predictor.precision,
            **score.to_dict(),
            "mask_iou": float(np.mean(share)),
            "worst_mask_iou": float(np.min(share)),
            "seconds_per_pair": spent / count,
        }
        for predictor, score, share, spent in zip(predictors, scores, shares, seconds, strict=True)
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lines of text."""
    lines = [f"{'':12}{'':24}{'pairs':>6}{'mIoU':>8}{'Pr@50':>8}{'masks':>8}{'worst':>8}{'s/pair':>9}"]
    for row in rows:
        lines.append(
            f"{row['runtime']:12}{row['precision']:24}{row['samples']:6}{row['mIoU']:8.2f}{row['Pr@50']:8.2f}"
            f"{row['mask_iou']:8.4f}{row['worst_mask_iou']:8.3f}{row['seconds_per_pair']:9.3f}"
        )
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
        options.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
