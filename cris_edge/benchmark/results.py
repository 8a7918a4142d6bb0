"""What a benchmark found: as JSON, as rows of CSV, and as tables for people."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
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
    """One bundle on one runtime, device and precision.

    Attributes:
        model: Name of the bundle.
        path: Of the bundle.
        digest: Of the bundle.
        weights: Precision in which the weights are stored.
        runtime: Its name.
        version: Of the runtime.
        device: That computed.
        device_name: What it calls itself.
        precision: That really ran.
        asked: Precision that was asked for.
        threads: Of the processor, or None where the runtime does not tell.
        disk: Bytes: "runtime" of what this runtime reads, "bundle" of the whole folder.
        macs: Multiply-accumulates of each graph, where the bundle tells.
        latency: Seconds: "whole" for one image and one sentence, "next" for another sentence about it, and each stage.
        throughput: Images per second of a stream with one sentence, with the hint "throughput".
        parallel: Images that were computed at the same time in it.
        first_start: Seconds from the start of a process to the first mask ("total"), without a cache, and its parts.
        later_start: The same with what an earlier start left in the cache.
        memory: Peak of resident memory in bytes, of processes that started first or later, and of a "running" one.
        accuracy: In percent, as `Scores.to_dict` gives it; None without labelled data.
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
        """Nothing measured yet; `info` is that of a `Segmenter`."""
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
        """Short, for people."""
        place = "" if self.device == "CPU" else f" {self.device}"
        return f"{self.model} {self.runtime}{place} {self.precision}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}

    def row(self) -> dict[str, Any]:
        """One line of CSV: the same columns for every case, empty where nothing was measured."""
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
    """Everything that was found.

    Attributes:
        machine: What ran it.
        settings: What was asked for.
        cases: What was measured.
        failures: What was asked for and could not be: "case", "error".
        notes: What was left out, and what makes the figures doubtful.
        load_before: Processes that wanted the processor, on average over the last minute; None where not told.
        load_after: The same; this benchmark is one of them.
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
        """For JSON."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        units = {
            "time": "seconds",
            "memory and disk": "bytes",
            "throughput": "images per second",
            "accuracy": "percent",
        }
        return {"created": plain.pop("created"), "units": units, **plain, "cases": [c.to_dict() for c in self.cases]}

    def to_csv(self) -> str:
        """One line a case, after a line of names."""
        rows = [case.row() for case in self.cases]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else ["model"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_text(self, markdown: bool = False) -> str:
        """Tables for people, for a terminal or for a page."""
        parts = ["\n".join(self._heading()), *(table(*rows, markdown=markdown) for rows in self._tables())]
        parts += [f"failed: {failure['case']}: {failure['error']}" for failure in self.failures]
        return "\n\n".join([*parts, *self.remarks()])

    def write(self, folder: Path) -> list[Path]:
        """Write `benchmark.json`, `.csv` and, where something was scored, `.svg`; returns the paths."""
        document = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        contents = {"benchmark.json": f"{document}\n", "benchmark.csv": self.to_csv()}
        picture = self.to_svg()
        if picture is not None:
            contents["benchmark.svg"] = picture
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            write_whole(folder / name, text)
        return [folder / name for name in contents]

    def to_svg(self) -> str | None:
        """Accuracy against latency; None where nothing was scored."""
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
        return draw(points, title=title, x_title="one image, one sentence: median, ms", y_title="mIoU, %")

    def remarks(self) -> list[str]:
        """What a reader of the figures has to know."""
        return [*self.notes, *busy(self.load_before)]

    def _heading(self) -> list[str]:
        told, image = self.machine, self.settings["image"]
        memory = f", {told['memory'] / 2**30:.1f} GiB" if told["memory"] else ""
        return [
            f"{told['processor']}, {told['cores']} cores ({told['physical_cores']} physical){memory}, {told['system']}",
            f"{', '.join(told['instruction_sets']) or 'instruction sets not told'}",
            f"cris-edge {told['cris_edge']}, Python {told['python']}, "
            f"{', '.join(dict.fromkeys(f'{case.runtime} {case.version}' for case in self.cases)) or 'no runtime'}",
            f"one image of {image['width']} x {image['height']}, one sentence; medians with their 95 % interval",
        ]

    def _tables(self) -> Iterable[tuple[list[str], list[list[str]]]]:
        timed = [case for case in self.cases if case.latency]
        if timed:
            names = [
                "latency, ms",
                "threads",
                "turns",
                "p50",
                "p90",
                "p99",
                "next sentence p50",
                "p90",
                "p99",
                "images/s",
            ]
            yield (
                names,
                [
                    [
                        case.label,
                        str(case.threads or ""),
                        str(case.latency["whole"].count),
                        *(text for stage in ("whole", "next") for text in _percentiles(case.latency[stage])),
                        f"{case.throughput.median:.1f} ({case.parallel} at a time)" if case.throughput else "",
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
                ["accuracy, %", "sentences", *keys],
                [
                    [case.label, str(case.accuracy["sentences"]), *(f"{case.accuracy[key]:.2f}" for key in keys)]
                    for case in scored
                    if case.accuracy
                ],
            )


def device() -> dict[str, Any]:
    """This device, and what is not a runtime."""
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
    except metadata.PackageNotFoundError:  # it may come from a distribution of another name
        return None


def load_average() -> float | None:
    """Processes that wanted the processor over the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def busy(load: float | None) -> list[str]:
    """A sentence where other programs were using the processor before a measurement began; else none."""
    if load is None or load <= 0.3:
        return []
    return [
        f"Other programs were using the processor (load {load:.1f} before the first measurement): the figures are "
        f"worse than this device's, and less sure."
    ]


def table(names: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[place]) for row in (names, *rows)) for place in range(len(names))]
    lines = [
        [text.rjust(widths[place]) if place else text.ljust(widths[0]) for place, text in enumerate(row)]
        for row in (names, *rows)
    ]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in lines)
    rule = ["-" * width if place == 0 else "-" * max(1, width - 1) + ":" for place, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def _percentiles(spread: Spread) -> list[str]:
    half = 1e3 * (spread.high - spread.low) / 2
    return [f"{1e3 * spread.median:.2f} ±{half:.2f}", f"{1e3 * spread.p90:.2f}", f"{1e3 * spread.p99:.2f}"]


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f}"


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return value
