"""``python -m benchmarks.targets``: what a network would score that learnt its training masks to the last digit.

No network runs: each mask becomes what the logits are to learn (``--mask-target``), and that becomes a mask again as
inference does it. What is lost on the way, no training can win back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks import harness
from cris_edge.benchmark.results import table
from cris_edge.image import THRESHOLD, Letterbox, postprocess
from cris_edge.metrics import iou
from training.data.samples import Source, open_source
from training.data.transforms import MASK_TARGETS

SCENES = "scenes:val:100:2026"
SIZES = (128, 224, 320, 416)


def ideal_logits(target: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    """Logits (1, 1, h, w) with the least loss on `target` (h, w), the training mask of the kind `name`."""
    share = np.clip(target.astype(np.float64), 1e-6, 1 - 1e-6)
    odds = share / (1 - share)
    if name == "area":  # its loss is centred on the threshold: training.losses.centred
        odds *= THRESHOLD / (1 - THRESHOLD)
    return np.log(odds).astype(np.float32)[None, None]


def measure(source: Source, sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """Mean IoU, and the share above 0.5 to 0.9, of each kind of target at each input size: rows, in percent."""
    rows = []
    for size in sizes:
        ious: dict[str, list[float]] = {name: [] for name in MASK_TARGETS}
        for index in tqdm(range(len(source)), desc=f"{size} pixels", disable=None, unit="image"):
            example = source.load(index, size)
            letterbox = Letterbox.fit(*example.image.shape[:2], size)
            for number in range(len(example.sentences)):
                truth = example.truth(number)
                for name, of_mask in MASK_TARGETS.items():
                    drawn = postprocess(ideal_logits(of_mask(truth, letterbox), name), letterbox) > THRESHOLD
                    ious[name].append(iou(drawn, truth))
        rows += [
            {
                "data": f"{source.name}:{source.split}",
                "input_size": size,
                "mask_target": name,
                "sentences": len(found),
                "mIoU": 100 * float(np.mean(found)),
                **{f"Pr@{level}": 100 * float(np.mean(np.array(found) > level / 100)) for level in (50, 70, 90)},
            }
            for name, found in ious.items()
        ]
    return rows


def to_text(rows: Sequence[dict[str, Any]], markdown: bool = False) -> str:
    """A table for people."""
    figures = ("mIoU", "Pr@50", "Pr@70", "Pr@90")
    names = ["data", "sentences", "input", "mask target", *figures]
    cells = [
        [
            row["data"],
            str(row["sentences"]),
            str(row["input_size"]),
            row["mask_target"],
            *(f"{row[figure]:.1f}" for figure in figures),
        ]
        for row in rows
    ]
    return table(names, cells, markdown=markdown)


@click.command(help=__doc__)
@click.option("--data", multiple=True, default=(SCENES,), show_default=True, help="Labelled data; may be several.")
@click.option("--size", "sizes", multiple=True, type=int, default=SIZES, show_default=True, help="Of the input.")
@harness.written
def main(data: tuple[str, ...], sizes: tuple[int, ...], output: Path | None, markdown: bool) -> None:
    """Read the command line."""
    harness.conclude(
        lambda: [row for name in data for row in measure(open_source(name, by_image=True), sizes)],
        to_dict=lambda rows: {"threshold": THRESHOLD, "rows": rows},
        to_text=to_text,
        output=output,
        markdown=markdown,
    )


if __name__ == "__main__":
    main()
