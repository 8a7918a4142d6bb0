"""Rows of the paper's tables: its authors' figures, from the files in `benchmarks/data/paper`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "data" / "paper"
SOURCE = "Wang et al., CRIS: CLIP-Driven Referring Image Segmentation, CVPR 2022, arXiv:2111.15174"
SPLITS = {
    "refcoco val": ("refcoco", "val"),
    "testA": ("refcoco", "testA"),
    "testB": ("refcoco", "testB"),
    "refcoco+ val": ("refcoco+", "val"),
    "+ testA": ("refcoco+", "testA"),
    "+ testB": ("refcoco+", "testB"),
    "g-ref val": ("refcocog", "val"),
    "g-ref test": ("refcocog", "test"),
}
"""Columns of the method table: name -> dataset and split, as `training.prepare` names them."""
DATASETS = {"RefCOCO": "refcoco", "RefCOCO+": "refcoco+", "G-Ref": "refcocog"}
"""Names of datasets in the ablation -> names from `training.prepare`."""
RECIPES = {("CRIS", "ResNet-50"): "r50", ("CRIS", "ResNet-101"): "r101"}
"""Rows of the method table that have a recipe."""

_GIVEN = ("refcoco_val", "refcoco_testA", "refcoco_testB", "refcoco+_val", "refcoco+_testA", "refcoco+_testB")
_COLUMNS = (*_GIVEN, "gref_val", "gref_test")


@dataclass(frozen=True)
class Method:
    """A row of the method table.

    Attributes:
        name: An asterisk marks post-processing by DenseCRF.
        backbone: Its image encoder's.
        ious: Percent, in the order of `SPLITS`; None where not reported.
    """

    name: str
    backbone: str
    ious: tuple[float | None, ...]

    @property
    def recipe(self) -> str | None:
        """The recipe that trains it in this project."""
        return RECIPES.get((self.name, self.backbone))


@dataclass(frozen=True)
class Ablation:
    """A row of the efficiency ablation of CRIS-R50, on the validation split of one dataset.

    Attributes:
        dataset: The paper's name for it.
        contrastive: Whether the projector's kernel comes from the prompt.
        layers: Decoder layers.
        iou: Percent.
        precision: Pr@50 to Pr@90, percent.
        parameters: Millions.
        fps: Images per second on the authors' GPU.
    """

    dataset: str
    contrastive: bool
    layers: int
    iou: float
    precision: tuple[float, ...]
    parameters: float
    fps: float

    @property
    def recipe(self) -> str:
        """The recipe that trains it in this project."""
        return f"r50-{'' if self.contrastive else 'no-'}contrastive-n{self.layers}"


def methods() -> list[Method]:
    """The method table, in the paper's order."""
    return [
        Method(
            row["method"],
            row["backbone"],
            tuple(float(row[column]) if row[column] else None for column in _COLUMNS),
        )
        for row in _rows("methods.csv")
    ]


def ablation() -> list[Ablation]:
    """The efficiency ablation, in the paper's order."""
    return [
        Ablation(
            dataset=row["dataset"],
            contrastive=row["contrastive"] == "yes",
            layers=int(row["layers"]),
            iou=float(row["iou"]),
            precision=tuple(float(row[f"pr{percent}"]) for percent in (50, 60, 70, 80, 90)),
            parameters=float(row["params_m"]),
            fps=float(row["fps"]),
        )
        for row in _rows("ablation.csv")
    ]


def _rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
