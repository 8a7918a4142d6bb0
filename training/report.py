"""The results of an evaluation: the paper's metrics, their intervals, and those of the generalized task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cris_edge.metrics import GeneralizedScores, Scores, auroc

LENGTHS = ((1, 2), (3, 3), (4, 5), (6, 7), (8, 10), (11, math.inf))
"""Classes by words of a sentence: first and last number."""
SIZES = ((0.0, 0.01), (0.01, 0.03), (0.03, 0.1), (0.1, 0.3), (0.3, 1.0))
"""Classes by the share of the image that the object covers: above the first, up to the second."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Case:
    """One scored sentence.

    Attributes:
        index: of its example in the source.
        number: of the sentence in the example.
        id: of the example.
        sentence: its text.
        intersection: pixels in both masks.
        union: pixels in either mask.
        area: share of the image that the object covers.
        matches: whether the sentence has a target in the image.
        empty: whether the predicted mask is empty.
        presence: as predicted, in [0, 1]; None where the predictor does not know it.
    """

    index: int
    number: int
    id: str
    sentence: str
    intersection: int
    union: int
    area: float
    matches: bool = True
    empty: bool = False
    presence: float | None = None

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
    """All scored sentences, and the metrics over them.

    Attributes:
        dataset: name of the data.
        split: of it.
        runtime: that ran the network.
        precision: of its arithmetic.
        cases: in the order of the data.
    """

    dataset: str
    split: str
    runtime: str
    precision: str
    cases: list[Case] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """Add one sentence."""
        self.cases.append(case)

    @property
    def scores(self) -> Scores:
        """The paper's metrics, over sentences that have a target."""
        return _scores(self.targets)

    @property
    def targets(self) -> list[Case]:
        """The sentences that have a target."""
        return [case for case in self.cases if case.matches]

    @property
    def generalized(self) -> dict[str, float] | None:
        """N-acc, T-acc, gIoU, cIoU, Pr@70 to Pr@90 and the presence's AUROC in percent; None without negatives."""
        if all(case.matches for case in self.cases):
            return None
        scores = GeneralizedScores()
        for case in self.cases:
            scores.add(case.intersection, case.union, matches=case.matches, empty=case.empty)
        known = [(case.presence, case.matches) for case in self.cases if case.presence is not None]
        area = auroc([presence for presence, _ in known], [matches for _, matches in known])
        return scores.to_dict() | ({} if math.isnan(area) else {"AUROC": 100 * area})

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
        cases = self.targets
        images = sorted({case.index for case in cases})
        place = {index: i for i, index in enumerate(images)}
        sums = np.zeros((len(images), 5))
        for case in cases:
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
            **({"generalized": generalized} if (generalized := self.generalized) else {}),
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
        lines.append(f"95 % intervals (bootstrap over images): {ends}")
        if generalized := data.get("generalized"):
            counts = f"{generalized['samples']} sentences, {generalized['without_target']} that match nothing"
            names = [name for name in generalized if name not in ("samples", "without_target")]
            lines.append(f"generalized: {counts}; " + ", ".join(f"{name} {generalized[name]:.2f}" for name in names))
        return "\n".join(lines)

    def _classes(
        self,
        ends: Iterable[tuple[float, float]],
        test: Callable[[Case, float, float], bool],
        label: Callable[[float, float], str],
    ) -> dict[str, dict[str, float]]:
        classes = {label(*pair): [case for case in self.targets if test(case, *pair)] for pair in ends}
        return {name: _scores(cases).to_dict() for name, cases in classes.items() if cases}


def _words(first: float, last: float) -> str:
    return f"{first}+" if last == math.inf else f"{first}" if first == last else f"{first}-{last}"


def _scores(cases: Iterable[Case]) -> Scores:
    scores = Scores()
    for case in cases:
        scores.add(case.iou, case.intersection, case.union)
    return scores
