"""The quantization ladder: three stages from float to int8, each tried only when the previous one loses too much.

1. ``post-training``: NNCF's post-training quantization with several schemes, of which the best is kept.
2. ``mixed``: the same scheme, with the most sensitive groups of layers in float.
3. ``fine-tuned``: quantization-aware fine-tuning of the better of the two.

Choices are made on one half of the validation data, and results are reported on the other.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cris_edge.errors import OptionError
from cris_edge.files import write_whole
from quantization.calibration import Calibration, Part, halves
from quantization.deploy_network import GRAPHS, DeployNetwork, Predictor
from quantization.distill import Distillation, Settings
from quantization.equalize import equalize
from quantization.post_training import Scheme, quantize_module
from quantization.quantized_checkpoint import load_quantized, save_quantized
from quantization.sensitivity import Groups, grouped, measure
from training.data.samples import Source
from training.scoring import score

logger = logging.getLogger("cris_edge.quantization")

STAGES = ("post-training", "mixed", "fine-tuned")
SPARED = (1, 2, 4, 6, 8, 12)  # numbers of groups that the second stage leaves in float, tried in turn

Made = tuple[DeployNetwork, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of the ladder.

    Attributes:
        max_drop: Drop in mIoU, in points, at which to stop.
        calibration: Number of calibration images.
        target: Instructions that the weights are for (`quantization.post_training.Scheme`).
        all_stages: Measure every stage, even after one that suffices.
        sensitivity_images: Images of the first half on which groups of layers are compared.
        tuning: Settings of the third stage.
        seed: Seed of the choice of calibration images.
        limit: Images of each half to score; None for all.
    """

    max_drop: float = 0.5
    calibration: int = 128
    target: str = "vnni"
    all_stages: bool = False
    sensitivity_images: int = 24
    tuning: Settings = field(default_factory=Settings)
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.max_drop >= 0:
            raise OptionError(f"The largest drop is {self.max_drop}; expected points of mIoU, 0 or more.")
        Scheme(target=self.target)

    def to_dict(self) -> dict[str, Any]:
        """All settings, ready for JSON."""
        return asdict(self)


@dataclass
class Stage:
    """The network of one stage and its figures, ready for JSON."""

    network: DeployNetwork
    figures: dict[str, Any]

    @property
    def drop(self) -> float:
        """Drop in mIoU on the reported half, in points."""
        return float(self.figures["drop"])

    @property
    def drop_chosen_on(self) -> float:
        """Drop in mIoU on the other half, in points."""
        return float(self.figures["drop_chosen_on"])


class Ladder:
    """Runs the stages, and resumes a killed run.

    Args:
        bare: The float network.
        data: Source to calibrate and fine-tune with.
        val: Labelled source to choose and report on.
        plan: Settings.
        work: Folder for everything that resuming needs.
        metrics: JSON Lines file for the fine-tuning's metrics.
        device: Device of the fine-tuning.
    """

    def __init__(
        self, bare: DeployNetwork, data: Source, val: Source, plan: Plan, work: Path, *,
        metrics: Path | None = None, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.bare, self.data, self.plan, self.work, self.metrics, self.device = bare, data, plan, work, metrics, device
        self.chosen_on, self.reported = halves(val)
        self._calibration: Calibration | None = None
        self.float_figures: dict[str, Any] = {}

    def run(self) -> tuple[Stage, list[Stage]]:
        """Return the stage to use (the first within the drop, else the best), and every stage that was measured."""
        self.work.mkdir(parents=True, exist_ok=True)
        self.float_figures = self._score_float()
        stages: list[Stage] = []
        for name, make in zip(STAGES, (self._post_training, self._mixed, self._fine_tuned), strict=True):
            stage = self._stage(name, partial(make, stages))
            stages.append(stage)
            logger.info("%s: mIoU %.2f, drop %.2f points", name, stage.figures["metrics"]["mIoU"], stage.drop)
            if stage.drop <= self.plan.max_drop and not self.plan.all_stages:
                break
        within = [stage for stage in stages if stage.drop <= self.plan.max_drop]
        return (within[0] if within else min(stages, key=lambda stage: stage.drop)), stages

    def _stage(self, name: str, make: Callable[[], Made]) -> Stage:
        """Make a stage, or load it where an earlier run made it."""
        file = self.work / f"{name}.pt"
        if file.exists():
            network, extra = load_quantized(file)
            return Stage(network, extra["figures"])
        began = time.perf_counter()
        network, details = make()
        found, before = self._figures(network), self.float_figures
        figures = {
            "rung": name,  # the reports' name for a stage
            **details,
            "drop": before["metrics"]["mIoU"] - found["metrics"]["mIoU"],
            "drop_chosen_on": before["chosen_on"]["mIoU"] - found["chosen_on"]["mIoU"],
            "seconds": round(time.perf_counter() - began, 1),
            **found,
        }
        save_quantized(file, network, figures=figures)
        return Stage(network, figures)

    def _score_float(self) -> dict[str, Any]:
        file = self.work / "float.json"
        if not file.exists():
            write_whole(file, json.dumps(self._figures(self.bare)))
        return dict(json.loads(file.read_text(encoding="utf-8")))

    def _figures(self, network: DeployNetwork) -> dict[str, Any]:
        return {"metrics": self._score(network, self.reported), "chosen_on": self._score(network, self.chosen_on)}

    def _score(self, network: DeployNetwork, part: Part) -> dict[str, Any]:
        found = score(Predictor(network), part, limit=self.plan.limit)
        return {"dataset": part.name, "split": part.split, **found.scores.to_dict()}

    def _drop(self, network: DeployNetwork) -> float:
        """Drop in mIoU on the half that choices are made on, in points."""
        return float(self.float_figures["chosen_on"]["mIoU"] - self._score(network, self.chosen_on)["mIoU"])

    @property
    def calibration(self) -> Calibration:
        """The calibration samples, computed once; equalizes the float network."""
        if self._calibration is None:
            logger.info("sampling %d calibration images", min(self.plan.calibration, len(self.data)))
            self._calibration = Calibration(self.bare, self.data, self.plan.calibration, self.plan.seed)
            equalize(self.bare, self._calibration)
        return self._calibration

    def _post_training(self, _: list[Stage]) -> Made:
        """Try every scheme and keep the one with the smallest drop."""
        best: tuple[float, DeployNetwork, Scheme] | None = None
        tried = []
        for preset in ("mixed", "performance"):
            for smooth in (False, True) if best is None else (best[2].smooth,):
                scheme = Scheme(smooth=smooth, preset=preset, target=self.plan.target)
                network = self._quantized(scheme)
                drop = self._drop(network)
                logger.info("%s: drop %.2f points on the first half", scheme, drop)
                tried.append({**scheme.to_dict(), "drop_chosen_on": drop})
                if best is None or drop < best[0]:
                    best = drop, network, scheme
        assert best is not None
        return best[1], {"scheme": best[2].to_dict(), "tried": tried}

    def _quantized(self, scheme: Scheme) -> DeployNetwork:
        modules = [quantize_module(self.bare.graphs[name], self.calibration.samples[name], scheme) for name in GRAPHS]
        return DeployNetwork(self.bare.architecture, modules).eval()

    def _mixed(self, stages: list[Stage]) -> Made:
        """Leave the most sensitive groups in float, as few as suffice."""
        network = self._load("post-training")
        every = grouped(network, self.bare)
        rows = measure(network, every, self.chosen_on, limit=self.plan.sensitivity_images)
        enough = self.plan.max_drop / 2  # a margin, since the reported half may lose more
        tried: list[dict[str, Any]] = []
        for count in [count for count in SPARED if count < len(rows)]:
            _leave_in_float(every, [row.group for row in rows[:count]])
            drop = self._drop(network)
            tried.append({"spared": count, "drop_chosen_on": drop})
            logger.info("%d groups in float: drop %.2f points on the first half", count, drop)
            if drop <= enough:
                break
        best = min(tried, key=lambda entry: (entry["drop_chosen_on"] > enough, entry["drop_chosen_on"]))
        spared = [row.group for row in rows[: best["spared"]]]
        _leave_in_float(every, spared)
        return network, {
            "scheme": stages[0].figures["scheme"],
            "float": spared,
            "tried": tried,
            "sensitivity": [vars(row) for row in rows],
        }

    def _load(self, name: str) -> DeployNetwork:
        return load_quantized(self.work / f"{name}.pt")[0]

    def _fine_tuned(self, stages: list[Stage]) -> Made:
        """Fine-tune the better stage, and keep the best of the passes over the data."""
        start = min(stages, key=lambda stage: stage.drop_chosen_on)
        student = self._load(start.figures["rung"])
        state, best_file = self.work / "tuning.pt", self.work / "tuning-best.pt"
        run = Distillation(
            student, self.bare, self.data, self.plan.tuning, state=state, metrics=self.metrics, device=self.device
        )
        kept = load_quantized(best_file)[1]["kept"] if best_file.exists() else {"mIoU": -1.0, "step": 0}

        def keep(step: int) -> dict[str, Any]:
            miou = self._score(student, self.chosen_on)["mIoU"]
            logger.info("step %d: mIoU %.2f on the first half", step, miou)
            if miou <= kept["mIoU"]:
                return kept
            save_quantized(best_file, student, kept={"mIoU": miou, "step": step})
            return {"mIoU": miou, "step": step}

        for step in run.run():
            kept = keep(step)
        if not best_file.exists():  # killed between the last step and its score
            kept = keep(run.step)
        self.bare.to("cpu")
        details = {"from": start.figures["rung"], "steps": run.steps, "kept_step": kept["step"]}
        spared = {"float": start.figures["float"]} if "float" in start.figures else {}
        with torch.no_grad():
            return load_quantized(best_file)[0], {"scheme": start.figures["scheme"], **spared, **details}


def _leave_in_float(every: Groups, spared: list[str]) -> None:
    """Disable the quantizers of the groups in `spared`, and enable all others."""
    for group, members in every.items():
        for quantizer in members:
            quantizer.enabled = group not in spared
