"""What an evaluation found: the paper's figures, how sure they are, and where they come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cris_edge.metrics import Scores

LENGTHS = ((1, 2), (3, 3), (4, 5), (6, 7), (8, 10), (11, math.inf))
"""Words of a sentence, first and last of each class."""
SIZES = ((0.0, 0.01), (0.01, 0.03), (0.03, 0.1), (0.1, 0.3), (0.3, 1.0))
"""Share of the image that the object covers: above the first, up to the second."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Case:
    """One scored sentence.

    Attributes:
        index: of its example in the source.
        number: of the sentence in the example.
        id: of the example.
        sentence: itself.
        intersection: pixels in both masks.
        union: pixels in either.
        area: share of the image that the object covers.
    """

    index: int
    number: int
    id: str
    sentence: str
    intersection: int
    union: int
    area: float

    @property
    def iou(self) -> float:
        """The reference's IoU: an empty union gives 0."""
        return self.intersection / (self.union + 1e-6)

    @property
    def words(self) -> int:
        """Words in the sentence."""
        return len(self.sentence.split())


@dataclass
class Report:
    """Every scored sentence, and what follows from them.

    Attributes:
        dataset: name of the data.
        split: of it.
        runtime: what ran the network.
        precision: what it computed in.
        cases: in the order of the data.
    """

    dataset: str
    split: str
    runtime: str
    precision: str
    cases: list[Case] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """Count one sentence."""
        self.cases.append(case)

    @property
    def scores(self) -> Scores:
        """Over all sentences."""
        return _scores(self.cases)

    def by_length(self) -> dict[str, dict[str, float]]:
        """Return scores by words in the sentence; classes without sentences are left out."""
        return self._classes(LENGTHS, lambda case, first, last: first <= case.words <= last, _words)

    def by_size(self) -> dict[str, dict[str, float]]:
        """Return scores by the share of the image that the object covers."""
        return self._classes(SIZES, lambda case, low, high: low < case.area <= high, "{:.0%}-{:.0%}".format)

    def intervals(self, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Return 95 % bootstrap intervals of mIoU, oIoU and Pr@50 in percent.

        Images are drawn with replacement, not sentences: those of one image are not independent.
        """
        images = sorted({case.index for case in self.cases})
        place = {index: i for i, index in enumerate(images)}
        sums = np.zeros((len(images), 5))
        for case in self.cases:
            sums[place[case.index]] += (case.iou, case.iou > 0.5, case.intersection, case.union, 1)
        draws = np.random.default_rng(seed).integers(len(images), size=(RESAMPLES, len(images)))
        totals = np.stack([sums[draw].sum(axis=0) for draw in draws])
        figures = {
            "mIoU": totals[:, 0] / totals[:, 4],
            "oIoU": totals[:, 2] / np.maximum(totals[:, 3], 1),
            "Pr@50": totals[:, 1] / totals[:, 4],
        }
        ends = {name: 100 * np.quantile(values, (0.025, 0.975)) for name, values in figures.items()}
        return {name: (float(low), float(high)) for name, (low, high) in ends.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the cases, in plain containers; the first keys are those of a bundle's manifest."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "runtime": self.runtime,
            "precision": self.precision,
            **self.scores.to_dict(),
            "images": len({case.index for case in self.cases}),
            "intervals": {name: list(ends) for name, ends in self.intervals().items()},
            "by_length": self.by_length(),
            "by_size": self.by_size(),
        }

    def table(self) -> str:
        """Return the report as lines of text."""
        data = self.to_dict()
        names = ["mIoU", "oIoU", "Pr@50", "Pr@60", "Pr@70", "Pr@80", "Pr@90"]
        lines = [
            f"{self.dataset} {self.split}: {data['samples']} sentences, {data['images']} images; "
            f"{self.runtime}, {self.precision}"
        ]
        lines.append(f"{'':16}{'n':>7}" + "".join(f"{name:>8}" for name in names))
        groups = {"all": {"": data}, "words": data["by_length"], "object": data["by_size"]}
        for group, rows in groups.items():
            for label, row in rows.items():
                title = f"{group} {label}".strip()
                lines.append(f"{title:16}{row['samples']:>7}" + "".join(f"{row[name]:>8.2f}" for name in names))
        ends = ", ".join(f"{name} {low:.2f} to {high:.2f}" for name, (low, high) in data["intervals"].items())
        return "\n".join([*lines, f"95 % intervals (bootstrap over images): {ends}"])

    def _classes(
        self,
        ends: Iterable[tuple[float, float]],
        test: Callable[[Case, float, float], bool],
        label: Callable[[float, float], str],
    ) -> dict[str, dict[str, float]]:
        classes = {label(*pair): [case for case in self.cases if test(case, *pair)] for pair in ends}
        return {name: _scores(cases).to_dict() for name, cases in classes.items() if cases}


def _words(first: float, last: float) -> str:
    return f"{first}+" if last == math.inf else f"{first}" if first == last else f"{first}-{last}"


def _scores(cases: Iterable[Case]) -> Scores:
    scores = Scores()
    for case in cases:
        scores.add(case.iou, case.intersection, case.union)
    return scores
