"""Plots of a run's metrics: ``python -m training.curves runs/tiny/metrics.jsonl curves.png``."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path


def plot_metrics(metrics: Path, image: Path) -> None:
    """Plot loss, validation scores, learning rate and images per second over the steps.

    Args:
        metrics: The run's JSON Lines.
        image: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    trained = [record for record in records if "loss" in record]
    validated = [record for record in records if "val" in record]
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    loss, scores, rate, speed = figure.subplots(2, 2).flat
    steps = [record["step"] for record in trained]
    loss.plot(steps, [record["loss"] for record in trained])
    loss.set(title="training loss", yscale="log")
    for name in ("mIoU", "oIoU", "Pr@50"):
        scores.plot([r["step"] for r in validated], [r["val"][name] for r in validated], marker=".", label=name)
    scores.set(title="validation, %")
    if validated:
        scores.legend()
    rate.plot(steps, [record["learning_rate"] for record in trained])
    rate.set(title="learning rate")
    for name, label in (("images_per_second", "trained"), ("loader_images_per_second", "loader capacity")):
        speed.plot(steps, [record[name] for record in trained], label=label)
    speed.set(title="images per second", ylim=(0, None))
    speed.legend()
    sizes = [(a["step"], b["size"]) for a, b in pairwise(trained) if a["size"] != b["size"]]
    for axes in (loss, scores, rate, speed):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        for step, _ in sizes:  # changes of the input size
            axes.axvline(step, color="grey", linestyle=":", linewidth=1)
    figure.savefig(image, dpi=110)


if __name__ == "__main__":
    plot_metrics(Path(sys.argv[1]), Path(sys.argv[2]))
