"""``python -m benchmarks.latency``: bundles against PyTorch and against plain exports of the same checkpoint.

Everything runs in the same minutes, interleaved, each in its own process, with the same threads, on the same image;
ratios are of medians of the same rounds. Where PyTorch is compared with, it is the faster one of its memory formats.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import harness
from cris_edge.backends import registry
from cris_edge.benchmark.results import busy, device, load_average, table
from cris_edge.benchmark.rounds import LatencySamples, Progress, interleave
from cris_edge.benchmark.runner import PROMPT, synthetic_image
from cris_edge.benchmark.spread import Spread, ratio
from cris_edge.benchmark.worker import Worker
from cris_edge.bundle import Bundle
from cris_edge.device.processor import physical_cores
from cris_edge.errors import CrisEdgeError, OptionError

PEERS = (
    "pytorch",
    "pytorch-channels-last",
    "pytorch-bfloat16",
    "pytorch-compiled",
    "onnxruntime-plain",
    "openvino-plain",
)
EAGER = ("pytorch", "pytorch-channels-last")  # the base of the ratios is the faster of these
OURS = "bundle"
NETWORK = ("network", "image_encoder", "text_encoder", "mask_decoder")  # stages that are not pre- or postprocessing


@dataclass
class Entry:
    """One peer or bundle.

    Attributes:
        name: Of the peer; "bundle" for ours.
        label: For people.
        info: What really runs.
        turns: What was measured.
        memory: Peak of the process, and what was resident at the end, in bytes.
        difference: Largest difference of a logit from PyTorch's in float32.
        path: Of the bundle.
    """

    name: str
    label: str
    info: dict[str, Any]
    turns: LatencySamples
    memory: dict[str, int | None] = field(default_factory=dict)
    difference: float | None = None
    path: str | None = None

    def spread(self, stage: str) -> Spread:
        """Of one stage."""
        return Spread.of(self.turns.of(stage))

    @property
    def overhead(self) -> float:
        """Share of the whole that is not the network: the median over the turns."""
        shares = [
            1 - sum(turn[stage] for stage in NETWORK if stage in turn) / turn["whole"]
            for block in self.turns.blocks
            for turn in block
        ]
        return float(np.median(shares))


@dataclass
class Comparison:
    """Everything that was measured in one run."""

    machine: dict[str, Any]
    entries: list[Entry]
    failures: list[dict[str, str]]
    macs: dict[str, int]
    load_before: float | None

    @property
    def base(self) -> Entry | None:
        """PyTorch eager in float32, in its better memory format; None where it was left out."""
        eager = [entry for entry in self.entries if entry.name in EAGER]
        return min(eager, key=lambda entry: entry.spread("whole").median, default=None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        base = self.base
        return {
            "machine": self.machine,
            "load_before": self.load_before,
            "plain_macs": self.macs,
            "base": base.label if base else None,
            "failures": self.failures,
            "entries": [
                {
                    "name": entry.name,
                    "label": entry.label,
                    "path": Path(entry.path).name if entry.path else None,  # where it lies is nobody's business
                    "info": {name: value for name, value in entry.info.items() if name != "path"},
                    "seconds": {stage: spread.to_dict() for stage, spread in entry.turns.spreads().items()},
                    "memory": entry.memory,
                    "largest_difference_of_a_logit": entry.difference,
                    "share_outside_the_network": entry.overhead,
                    "against_pytorch": self.against(base, entry) if base else None,
                    "against_plain": self.against(plain, entry) if (plain := self._plain(entry)) else None,
                }
                for entry in self.entries
            ],
        }

    def against(self, base: Entry, entry: Entry) -> dict[str, Any]:
        """How many times faster `entry` does the whole job, and the next sentence, than `base` the whole job."""
        theirs = base.turns.of("whole")
        peaks = entry.memory.get("peak"), base.memory.get("peak")
        return {
            "whole": ratio(entry.turns.of("whole"), theirs),
            "next": ratio(entry.turns.of("next"), theirs),
            "memory": peaks[0] / peaks[1] if peaks[0] and peaks[1] else None,
        }

    def _plain(self, entry: Entry) -> Entry | None:
        """The plain export in the same runtime and precision."""
        kind = (entry.info["runtime"], entry.info["precision"])
        plain = [
            other
            for other in self.entries
            if other.name.endswith("-plain") and (other.name.removesuffix("-plain"), other.info["precision"]) == kind
        ]
        return plain[0] if plain and entry.name == OURS else None

    def to_text(self, markdown: bool = False) -> str:
        """Tables for people."""
        machine, base = self.machine, self.base
        head = (
            f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; "
            f"{', '.join(machine['instruction_sets'])}\nRatios are against {base.label if base else 'nothing'}."
        )
        names = [
            "one image, one sentence",
            "threads",
            "turns",
            "ms",
            "times faster",
            "next sentence, ms",
            "times faster",
        ]
        rows = [self._row(entry, base) for entry in self.entries]
        parts = [head, table([*names, "not network", "peak, MB", "share", "logits differ"], rows, markdown=markdown)]
        rearranged = [
            [entry.label, harness.times(found["whole"]), harness.times(found["next"])]
            for entry in self.entries
            if (plain := self._plain(entry))
            for found in [self.against(plain, entry)]
        ]
        if rearranged:
            names = ["against the plain export in the same runtime", "one sentence", "next sentence"]
            parts.append(table(names, rearranged, markdown=markdown))
        parts += [f"failed: {failure['case']}: {failure['error']}" for failure in self.failures]
        return "\n\n".join([*parts, *busy(self.load_before)])

    def _row(self, entry: Entry, base: Entry | None) -> list[str]:
        found = self.against(base, entry) if base else None
        peak = entry.memory.get("peak")
        return [
            entry.label,
            str(entry.info.get("threads") or ""),
            str(len(entry.turns)),
            harness.milliseconds(entry.spread("whole")),
            harness.times(found and found["whole"]),
            harness.milliseconds(entry.spread("next")),
            harness.times(found and found["next"]),
            f"{entry.overhead:.1%}",
            f"{peak / 1e6:.0f}" if peak else "",
            f"{found['memory']:.2f}" if found and found["memory"] else "",
            "" if entry.difference is None else f"{entry.difference:.2g}",
        ]


def compare(
    checkpoint: Path,
    bundles: list[Path],
    *,
    peers: tuple[str, ...] = PEERS,
    threads: int | None = None,
    runs: int = 50,
    seconds: float = 60.0,
    say: Progress = lambda _: None,
) -> Comparison:
    """Measure everything in one run.

    Raises:
        CrisEdgeError: The checkpoint or a bundle cannot be read. A peer that cannot run is among the failures.
    """
    if unknown := sorted(set(peers) - set(PEERS)):
        raise OptionError(f"There is no peer {', '.join(unknown)}; choose from {', '.join(PEERS)}.")
    threads, before = threads or physical_cores(), load_average()
    failures: list[dict[str, str]] = []
    entries: list[Entry] = []
    with tempfile.TemporaryDirectory(prefix="cris-edge-peers-") as folder, ExitStack() as stack:
        image = str(synthetic_image(Path(folder)))
        common = {"image": image, "sentence": PROMPT}
        exported = _export(checkpoint, Path(folder), peers, failures, say)
        workers: list[Worker] = []

        def add(name: str, label: str, entry: str, arguments: dict[str, Any], path: str | None = None) -> Worker | None:
            say(f"loading {label}")
            try:
                worker = Worker(entry, {**common, **arguments}, label)
            except CrisEdgeError as error:
                failures.append({"case": label, "error": str(error)})
                return None
            stack.enter_context(worker)
            precision = str(worker.info["precision"])
            title = label if label.endswith(precision) else f"{label} {precision}"
            # Where float32 is the runtime's own choice, it was measured already.
            same = [other for other in entries if (other.name, other.path, other.label) == (name, path, title)]
            if same:
                worker.close()
                return None
            worker.label = title
            workers.append(worker)
            entries.append(Entry(name, title, worker.info, LatencySamples(), path=path))
            return worker

        for name in peers:
            for label, entry, arguments in _arguments(name, checkpoint, Path(folder), threads, exported):
                add(name, label, entry, arguments)
        for path in bundles:
            manifest = Bundle.open(path).manifest
            for runtime in [name for name in manifest.runtimes if name in registry.available()]:
                for precision in ("auto", "float32"):
                    options = {"runtime": runtime, "precision": precision, "threads": threads, "cache_dir": None}
                    label = f"{manifest.name}, {runtime}"
                    add(OURS, label, "benchmarks.peers:BundlePeer", {"model": str(path), "options": options}, str(path))
        if workers:
            for entry, turns in zip(
                entries, interleave(workers, runs=runs, seconds=seconds, progress=say), strict=True
            ):
                entry.turns = turns
        for entry, worker in zip(entries, workers, strict=True):
            entry.memory = worker.ask("memory")
        _differences(entries, workers)
    macs = {name: told["macs"] for name, told in exported.items()}
    return Comparison(device(), entries, failures, macs, before)


def _export(
    checkpoint: Path, folder: Path, peers: tuple[str, ...], failures: list[dict[str, str]], say: Progress
) -> dict[str, dict[str, int]]:
    """Write the plain graphs that are needed; what the exporter told of each, by peer."""
    exported: dict[str, dict[str, int]] = {}
    wanted = {"onnxruntime-plain": "convolution", "openvino-plain": "product"}
    for name, correlation in wanted.items():
        if name not in peers:
            continue
        say(f"exporting for {name}")
        try:
            with Worker("benchmarks.peers:Exporter", {"checkpoint": str(checkpoint)}, name) as worker:
                exported[name] = worker.ask("export", path=str(folder / f"{name}.onnx"), correlation=correlation)
        except CrisEdgeError as error:
            failures.append({"case": name, "error": str(error)})
    return exported


def _arguments(
    name: str, checkpoint: Path, folder: Path, threads: int, exported: dict[str, dict[str, int]]
) -> list[tuple[str, str, dict[str, Any]]]:
    """Label, entry and arguments of the workers that a peer is."""
    if name.startswith("pytorch"):
        _, _, variant = name.partition("-")
        form = {"channels-last": "channels last", "compiled": "compiled"}.get(variant, "contiguous")
        precision = "bfloat16" if variant == "bfloat16" else "float32"
        label = f"PyTorch {'compiled' if form == 'compiled' else f'eager, {form}'}"
        arguments = {"checkpoint": str(checkpoint), "threads": threads, "form": form, "precision": precision}
        return [(f"{label}, {precision}", "benchmarks.peers:pytorch", arguments)]
    runtime = name.removesuffix("-plain")
    if name not in exported or not registry.is_available(runtime):
        return []
    precisions = ("auto", "float32") if runtime == "openvino" else ("auto",)
    return [
        (
            f"plain export, {runtime}",
            "benchmarks.peers:plain",
            {
                "graph": str(folder / f"{name}.onnx"),
                "runtime": runtime,
                "precision": precision,
                "threads": threads,
                "input_size": exported[name]["input_size"],
                "word_len": exported[name]["word_len"],
            },
        )
        for precision in precisions
    ]


def _differences(entries: list[Entry], workers: list[Worker]) -> None:
    """Whether all of them compute the same function: the logits of one image and one sentence."""
    base = next((place for place, entry in enumerate(entries) if entry.name in EAGER), None)
    if base is None:
        return
    expected = np.array(workers[base].ask("logits"))
    for entry, worker in zip(entries, workers, strict=True):
        found = np.array(worker.ask("logits"))
        entry.difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else None


@click.command(help=__doc__)
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="A CRIS checkpoint.")
@click.option(
    "--bundle", "bundles", multiple=True, type=click.Path(path_type=Path), help="Of it; as many as there are."
)
@click.option("--peer", "peers", multiple=True, type=click.Choice(PEERS), default=PEERS, help="[default: all]")
@harness.options(seconds=60.0)
def main(checkpoint: Path, bundles: tuple[Path, ...], output: Path | None, markdown: bool, **options: Any) -> None:
    """Read the command line."""
    harness.conclude(
        lambda: compare(checkpoint, list(bundles), say=harness.tell, **options),
        to_dict=Comparison.to_dict,
        to_text=Comparison.to_text,
        output=output,
        markdown=markdown,
    )


if __name__ == "__main__":
    main()
