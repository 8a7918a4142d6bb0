"""``python -m benchmarks.roofline``: how close the graphs of a bundle come to the peak throughput of this machine.

The peak is measured: the fastest chain of 3x3 convolutions over several shapes and all runtimes, for each precision.
Chains and bundles run in interleaved rounds. A graph's operations are the multiply-accumulates that its manifest
states; additions, resizing and copies are not counted and lower the fraction.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import harness
from benchmarks.chain import SHAPES
from benchmarks.harness import Document, Workers
from benchmarks.provenance import bundle_record
from cris_edge.backends import registry
from cris_edge.benchmark.results import table
from cris_edge.benchmark.rounds import Progress, interleave
from cris_edge.benchmark.runner import PROMPT, synthetic_image
from cris_edge.benchmark.spread import Spread
from cris_edge.bundle import GRAPHS, Bundle
from cris_edge.device.processor import physical_cores

PRECISIONS = {"openvino": ("float32", "bfloat16", "int8"), "onnxruntime": ("float32", "int8")}


@dataclass(frozen=True)
class Rate:
    """The throughput of a chain or a graph."""

    label: str
    precision: str
    macs: int
    seconds: Spread

    @property
    def per_second(self) -> float:
        """Multiply-accumulates per second, at the median."""
        return self.macs / self.seconds.median

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return {
            "label": self.label,
            "precision": self.precision,
            "macs": self.macs,
            "seconds": self.seconds.to_dict(),
            "macs_per_second": self.per_second,
        }


@dataclass(frozen=True)
class Roofline:
    """Chains and the graphs of bundles, measured in one run; `document` has the other fields of the result file."""

    chains: list[Rate]
    graphs: list[Rate]
    document: Document

    def peak(self, precision: str) -> Rate | None:
        """The fastest chain in a precision; for "int8+bfloat16", in int8."""
        kind = precision.partition("+")[0]
        chains = [chain for chain in self.chains if chain.precision == kind]
        return max(chains, key=lambda chain: chain.per_second, default=None)

    def fraction(self, graph: Rate) -> float | None:
        """The fraction of the peak that a graph reaches."""
        peak = self.peak(graph.precision)
        return graph.per_second / peak.per_second if peak else None

    def to_dict(self) -> Document:
        """Everything, ready for JSON."""
        graphs = [{**graph.to_dict(), "fraction_of_peak": self.fraction(graph)} for graph in self.graphs]
        return {**self.document, "chains": [chain.to_dict() for chain in self.chains], "graphs": graphs}


def to_text(found: Document, markdown: bool = False) -> str:
    """Tables of a result file."""
    machine, figures = found["machine"], ("precision", "GMAC", "ms", "GMAC/s")
    head = f"{machine['processor']}, {machine['cores']} cores; {', '.join(machine['instruction_sets'])}"
    parts = [
        head,
        table(["chain of 3x3 convolutions", *figures], list(map(_cells, found["chains"])), markdown=markdown),
    ]
    graphs = [
        [*_cells(graph), "" if (share := graph["fraction_of_peak"]) is None else f"{share:.0%}"]
        for graph in found["graphs"]
    ]
    if graphs:
        parts.append(table(["graph", *figures, "of the peak"], graphs, markdown=markdown))
    return "\n\n".join([*parts, *harness.closing(found)])


def _cells(rate: dict[str, Any]) -> list[str]:
    gigamacs, per_second = f"{rate['macs'] / 1e9:.2f}", f"{rate['macs_per_second'] / 1e9:.0f}"
    return [rate["label"], rate["precision"], gigamacs, harness.milliseconds(rate["seconds"]), per_second]


def measure(
    bundles: list[Path],
    *,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    threads: int | None = None,
    runs: int = 50,
    seconds: float = 20.0,
    progress: Progress = lambda _: None,
) -> Roofline:
    """Measure chains and bundles; what cannot run is among the failures.

    Args:
        bundles: Folders.
        shapes: Channels and side of each chain.
        threads: CPU threads of each; None for the number of physical cores.
        runs: Minimum number of runs of each.
        seconds: Approximate time for each.
        progress: Called with a line of progress.
    """
    threads = threads or physical_cores()
    cases: list[tuple[str, dict[str, int | None]]] = []  # label, and the operations of a bundle's graphs
    with Workers(progress) as pool, tempfile.TemporaryDirectory(prefix="cris-edge-roofline-") as folder:
        image = str(synthetic_image(Path(folder)))

        def add(label: str, entry: str, arguments: dict[str, Any], macs: dict[str, int | None]) -> None:
            if pool.start(entry, arguments, label):
                cases.append((label, macs))

        for runtime in registry.available():
            for precision in PRECISIONS.get(runtime, ()):
                for channels, side in shapes:
                    arguments = {"runtime": runtime, "precision": precision, "threads": threads}
                    arguments |= {"channels": channels, "side": side}
                    add(f"{runtime}, {channels} channels, {side} x {side}", "benchmarks.chain:Chain", arguments, {})
        for path in bundles:
            manifest = Bundle.open(path).manifest
            macs = {name: manifest.graphs[name].macs for name in GRAPHS}
            for runtime in [name for name in manifest.runtimes if name in registry.available()]:
                for precision in ("auto", "float32"):
                    options = {"runtime": runtime, "precision": precision, "threads": threads, "cache_dir": None}
                    arguments = {"model": str(path), "options": options, "image": image, "prompt": PROMPT}
                    add(f"{manifest.name}, {runtime}", "cris_edge.benchmark.worker:SegmenterSubject", arguments, macs)
        gathered = interleave(pool.workers, runs=runs, seconds=seconds, progress=progress) if cases else []
        document = pool.document(bundles=[bundle_record(path) for path in bundles])
    chains: list[Rate] = []
    graphs: list[Rate] = []
    for (label, macs_of), worker, samples in zip(cases, pool.workers, gathered, strict=True):
        precision = worker.info["precision"]
        if not macs_of:
            kind = precision.partition("+")[0]
            chains.append(Rate(label, kind, worker.info["macs"], Spread.of(samples.of("whole"))))
            continue
        for name in GRAPHS:
            rate = Rate(f"{label}, {name}", precision, macs_of[name] or 0, Spread.of(samples.of(name)))
            if rate.macs and (rate.label, precision) not in [(other.label, other.precision) for other in graphs]:
                graphs.append(rate)
    return Roofline(chains, graphs, document)


@click.command(help=__doc__)
@click.option("--bundle", "bundles", multiple=True, type=click.Path(path_type=Path), help="Bundle; repeatable.")
@harness.options(seconds=20.0)
def main(bundles: tuple[Path, ...], output: Path | None, markdown: bool, **options: Any) -> None:
    """Run the command line."""
    harness.conclude(
        lambda: measure(list(bundles), progress=harness.progress, **options).to_dict(),
        to_text,
        output=output,
        markdown=markdown,
    )


if __name__ == "__main__":
    main()
