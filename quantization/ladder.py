"""The ladder from float to int8: three rungs, each measured, each tried only when the one before loses too much.

1. ``post-training``: NNCF's post-training quantization, in the schemes of `SCHEMES`, the best kept.
2. ``mixed``: of the better scheme, the most sensitive groups of layers stay in float.
3. ``fine-tuned``: quantization-aware fine-tuning of the better of the two.

What is chosen is chosen on one half of the validation data, and what is reported is measured on the other.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
from quantization.sensitivity import grouped, measure
from training.data.samples import Source
from training.evaluate import score

logger = logging.getLogger("cris_edge.quantization")

RUNGS = ("post-training", "mixed", "fine-tuned")
SPARED = (1, 2, 4, 6, 8, 12)  # how many groups the second rung spares, tried in turn


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do on the ladder.

    Attributes:
        max_drop: Largest loss of mIoU, in points, at which to stop.
        calibration: Images to calibrate with.
        target: Instructions that the weights are for (`quantization.post_training.Scheme`).
        all_rungs: Measure every rung, even where one before suffices.
        sensitivity_images: Images of the first half on which groups of layers are compared.
        tuning: The third rung.
        seed: Of the calibration images.
        limit: Images of each half that are scored; None: all.
    """

    max_drop: float = 0.5
    calibration: int = 128
    target: str = "vnni"
    all_rungs: bool = False
    sensitivity_images: int = 24
    tuning: Settings = field(default_factory=Settings)
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.max_drop >= 0:
            raise OptionError(f"The largest drop is {self.max_drop}; expected points of mIoU, 0 or more.")
        Scheme(target=self.target)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "tuning"}
        return {**own, "tuning": self.tuning.to_dict()}


@dataclass
class Rung:
    """One rung's network and its figures, in plain values."""

    network: DeployNetwork
    figures: dict[str, Any]

    @property
    def drop(self) -> float:
        """On the half that is reported, in points."""
        return float(self.figures["drop"])

    @property
    def chosen_by(self) -> float:
        """The drop on the other half."""
        return float(self.figures["drop_chosen_on"])


class Ladder:
    """Climbs the ladder, and continues where a killed climb stopped.

    Args:
        bare: The float network.
        data: To calibrate and fine-tune with.
        val: Labelled, to choose and to report on.
        plan: How.
        work: Folder for what a killed climb needs to continue.
        metrics: File for the fine-tuning's lines of metrics.
        device: For the fine-tuning.
    """

    def __init__(
        self, bare: DeployNetwork, data: Source, val: Source, plan: Plan, work: Path, *,
        metrics: Path | None = None, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.bare, self.data, self.plan, self.work, self.metrics, self.device = bare, data, plan, work, metrics, device
        self.chosen_on, self.reported = halves(val)
        self._calibration: Calibration | None = None
        self.notes: dict[str, Any] = {"plan": plan.to_dict()}
        work.mkdir(parents=True, exist_ok=True)

    def climb(self) -> tuple[Rung, list[Rung]]:
        """The rung to use (the first within the drop, else the best), and every rung that was measured."""
        self.notes["float"] = self._once("float", lambda: self._figures(self.bare))
        rungs: list[Rung] = []
        for name, step in zip(RUNGS, (self._post_training, self._mixed, self._fine_tuned), strict=True):
            rungs.append(self._rung(name, lambda step=step: step(rungs)))
            rung = rungs[-1].figures
            logger.info("%s: %.2f points lost (mIoU %.2f)", name, rung["drop"], rung["metrics"]["mIoU"])
            if rung["drop"] <= self.plan.max_drop and not self.plan.all_rungs:
                break
        within = [rung for rung in rungs if rung.drop <= self.plan.max_drop]
        return (within[0] if within else min(rungs, key=lambda rung: rung.drop)), rungs

    def _rung(self, name: str, make: Callable[[], tuple[DeployNetwork, dict[str, Any]]]) -> Rung:
        """Make a rung, or read it where a climb before made it."""
        file = self.work / f"{name}.pt"
        if file.exists():
            network, extra = load_quantized(file)
            return Rung(network, extra["figures"])
        began = time.perf_counter()
        network, about = make()
        found = self._figures(network)
        before = self.notes["float"]
        figures = {
            "rung": name,
            **about,
            "drop": before["metrics"]["mIoU"] - found["metrics"]["mIoU"],
            "drop_chosen_on": before["chosen_on"]["mIoU"] - found["chosen_on"]["mIoU"],
            "seconds": round(time.perf_counter() - began, 1),
            **found,
        }
        save_quantized(file, network, figures=figures)
        return Rung(network, figures)

    def _figures(self, network: DeployNetwork) -> dict[str, Any]:
        return {"metrics": self._score(network, self.reported), "chosen_on": self._score(network, self.chosen_on)}

    def _score(self, network: DeployNetwork, part: Part) -> dict[str, Any]:
        found = score(Predictor(network), part, limit=self.plan.limit)
        return {"dataset": part.name, "split": part.split, **found.scores.to_dict()}

    def _once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = self.work / f"{name}.json"
        if not file.exists():
            found = make()
            write_whole(file, json.dumps(found))
        return dict(json.loads(file.read_text(encoding="utf-8")))

    @property
    def calibration(self) -> Calibration:
        """The samples, drawn once."""
        if self._calibration is None:
            logger.info("drawing %d images to calibrate with", min(self.plan.calibration, len(self.data)))
            self._calibration = Calibration(self.bare, self.data, self.plan.calibration, self.plan.seed)
            equalize(self.bare, self._calibration)
        return self._calibration

    def _post_training(self, rungs: list[Rung]) -> tuple[DeployNetwork, dict[str, Any]]:
        """Every scheme, and the one that loses least on the half that is chosen on."""
        best: tuple[float, DeployNetwork, Scheme] | None = None
        tried = []
        for preset in ("mixed", "performance"):
            for smooth in (False, True) if preset == "mixed" else (best[2].smooth if best else False,):
                scheme = Scheme(smooth=smooth, preset=preset, target=self.plan.target)
                network = self._quantized(scheme)
                found = self._score(network, self.chosen_on)
                drop = self.notes["float"]["chosen_on"]["mIoU"] - found["mIoU"]
                logger.info("%s: %.2f points lost where it is chosen on", scheme, drop)
                tried.append({**scheme.to_dict(), "drop_chosen_on": drop})
                if best is None or drop < best[0]:
                    best = drop, network, scheme
        assert best is not None
        return best[1], {"scheme": best[2].to_dict(), "tried": tried}

    def _quantized(self, scheme: Scheme) -> DeployNetwork:
        modules = [quantize_module(self.bare.graphs[name], self.calibration.samples[name], scheme) for name in GRAPHS]
        return DeployNetwork(self.bare.architecture, modules).eval()

    def _mixed(self, rungs: list[Rung]) -> tuple[DeployNetwork, dict[str, Any]]:
        """Spare the most sensitive groups, as few as do."""
        network = self._copy("post-training")
        every = grouped(network, self.bare)
        limit = self.plan.sensitivity_images
        rows = measure(network, every, self.chosen_on, limit=limit)  # type: ignore[arg-type]
        table = [vars(row) for row in rows]
        tried: list[dict[str, Any]] = []
        for count in [count for count in SPARED if count < len(rows)]:
            spared = [row.group for row in rows[:count]]
            self._spare(every, spared)
            found = self._score(network, self.chosen_on)
            drop = self.notes["float"]["chosen_on"]["mIoU"] - found["mIoU"]
            tried.append({"spared": count, "drop_chosen_on": drop})
            logger.info("%d groups in float: %.2f points lost where it is chosen on", count, drop)
            if drop <= self.plan.max_drop / 2:  # the half that is reported may be less kind
                break
        best = min(tried, key=lambda entry: (entry["drop_chosen_on"] > self.plan.max_drop / 2, entry["drop_chosen_on"]))
        spared = [row.group for row in rows[: best["spared"]]]
        self._spare(every, spared)
        return network, {"scheme": rungs[0].figures["scheme"], "float": spared, "tried": tried, "sensitivity": table}

    @staticmethod
    def _spare(every: dict[str, Any], spared: list[str]) -> None:
        for group, members in every.items():
            for quantizer in members:
                quantizer.enabled = group not in spared

    def _copy(self, name: str) -> DeployNetwork:
        return load_quantized(self.work / f"{name}.pt")[0]

    def _fine_tuned(self, rungs: list[Rung]) -> tuple[DeployNetwork, dict[str, Any]]:
        """Fine-tune the better rung; of the passes over the data, the best is kept."""
        start = min(rungs, key=lambda rung: rung.chosen_by)
        student = self._copy(start.figures["rung"])
        state, best_file = self.work / "tuning.pt", self.work / "tuning-best.pt"
        run = Distillation(
            student, self.bare, self.data, self.plan.tuning, state=state, metrics=self.metrics, device=self.device
        )
        kept = load_quantized(best_file)[1]["kept"] if best_file.exists() else {"mIoU": -1.0, "step": 0}
        for step in run.run():
            found = self._score(student, self.chosen_on)
            logger.info("step %d: mIoU %.2f where it is chosen on", step, found["mIoU"])
            if found["mIoU"] > kept["mIoU"]:
                kept = {"mIoU": found["mIoU"], "step": step}
                save_quantized(best_file, student, kept=kept)
        if not best_file.exists():  # killed between the last step and its score
            kept = {"mIoU": self._score(student, self.chosen_on)["mIoU"], "step": run.step}
            save_quantized(best_file, student, kept=kept)
        self.bare.to("cpu")
        about = {"from": start.figures["rung"], "steps": run.steps, "kept_step": kept["step"]}
        spared = {"float": start.figures["float"]} if "float" in start.figures else {}
        with torch.no_grad():
            return load_quantized(best_file)[0], {"scheme": start.figures["scheme"], **spared, **about}
