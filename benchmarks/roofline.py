"""``python -m benchmarks.roofline``: how near the graphs of a bundle are to what this machine can do at most.

The peak is measured: the fastest chain of 3x3 convolutions, over a few shapes and all runtimes, for each precision.
Chains and bundles run in the same minutes, interleaved. A graph's own count is the multiply-accumulates that its
manifest states; what it does besides (additions, resizing, copies) is not counted and lowers the fraction.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import harness
from benchmarks.chain import SHAPES
from cris_edge.backends import registry
from cris_edge.benchmark.results import busy, device, load_average, table
from cris_edge.benchmark.rounds import Progress, interleave
from cris_edge.benchmark.runner import PROMPT, synthetic_image
from cris_edge.benchmark.spread import Spread
from cris_edge.benchmark.worker import Worker
from cris_edge.bundle import GRAPHS, Bundle
from cris_edge.device.processor import physical_cores
from cris_edge.errors import CrisEdgeError

PRECISIONS = {"openvino": ("float32", "bfloat16", "int8"), "onnxruntime": ("float32", "int8")}


@dataclass(frozen=True)
class Rate:
    """Multiply-accumulates of one thing, and the seconds that it took."""

    label: str
    precision: str
    macs: int
    seconds: Spread

    @property
    def per_second(self) -> float:
        """Of the median."""
        return self.macs / self.seconds.median

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "label": self.label,
            "precision": self.precision,
            "macs": self.macs,
            "seconds": self.seconds.to_dict(),
            "macs_per_second": self.per_second,
        }


@dataclass(frozen=True)
class Roofline:
    """Chains, and graphs of bundles."""

    machine: dict[str, Any]
    chains: list[Rate]
    graphs: list[Rate]
    failures: list[dict[str, str]]
    load_before: float | None

    def peak(self, precision: str) -> Rate | None:
        """The fastest chain of a precision; of "int8+bfloat16" it is that of int8."""
        kind = precision.partition("+")[0]
        chains = [chain for chain in self.chains if chain.precision == kind]
        return max(chains, key=lambda chain: chain.per_second, default=None)

    def fraction(self, graph: Rate) -> float | None:
        """Of the peak that a graph reaches."""
        peak = self.peak(graph.precision)
        return graph.per_second / peak.per_second if peak else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "machine": self.machine,
            "load_before": self.load_before,
            "chains": [chain.to_dict() for chain in self.chains],
            "graphs": [{**graph.to_dict(), "fraction_of_peak": self.fraction(graph)} for graph in self.graphs],
            "failures": self.failures,
        }

    def to_text(self, markdown: bool = False) -> str:
        """Tables for people."""
        head = (
            f"{self.machine['processor']}, {self.machine['cores']} cores; {', '.join(self.machine['instruction_sets'])}"
        )
        chains = [[rate.label, rate.precision, *_figures(rate)] for rate in self.chains]
        parts = [head, table(["chain of 3x3 convolutions", "precision", *_NAMES], chains, markdown=markdown)]
        graphs = [
            [
                rate.label,
                rate.precision,
                *_figures(rate),
                "" if (share := self.fraction(rate)) is None else f"{share:.0%}",
            ]
            for rate in self.graphs
        ]
        if graphs:
            parts.append(table(["graph", "precision", *_NAMES, "of the peak"], graphs, markdown=markdown))
        parts += [f"failed: {failure['case']}: {failure['error']}" for failure in self.failures]
        return "\n\n".join([*parts, *busy(self.load_before)])


_NAMES = ("GMAC", "ms", "GMAC/s")


def measure(
    bundles: list[Path],
    *,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    threads: int | None = None,
    runs: int = 50,
    seconds: float = 20.0,
    say: Progress = lambda _: None,
) -> Roofline:
    """Measure chains and bundles; what cannot run is among the failures.

    Args:
        bundles: Folders.
        shapes: Channels and side of the chains.
        threads: Of the processor; the physical cores by default.
        runs: Iterations of each at least.
        seconds: For each, about.
        say: Told what is done.
    """
    threads, before = threads or physical_cores(), load_average()
    failures: list[dict[str, str]] = []
    kinds: list[tuple[str, dict[str, int | None]]] = []
    workers: list[Worker] = []
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="cris-edge-roofline-") as folder:
        image = str(synthetic_image(Path(folder)))

        def add(label: str, entry: str, arguments: dict[str, Any], macs: dict[str, int | None]) -> None:
            say(f"loading {label}")
            try:
                workers.append(stack.enter_context(Worker(entry, arguments, label)))
            except CrisEdgeError as error:
                failures.append({"case": label, "error": str(error)})
            else:
                kinds.append((label, macs))

        for runtime in registry.available():
            for precision in PRECISIONS.get(runtime, ()):
                for channels, side in shapes:
                    add(
                        f"{runtime}, {channels} channels, {side} x {side}",
                        "benchmarks.chain:Chain",
                        {
                            "runtime": runtime,
                            "precision": precision,
                            "channels": channels,
                            "side": side,
                            "threads": threads,
                        },
                        {},
                    )
        for path in bundles:
            manifest = Bundle.open(path).manifest
            macs = {name: manifest.graphs[name].macs for name in GRAPHS}
            for runtime in [name for name in manifest.runtimes if name in registry.available()]:
                for precision in ("auto", "float32"):
                    options = {"runtime": runtime, "precision": precision, "threads": threads, "cache_dir": None}
                    arguments = {"model": str(path), "options": options, "image": image, "sentence": PROMPT}
                    add(f"{manifest.name}, {runtime}", "cris_edge.benchmark.worker:SegmenterSubject", arguments, macs)
        gathered = interleave(workers, runs=runs, seconds=seconds, progress=say) if workers else []
    chains: list[Rate] = []
    graphs: list[Rate] = []
    for (label, macs_of), worker, turns in zip(kinds, workers, gathered, strict=True):
        precision = worker.info["precision"]
        if not macs_of:
            kind = precision.partition("+")[0]
            chains.append(Rate(label, kind, worker.info["macs"], Spread.of(turns.of("whole"))))
            continue
        for name in GRAPHS:
            rate = Rate(f"{label}, {name}", precision, macs_of[name] or 0, Spread.of(turns.of(name)))
            if rate.macs and (rate.label, precision) not in [(other.label, other.precision) for other in graphs]:
                graphs.append(rate)
    return Roofline(device(), chains, graphs, failures, before)


def _figures(rate: Rate) -> list[str]:
    return [f"{rate.macs / 1e9:.2f}", harness.milliseconds(rate.seconds), f"{rate.per_second / 1e9:.0f}"]


@click.command(help=__doc__)
@click.option("--bundle", "bundles", multiple=True, type=click.Path(path_type=Path), help="Folder; may be several.")
@harness.options(seconds=20.0)
def main(bundles: tuple[Path, ...], output: Path | None, markdown: bool, **options: Any) -> None:
    """Read the command line."""
    harness.conclude(
        lambda: measure(list(bundles), say=harness.tell, **options),
        to_dict=Roofline.to_dict,
        to_text=Roofline.to_text,
        output=output,
        markdown=markdown,
    )


if __name__ == "__main__":
    main()
