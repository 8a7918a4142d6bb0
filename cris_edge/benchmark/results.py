"""Benchmark results as JSON, CSV, text tables and a plot."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from cris_edge import __version__
from cris_edge.benchmark.scatter import Point, draw
from cris_edge.benchmark.spread import Spread
from cris_edge.bundle import GRAPHS, MANIFEST, Bundle
from cris_edge.device.memory import memory_bytes
from cris_edge.device.processor import (
    instruction_sets,
    physical_cores,
    platform_name,
    processor_name,
    usable_cores,
)
from cris_edge.files import write_whole

STAGES = ("load", "preprocess", "image_encoder", "tokenize", "text_encoder", "mask_decoder", "postprocess")
PACKAGES = ("numpy", "opencv-python-headless", "tokenizers", "onnxruntime", "openvino", "torch")
PRECISIONS = ("Pr@50", "Pr@60", "Pr@70", "Pr@80", "Pr@90")


@dataclass
class CaseReport:
    """Results of one bundle on one runtime, device and precision.

    Attributes:
        model: Name of the bundle.
        path: Folder of the bundle.
        digest: Digest of the bundle.
        weights: Precision in which the weights are stored.
        runtime: Name of the runtime.
        version: Version of the runtime.
        device: Device that computed.
        device_name: The device's own name.
        precision: Precision in effect.
        asked: Requested precision.
        threads: CPU threads, or None if unknown.
        disk: Bytes that this runtime reads ("runtime"), and of the whole folder ("bundle").
        macs: Multiply-accumulates of each graph, or None if unknown.
        latency: Seconds of an image and a prompt ("whole"), of another prompt ("next"), and of each stage.
        throughput: Images per second of a stream with one prompt and the hint "throughput".
        parallel: Images computed in parallel in that stream.
        first_start: Seconds from process start to the first mask ("total") and their parts, without a cache.
        later_start: The same with the cache that an earlier start filled.
        memory: Peak resident memory in bytes after a "first_start" and a "later_start", and of a "running" process.
        accuracy: In percent, from `Scores.to_dict`; None without labelled data.
    """

    model: str
    path: str
    digest: str
    weights: str
    runtime: str
    version: str
    device: str
    device_name: str
    precision: str
    asked: str
    threads: int | None
    disk: dict[str, int]
    macs: dict[str, int | None]
    latency: Mapping[str, Spread] = field(default_factory=dict)
    throughput: Spread | None = None
    parallel: int | None = None
    first_start: Mapping[str, Spread] = field(default_factory=dict)
    later_start: Mapping[str, Spread] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    accuracy: dict[str, Any] | None = None

    @classmethod
    def of(cls, bundle: Bundle, runtime: str, info: Mapping[str, Any], asked: str) -> CaseReport:
        """Create an empty report; `info` is `Segmenter.info` as a dict."""
        manifest = bundle.manifest
        needed = {*manifest.runtimes[runtime].values(), "tokenizer.json"}
        needed |= {f"{name[:-4]}.bin" for name in needed if name.endswith(".xml")}
        own = (bundle.path / MANIFEST).stat().st_size
        sizes = {name: record.size for name, record in manifest.files.items()}
        return cls(
            model=manifest.name,
            path=str(bundle.path),
            digest=bundle.digest,
            weights=manifest.precision,
            runtime=runtime,
            asked=asked,
            disk={"runtime": own + sum(sizes[name] for name in needed), "bundle": own + sum(sizes.values())},
            macs={name: manifest.graphs[name].macs for name in GRAPHS},
            **{key: info[key] for key in ("version", "device", "device_name", "precision", "threads")},
        )

    @property
    def label(self) -> str:
        """Short name for tables and messages."""
        device = "" if self.device == "CPU" else f" {self.device}"
        return f"{self.model} {self.runtime}{device} {self.precision}"

    def row(self) -> dict[str, Any]:
        """Return a CSV row: the same columns for every case, None where nothing was measured."""
        row: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("model", "weights", "runtime", "version", "device", "precision", "asked", "threads")
        }
        for stage in ("whole", "next"):
            spread = self.latency.get(stage)
            for key in ("median", "low", "high", "p90", "p99"):
                name = "p50" if key == "median" else key
                row[f"{stage}_{name}_ms"] = 1e3 * getattr(spread, key) if spread else None
        row["turns"] = self.latency["whole"].count if self.latency else None
        for stage in STAGES:
            row[f"{stage}_p50_ms"] = 1e3 * self.latency[stage].median if stage in self.latency else None
        row["images_per_second"] = self.throughput.median if self.throughput else None
        row["first_start_s"] = self.first_start["total"].median if self.first_start else None
        row["later_start_s"] = self.later_start["total"].median if self.later_start else None
        for kind in ("first_start", "later_start", "running"):
            row[f"memory_{kind}_bytes"] = self.memory.get(kind)
        row |= {f"disk_{key}_bytes": value for key, value in self.disk.items()}
        return row | {key: (self.accuracy or {}).get(key) for key in ("sentences", "mIoU", "oIoU", *PRECISIONS)}


@dataclass
class Report:
    """Results of a benchmark.

    Attributes:
        machine: The machine and its software.
        settings: Requested settings.
        cases: Measured cases.
        failures: Cases that failed: "case", "error".
        notes: What was skipped.
        load_before: Load average of the last minute; None if unknown.
        load_after: The same after the benchmark, which contributes to it.
    """

    machine: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    cases: list[CaseReport] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    load_before: float | None = None
    load_after: float | None = None
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def to_dict(self) -> dict[str, Any]:
        """Return the results for JSON."""
        plain = asdict(self)
        units = {
            "time": "seconds",
            "memory and disk": "bytes",
            "throughput": "images per second",
            "accuracy": "percent",
        }
        return {"created": plain.pop("created"), "units": units, **plain}

    def to_csv(self) -> str:
        """Return one row per case, after a header."""
        rows = [case.row() for case in self.cases]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else ["model"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_text(self, markdown: bool = False) -> str:
        """Return tables, aligned for a terminal or as Markdown."""
        parts = ["\n".join(self._heading()), *(table(*rows, markdown=markdown) for rows in self._tables())]
        parts += [f"failed: {failure['case']}: {failure['error']}" for failure in self.failures]
        return "\n\n".join([*parts, *self.remarks()])

    def write(self, folder: Path) -> list[Path]:
        """Write `benchmark.json`, `.csv` and, if accuracy was measured, `.svg`; return the paths."""
        document = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        contents = {"benchmark.json": f"{document}\n", "benchmark.csv": self.to_csv()}
        if (plot := self.to_svg()) is not None:
            contents["benchmark.svg"] = plot
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            write_whole(folder / name, text)
        return [folder / name for name in contents]

    def to_svg(self) -> str | None:
        """Plot accuracy against latency; None if no accuracy was measured."""
        points = [
            Point(
                label=case.label,
                group=case.runtime,
                x=1e3 * whole.median,
                low=1e3 * whole.low,
                high=1e3 * whole.high,
                y=case.accuracy["mIoU"],
            )
            for case in self.cases
            if case.accuracy and (whole := case.latency.get("whole"))
        ]
        if not points:
            return None
        title = f"Accuracy against latency, {self.machine['processor']}"
        return draw(points, title=title, x_title="one image, one prompt: median, ms", y_title="mIoU, %")

    def remarks(self) -> list[str]:
        """Return notes and warnings about the figures."""
        return [*self.notes, *busy(self.load_before)]

    def _heading(self) -> list[str]:
        facts, image = self.machine, self.settings["image"]
        memory = f", {facts['memory'] / 2**30:.1f} GiB" if facts["memory"] else ""
        runtimes = dict.fromkeys(f"{case.runtime} {case.version}" for case in self.cases)
        return [
            f"{facts['processor']}, {facts['cores']} cores ({facts['physical_cores']} physical){memory}, "
            f"{facts['system']}",
            ", ".join(facts["instruction_sets"]) or "instruction sets unknown",
            f"cris-edge {facts['cris_edge']}, Python {facts['python']}, {', '.join(runtimes) or 'no runtime'}",
            f"one image of {image['width']} x {image['height']}, one prompt; medians with 95 % confidence intervals",
        ]

    def _tables(self) -> Iterable[tuple[list[str], list[list[str]]]]:
        timed = [case for case in self.cases if case.latency]
        if timed:
            percentiles = ["p50", "p90", "p99", "next prompt p50", "p90", "p99"]
            yield (
                ["latency, ms", "threads", "iterations", *percentiles, "images/s"],
                [
                    [
                        case.label,
                        str(case.threads or ""),
                        str(case.latency["whole"].count),
                        *(text for stage in ("whole", "next") for text in _percentiles(case.latency[stage])),
                        f"{case.throughput.median:.1f} ({case.parallel} in parallel)" if case.throughput else "",
                    ]
                    for case in timed
                ],
            )
            stages = [stage for stage in STAGES if all(stage in case.latency for case in timed)]
            yield (
                ["stage, ms", *stages],
                [[case.label, *(f"{1e3 * case.latency[stage].median:.2f}" for stage in stages)] for case in timed],
            )
        names = ["start, s; memory and disk, MB", "first start", "later start", "memory: first start", "later start"]
        yield (
            [*names, "running", "disk"],
            [
                [
                    case.label,
                    *(
                        f"{spread['total'].median:.2f} ({spread['total'].low:.2f}-{spread['total'].high:.2f})"
                        if spread
                        else ""
                        for spread in (case.first_start, case.later_start)
                    ),
                    *(_megabytes(case.memory.get(kind)) for kind in ("first_start", "later_start", "running")),
                    _megabytes(case.disk["runtime"]),
                ]
                for case in self.cases
            ],
        )
        scored = [case for case in self.cases if case.accuracy]
        if scored:
            keys = ("mIoU", "oIoU", *PRECISIONS)
            yield (
                ["accuracy, %", "prompts", *keys],
                [
                    [case.label, str(case.accuracy["sentences"]), *(f"{case.accuracy[key]:.2f}" for key in keys)]
                    for case in scored
                    if case.accuracy
                ],
            )


def device() -> dict[str, Any]:
    """Return facts about this machine and its software."""
    return {
        "processor": processor_name(),
        "instruction_sets": instruction_sets(),
        "cores": usable_cores(),
        "physical_cores": physical_cores(),
        "memory": memory_bytes(),
        "system": platform_name(),
        "python": platform.python_version(),
        "cris_edge": __version__,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # or it is installed under another distribution name
        return None


def load_average() -> float | None:
    """Return the load average of the last minute; None if unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def busy(load: float | None) -> list[str]:
    """Return a warning if other programs were using the CPU before a measurement, else nothing."""
    if load is None or load <= 0.3:
        return []
    return [
        f"Other programs were using the CPU (load {load:.1f} before the first measurement), so the figures are slower "
        f"and less certain than this machine's best."
    ]


def table(names: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Format a table whose first column is left-aligned and whose other columns are right-aligned."""
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = [
        [text.rjust(widths[column]) if column else text.ljust(widths[0]) for column, text in enumerate(row)]
        for row in (names, *rows)
    ]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in lines)
    rule = ["-" * width if column == 0 else "-" * max(1, width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def _percentiles(spread: Spread) -> list[str]:
    half = 1e3 * (spread.high - spread.low) / 2
    return [f"{1e3 * spread.median:.2f} ±{half:.2f}", f"{1e3 * spread.p90:.2f}", f"{1e3 * spread.p99:.2f}"]


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f}"
