"""``python -m benchmarks.latency``: bundles against PyTorch and against plain exports of the same checkpoint.

Each runs in a process of its own with the same number of threads on the same image, in interleaved rounds. Ratios are
of medians over the same rounds, against the faster of PyTorch's memory formats.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import harness
from benchmarks.harness import Document, Workers
from benchmarks.provenance import bundle_record, checkpoint_record
from cris_edge.backends import registry
from cris_edge.benchmark.results import table
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
EAGER = ("pytorch", "pytorch-channels-last")  # ratios are against the faster of these
OURS = "bundle"
NETWORK = ("network", "image_encoder", "text_encoder", "mask_decoder")  # stages other than pre- and postprocessing
PLAIN = {"onnxruntime-plain": "convolution", "openvino-plain": "product"}  # and the last convolution's form in each


@dataclass
class Entry:
    """One peer or bundle.

    Attributes:
        name: Name of the peer; "bundle" for a bundle.
        label: Name for tables.
        info: Runtime, version, device, precision and threads that really ran.
        samples: Latency samples.
        memory: Peak of the process and resident memory at the end, bytes.
        difference: Largest absolute difference of a logit from PyTorch's in float32.
        path: Folder of the bundle.
    """

    name: str
    label: str
    info: dict[str, Any]
    samples: LatencySamples
    memory: dict[str, int | None] = field(default_factory=dict)
    difference: float | None = None
    path: str | None = None

    def spread(self, stage: str) -> Spread:
        """Seconds of one stage."""
        return Spread.of(self.samples.of(stage))

    @property
    def overhead(self) -> float:
        """Share of the time spent outside the network: the median over the samples."""
        shares = [
            1 - sum(sample[stage] for stage in NETWORK if stage in sample) / sample["whole"]
            for block in self.samples.blocks
            for sample in block
        ]
        return float(np.median(shares))


@dataclass
class Comparison:
    """Everything that one run measured.

    Attributes:
        entries: Peers and bundles.
        macs: Multiply-accumulates of each plain export.
        document: The other fields of the result file.
    """

    entries: list[Entry]
    macs: dict[str, int] = field(default_factory=dict)
    document: Document = field(default_factory=dict)

    @property
    def base(self) -> Entry | None:
        """PyTorch eager in float32, in its faster memory format; None where it was left out."""
        eager = [entry for entry in self.entries if entry.name in EAGER]
        return min(eager, key=lambda entry: entry.spread("whole").median, default=None)

    def to_dict(self) -> Document:
        """Everything, ready for JSON."""
        base = self.base
        return {
            **self.document,
            "plain_macs": self.macs,
            "base": base.label if base else None,
            "entries": [
                {
                    "name": entry.name,
                    "label": entry.label,
                    "path": Path(entry.path).name if entry.path else None,  # parents are nobody's business
                    "info": {name: value for name, value in entry.info.items() if name != "path"},
                    "seconds": {stage: spread.to_dict() for stage, spread in entry.samples.spreads().items()},
                    "memory": entry.memory,
                    "largest_difference_of_a_logit": entry.difference,
                    "share_outside_the_network": entry.overhead,
                    "against_pytorch": against(base, entry) if base else None,
                    "against_plain": against(plain, entry) if (plain := self._plain(entry)) else None,
                }
                for entry in self.entries
            ],
        }

    def _plain(self, entry: Entry) -> Entry | None:
        """The plain export in the same runtime and precision; None for entries that are no bundle."""
        kind = (f"{entry.info['runtime']}-plain", entry.info["precision"])
        plain = (other for other in self.entries if (other.name, other.info["precision"]) == kind)
        return next(plain, None) if entry.name == OURS else None


def against(base: Entry, entry: Entry) -> dict[str, Any]:
    """How many times faster `entry` is than all of `base`'s work, for one image and for its next prompt."""
    theirs = base.samples.of("whole")
    peaks = entry.memory.get("peak"), base.memory.get("peak")
    return {
        "whole": ratio(entry.samples.of("whole"), theirs),
        "next": ratio(entry.samples.of("next"), theirs),
        "memory": peaks[0] / peaks[1] if peaks[0] and peaks[1] else None,
    }


def to_text(found: Document, markdown: bool = False) -> str:
    """Tables of a result file."""
    machine, entries = found["machine"], found["entries"]
    head = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; "
        f"{', '.join(machine['instruction_sets'])}\nRatios are against {found['base'] or 'nothing'}."
    )
    names = ["one image, one prompt", "threads", "runs", "ms", "times faster", "next prompt, ms", "times faster"]
    names += ["not network", "peak, MB", "share", "logits differ"]
    parts = [head, table(names, [_row(entry) for entry in entries], markdown=markdown)]
    rearranged = [
        [entry["label"], harness.times(plain["whole"]), harness.times(plain["next"])]
        for entry in entries
        if (plain := entry["against_plain"])
    ]
    if rearranged:
        names = ["against the plain export in the same runtime", "one prompt", "next prompt"]
        parts.append(table(names, rearranged, markdown=markdown))
    return "\n\n".join([*parts, *harness.closing(found)])


def _row(entry: dict[str, Any]) -> list[str]:
    ratios = entry["against_pytorch"] or dict.fromkeys(("whole", "next", "memory"))
    seconds, peak, difference = entry["seconds"], entry["memory"].get("peak"), entry["largest_difference_of_a_logit"]
    return [
        entry["label"],
        str(entry["info"].get("threads") or ""),
        str(seconds["whole"]["count"]),
        harness.milliseconds(seconds["whole"]),
        harness.times(ratios["whole"]),
        harness.milliseconds(seconds["next"]),
        harness.times(ratios["next"]),
        f"{entry['share_outside_the_network']:.1%}",
        f"{peak / 1e6:.0f}" if peak else "",
        f"{ratios['memory']:.2f}" if ratios["memory"] else "",
        "" if difference is None else f"{difference:.2g}",
    ]


def compare(
    checkpoint: Path,
    bundles: list[Path],
    *,
    peers: tuple[str, ...] = PEERS,
    threads: int | None = None,
    runs: int = 50,
    seconds: float = 60.0,
    progress: Progress = lambda _: None,
) -> Comparison:
    """Measure everything in one run. A peer that cannot run is among the failures.

    Raises:
        OptionError: A peer is unknown.
        CrisEdgeError: A bundle cannot be read.
    """
    if unknown := sorted(set(peers) - set(PEERS)):
        raise OptionError(f"Unknown peer {', '.join(unknown)}; choose from {', '.join(PEERS)}.")
    threads = threads or physical_cores()
    entries: list[Entry] = []
    with tempfile.TemporaryDirectory(prefix="cris-edge-peers-") as temporary, Workers(progress) as pool:
        folder = Path(temporary)
        common = {"image": str(synthetic_image(folder)), "prompt": PROMPT}
        exported = _export(checkpoint, folder, peers, pool, progress)

        def add(name: str, label: str, entry: str, arguments: dict[str, Any], path: str | None = None) -> None:
            worker = pool.start(entry, {**common, **arguments}, label)
            if worker is None:
                return
            precision = str(worker.info["precision"])
            worker.label = label if label.endswith(precision) else f"{label} {precision}"
            # Where a runtime chooses float32 itself, that case has been added already.
            if (name, path, worker.label) in [(other.name, other.path, other.label) for other in entries]:
                pool.workers.remove(worker)
                worker.close()
            else:
                entries.append(Entry(name, worker.label, worker.info, LatencySamples(), path=path))

        for name in peers:
            for label, entry, arguments in _arguments(name, checkpoint, folder, threads, exported):
                add(name, label, entry, arguments)
        for path in bundles:
            manifest = Bundle.open(path).manifest
            for runtime in [name for name in manifest.runtimes if name in registry.available()]:
                for precision in ("auto", "float32"):
                    options = {"runtime": runtime, "precision": precision, "threads": threads, "cache_dir": None}
                    label = f"{manifest.name}, {runtime}"
                    add(OURS, label, "benchmarks.peers:BundlePeer", {"model": str(path), "options": options}, str(path))
        if entries:
            gathered = interleave(pool.workers, runs=runs, seconds=seconds, progress=progress)
            for measured, worker, samples in zip(entries, pool.workers, gathered, strict=True):
                measured.samples, measured.memory = samples, worker.ask("memory")
            _add_differences(entries, pool.workers)
        document = pool.document(
            checkpoint=checkpoint_record(checkpoint) if checkpoint.exists() else None,
            bundles=[bundle_record(path) for path in bundles],
        )
    return Comparison(entries, {name: plain["macs"] for name, plain in exported.items()}, document)


def _export(
    checkpoint: Path, folder: Path, peers: tuple[str, ...], pool: Workers, progress: Progress
) -> dict[str, dict[str, int]]:
    """Write the plain graphs that are needed; what the exporter returned for each, by peer."""
    exported: dict[str, dict[str, int]] = {}
    for name, correlation in PLAIN.items():
        if name not in peers:
            continue
        progress(f"exporting for {name}")
        try:
            with Worker("benchmarks.peers:Exporter", {"checkpoint": str(checkpoint)}, name) as worker:
                exported[name] = worker.ask("export", path=str(folder / f"{name}.onnx"), correlation=correlation)
        except CrisEdgeError as error:
            pool.failed(name, error)
    return exported


def _arguments(
    name: str, checkpoint: Path, folder: Path, threads: int, exported: dict[str, dict[str, int]]
) -> list[tuple[str, str, dict[str, Any]]]:
    """Label, entry point and arguments of each worker of a peer."""
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
    graph = {"graph": str(folder / f"{name}.onnx"), "runtime": runtime, "threads": threads}
    graph |= {key: exported[name][key] for key in ("input_size", "word_len")}
    precisions = ("auto", "float32") if runtime == "openvino" else ("auto",)
    label = f"plain export, {runtime}"
    return [(label, "benchmarks.peers:plain", {**graph, "precision": precision}) for precision in precisions]


def _add_differences(entries: list[Entry], workers: list[Worker]) -> None:
    """Check that all compute the same function: compare the logits of one image and one prompt with PyTorch's."""
    base = next((index for index, entry in enumerate(entries) if entry.name in EAGER), None)
    if base is None:
        return
    expected = np.array(workers[base].ask("logits"))
    for entry, worker in zip(entries, workers, strict=True):
        found = np.array(worker.ask("logits"))
        entry.difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else None


@click.command(help=__doc__)
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="A CRIS checkpoint.")
@click.option(
    "--bundle", "bundles", multiple=True, type=click.Path(path_type=Path), help="Exported from it; repeatable."
)
@click.option(
    "--peer", "peers", multiple=True, type=click.Choice(PEERS), default=PEERS, help="Repeatable.  [default: all]"
)
@harness.options(seconds=60.0)
def main(checkpoint: Path, bundles: tuple[Path, ...], output: Path | None, markdown: bool, **options: Any) -> None:
    """Run the command line."""
    harness.conclude(
        lambda: compare(checkpoint, list(bundles), progress=harness.progress, **options).to_dict(),
        to_text,
        output=output,
        markdown=markdown,
    )


if __name__ == "__main__":
    main()
