"""``python -m benchmarks.paper``: the paper's method table and efficiency ablation, with our rows beside them.

Parameters are counted on the recipes. ``--fps`` measures one image and one prompt to logits on this machine. Accuracy
comes from the checkpoints in ``--checkpoints FOLDER``, which are named after the recipe and, where each dataset has its
own, the dataset: ``r101.pt``, ``r50@refcoco+.pt``, or run folders of these names. ``--data FILE`` (repeatable) measures
it; ``training.prepare`` names the dataset by the folder and the split by the file. Without ``--data`` it is what the
checkpoint recorded at its last validation.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import paper_tables
from benchmarks.fps import Speed, measure
from benchmarks.harness import progress
from cris_edge.benchmark.results import busy, load_average, table
from cris_edge.benchmark.results import device as machine
from cris_edge.errors import CheckpointError, CrisEdgeError, DataError
from cris_edge.files import write_whole
from training.checkpoint import FORMAT, load_model, read_checkpoint
from training.data.samples import open_source
from training.device import choose_device
from training.model import CRIS, Architecture
from training.recipes import recipe
from training.scoring import TorchPredictor, score

Key = tuple[str, str, str]
"""Recipe, dataset, split."""

SAME = {"r50": "r50-contrastive-n3"}
"""Recipes of the same network."""
LENGTHS = {"refcocog": 22}
"""Tokens of a prompt by dataset, where not 17."""


@dataclass(frozen=True)
class Accuracy:
    """mIoU of one of our checkpoints, percent.

    Attributes:
        miou: The figure.
        measured: True where this command measured it, False where the checkpoint recorded it.
        checkpoint: File.
    """

    miou: float
    measured: bool
    checkpoint: str

    def __str__(self) -> str:
        return f"{self.miou:.2f}{'' if self.measured else ' †'}"


@dataclass
class Tables:
    """Everything that is printed.

    Attributes:
        parameters: Count by recipe.
        speeds: Images per second by recipe and number of tokens; empty where not measured.
        accuracies: mIoU of our checkpoints.
        unplaced: By recipe, what a checkpoint recorded on data that it does not name.
        setting: Device, threads and precision of the speeds.
        load_before: Load average before the measurement.
    """

    parameters: dict[str, int]
    speeds: dict[tuple[str, int], Speed] = field(default_factory=dict)
    accuracies: dict[Key, Accuracy] = field(default_factory=dict)
    unplaced: dict[str, Accuracy] = field(default_factory=dict)
    setting: dict[str, Any] = field(default_factory=dict)
    load_before: float | None = None

    def accuracy(self, name: str, dataset: str, split: str) -> Accuracy | None:
        """The accuracy of a recipe's checkpoint, under either of its names."""
        found = [self.accuracies.get((same, dataset, split)) for same in _names(name)]
        return next((one for one in found if one is not None), None)

    def speed(self, name: str, dataset: str) -> Speed | None:
        """The speed of a recipe with prompts as long as the dataset's."""
        length = LENGTHS.get(dataset, 17)
        found = [self.speeds.get((same, length)) for same in _names(name)]
        return next((one for one in found if one is not None), None)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "source": paper_tables.SOURCE,
            "machine": machine(),
            "fps_setting": self.setting or None,
            "load_before": self.load_before,
            "parameters": self.parameters,
            "methods": [
                {
                    "method": method.name,
                    "backbone": method.backbone,
                    "paper": dict(zip(paper_tables.SPLITS, method.ious, strict=True)),
                    "recipe": method.recipe,
                    "ours": {
                        column: _accuracy_dict(self.accuracy(method.recipe, *split))
                        for column, split in paper_tables.SPLITS.items()
                    }
                    if method.recipe
                    else None,
                }
                for method in paper_tables.methods()
            ],
            "ablation": [
                {
                    "dataset": row.dataset,
                    "contrastive": row.contrastive,
                    "layers": row.layers,
                    "recipe": row.recipe,
                    "paper": {"iou": row.iou, "parameters": row.parameters * 1e6, "fps": row.fps},
                    "ours": {
                        "accuracy": _accuracy_dict(
                            self.accuracy(row.recipe, paper_tables.DATASETS[row.dataset], "val")
                        ),
                        "parameters": self.parameters[row.recipe],
                        "fps": speed.to_dict()
                        if (speed := self.speed(row.recipe, paper_tables.DATASETS[row.dataset]))
                        else None,
                    },
                }
                for row in paper_tables.ablation()
            ],
            "unplaced": {name: _accuracy_dict(found) for name, found in self.unplaced.items()},
        }

    def to_markdown(self) -> str:
        """The page in Markdown."""
        parts = [
            "# The paper's tables with our rows",
            f"The paper's figures are its authors' ({paper_tables.SOURCE}); *ours* are rows of this project.",
            "## Methods",
            "IoU in percent, the mean over prompts. An asterisk marks post-processing by DenseCRF.",
            self._methods(),
            "## Efficiency ablation",
            "CRIS-R50, validation splits. The paper's images per second are of its authors' GPU.",
            self._ablation(),
            *self._remarks(),
        ]
        return "\n\n".join(parts) + "\n"

    def _methods(self) -> str:
        rows = []
        for method in paper_tables.methods():
            cells = [f"{iou:.2f}" if iou is not None else "" for iou in method.ious]
            rows.append([method.name, method.backbone, *cells, "", ""])
            if name := method.recipe:
                cells = [_text(self.accuracy(name, dataset, split)) for dataset, split in paper_tables.SPLITS.values()]
                count = f"{self.parameters[name] / 1e6:.2f}"
                rows.append([f"*ours, {name}*", method.backbone, *cells, count, _text(self.speed(name, "refcoco"))])
        head = ["method", "backbone", *paper_tables.SPLITS, "parameters, M", "images/s here"]
        return table(head, rows, markdown=True)

    def _ablation(self) -> str:
        rows = []
        for row in paper_tables.ablation():
            dataset = paper_tables.DATASETS[row.dataset]
            rows.append(
                [
                    row.dataset,
                    "yes" if row.contrastive else "no",
                    str(row.layers) if row.layers else "none",
                    f"{row.iou:.2f}",
                    _text(self.accuracy(row.recipe, dataset, "val")),
                    f"{row.parameters:.2f}",
                    f"{self.parameters[row.recipe] / 1e6:.2f}",
                    f"{row.fps:.2f}",
                    _text(self.speed(row.recipe, dataset)),
                ]
            )
        head = ["dataset", "contrastive", "decoder layers", "IoU", "*ours*", "parameters, M", "*ours*"]
        return table([*head, "images/s", "*ours, here*"], rows, markdown=True)

    def _remarks(self) -> list[str]:
        remarks = []
        if not self.accuracies:
            remarks.append(
                "The accuracy of our rows is empty: no checkpoint was given. With CLIP's weights and the data, each is "
                "one command: `python -m training.train --recipe r50-contrastive-n3 --clip RN50.pt "
                "--train data/refcoco/train.jsonl --val data/refcoco/val.jsonl --output runs/r50-contrastive-n3`."
            )
        if any(not found.measured for found in (*self.accuracies.values(), *self.unplaced.values())):
            remarks.append("† as the checkpoint recorded it at its last validation; not measured here.")
        remarks += [
            f"{name} recorded an mIoU of {found} on data that its file does not name; rename it to {name}@DATASET."
            for name, found in self.unplaced.items()
        ]
        if self.setting:
            setting = self.setting
            remarks.append(
                f"images/s here: one image and one prompt to logits in PyTorch {setting['torch']}, "
                f"{setting['precision']}, on {setting['device']}, threads: {setting['threads']}, random weights; 1 / "
                f"median of {setting['runs']} runs, with its {setting['confidence']:.0%} interval."
            )
            remarks += busy(self.load_before)
        return remarks


def count_parameters(name: str) -> int:
    """Count the parameters of a recipe's network without allocating them."""
    with torch.device("meta"):
        model = CRIS(recipe(name).architecture)
    return sum(parameter.numel() for parameter in model.parameters())


def find_checkpoints(folder: Path, names: Sequence[str]) -> list[tuple[Path, str, str | None]]:
    """Find checkpoints named after a recipe: file, recipe, and the dataset in its name.

    Raises:
        DataError: The folder does not exist or has none.
    """
    if not folder.is_dir():
        raise DataError(f"The folder of checkpoints {folder} does not exist.")
    found = []
    for path in sorted(folder.iterdir()):
        name, _, dataset = (path.name if path.is_dir() else path.stem).partition("@")
        file = next((path / one for one in ("best.pt", "last.pt") if (path / one).is_file()), None)
        file = file if path.is_dir() else path if path.suffix in (".pt", ".pth") else None
        if name in names and file is not None:
            found.append((file, name, dataset or None))
    if not found:
        raise DataError(f"No checkpoint in {folder} is named after a recipe; expected r50.pt, r101@refcoco.pt, ...")
    return found


def add_accuracies(tables: Tables, folder: Path, data: Sequence[str], device: str) -> None:
    """Add the accuracies of the checkpoints in `folder`.

    Raises:
        CheckpointError: One cannot be read, or has another architecture than its name.
        DataError: The folder or the data cannot be used.
        OptionError: The device is not available.
    """
    sources = [open_source(text, by_image=True) for text in data]
    chosen = choose_device(device)
    for path, name, dataset in find_checkpoints(folder, list(tables.parameters)):
        content = read_checkpoint(path)
        own = content.get("format") == FORMAT
        # A public checkpoint does not record its number of tokens; ours do.
        model = load_model(path, word_len=None if own else LENGTHS.get(dataset or "", 17))
        _require_recipe(model, name, path)
        for source in sources:
            if dataset in (None, source.name):
                report = score(TorchPredictor(model.to(chosen), chosen), source)
                found = Accuracy(report.scores.to_dict()["mIoU"], True, str(path))
                tables.accuracies[name, source.name, source.split] = found
        recorded = content.get("metrics")
        if not sources and isinstance(recorded, dict) and "mIoU" in recorded:
            found = Accuracy(float(recorded["mIoU"]), False, str(path))
            on, split = str(recorded.get("dataset", dataset or "")), str(recorded.get("split", "val"))
            if on:
                tables.accuracies[name, on, split] = found
            else:
                tables.unplaced[name] = found


def _require_recipe(model: CRIS, name: str, path: Path) -> None:
    """Check that a checkpoint belongs to the row of its name; input size and tokens may differ."""
    expected, found = recipe(name).architecture, model.architecture
    for part in ("vision_layers", "vision_width", "embed_dim", "text_width", "decoder_layers", "contrastive"):
        if getattr(found, part) != getattr(expected, part):
            raise CheckpointError(
                f"{path} has {part} {getattr(found, part)}, but recipe {name} has {getattr(expected, part)}; name the "
                "file after the recipe that it was trained with."
            )


def _names(name: str) -> tuple[str, ...]:
    return (name, *(b if name == a else a for a, b in SAME.items() if name in (a, b)))


def _text(value: Accuracy | Speed | None) -> str:
    return "" if value is None else str(value)


def _accuracy_dict(found: Accuracy | None) -> dict[str, Any] | None:
    return None if found is None else {"mIoU": found.miou, "measured": found.measured, "checkpoint": found.checkpoint}


def recipes() -> list[str]:
    """The recipes of all rows, each network once."""
    named = [method.recipe for method in paper_tables.methods() if method.recipe]
    return list(dict.fromkeys([*named, *(row.recipe for row in paper_tables.ablation())]))


@click.command(help=__doc__)
@click.option(
    "--checkpoints", type=click.Path(file_okay=False, path_type=Path), help="Folder of checkpoints, see above."
)
@click.option("--data", multiple=True, metavar="FILE.jsonl", help="Measure accuracy on it; repeatable.")
@click.option("--fps", is_flag=True, help="Measure the speed; takes minutes on a CPU and 3 GB of memory.")
@click.option("--device", default="cpu", show_default=True, help="For both: cpu, cuda.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: physical cores]")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=8, show_default=True, help="Rounds of the speed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write the output to as well.")
def main(
    checkpoints: Path | None,
    data: tuple[str, ...],
    fps: bool,
    device: str,
    threads: int | None,
    precision: str,
    rounds: int,
    as_json: bool,
    output: Path | None,
) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        tables = Tables({name: count_parameters(name) for name in recipes()})
        if data and checkpoints is None:
            raise DataError("--data needs checkpoints to measure: pass their folder with --checkpoints.")
        if checkpoints is not None:
            add_accuracies(tables, checkpoints, data, device)
        if fps:
            tables.load_before = load_average()
            networks: dict[str, Architecture] = {
                name: recipe(name).architecture for name in recipes() if name not in SAME
            }
            tables.speeds, tables.setting = measure(
                networks,
                (17, *LENGTHS.values()),
                device=device,
                threads=threads,
                precision=precision,
                rounds=rounds,
                progress=progress,
            )
            progress("")
    except (CrisEdgeError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    text = json.dumps(tables.to_dict(), indent=1) if as_json else tables.to_markdown()
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, text.rstrip("\n") + "\n")
    click.echo(text.rstrip("\n"))


if __name__ == "__main__":
    main()
