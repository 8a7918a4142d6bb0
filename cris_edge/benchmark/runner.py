"""Measure latency, throughput, start-up time, memory, size and accuracy of bundles on this machine.

Method:

- Each case (bundle, runtime, device, precision) runs in its own process and uses `Segmenter` as an app does.
- Cases are interleaved: in each round, every case measures a block of iterations, in shuffled order. An iteration is
  one 640 x 480 image with a new prompt, then another prompt on the same image.
- Rounds continue until the confidence interval of every median is narrow enough or time is up; the interval is reported
  either way.
- A first start has no compiled graphs cached, and the bundle's files are dropped from the page cache where the system
  allows it (Linux); the libraries' files stay cached. A later start reuses what the first one cached.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cris_edge.backends import registry
from cris_edge.benchmark.results import CaseReport, Report, device, load_average
from cris_edge.benchmark.rounds import LatencySamples, Progress, WorkerFailure, interleave
from cris_edge.benchmark.spread import Spread
from cris_edge.benchmark.worker import Worker, start
from cris_edge.bundle import Bundle, default_model
from cris_edge.device.caches import cache_folder
from cris_edge.errors import CrisEdgeError, OptionError, RuntimeFailure, RuntimeMissingError
from cris_edge.metrics import Scores

PROMPT = "the red one on the left"
WIDTH, HEIGHT = 640, 480

_SUBJECT = "cris_edge.benchmark.worker:SegmenterSubject"
_SAMPLES = 50  # scored per request
_STREAMS = 5  # throughput rounds


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, and for how long.

    Attributes:
        models: Bundle folders; the default model if empty.
        runtimes: Runtime names; if empty, all installed ones that a bundle supports.
        devices: Device names, as the runtimes use them.
        precisions: Precisions of `Segmenter`. Those that resolve to the same one on a device are measured once.
        threads: CPU threads; None leaves the choice to the runtime.
        data: Labelled data to score on, or None.
        image: Image for timing; None for a synthetic one of 640 x 480 pixels.
        runs: Minimum number of latency iterations.
        seconds: Time limit for the latency of each case, once it has `runs` iterations.
        uncertainty: Relative half-width of the median's confidence interval at which to stop.
        starts: Number of first and of later process starts; 0 skips them.
        stream_seconds: Time for the throughput of each case; 0 skips it.
    """

    models: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("CPU",)
    precisions: tuple[str, ...] = ("auto", "float32")
    threads: int | None = None
    data: Path | None = None
    image: Path | None = None
    runs: int = 100
    seconds: float = 60.0
    uncertainty: float = 0.02
    starts: int = 5
    stream_seconds: float = 10.0


@dataclass
class _Case:
    """One combination that runs on this machine, and its results."""

    bundle: Bundle
    options: dict[str, Any]
    report: CaseReport
    first: list[dict[str, Any]] = field(default_factory=list)
    later: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> str:
        return str(self.bundle.path)


def benchmark(settings: Settings, progress: Progress = lambda _: None) -> Report:
    """Measure every combination; `progress` receives one line per step.

    Cases that fail are listed in the report's failures; runtimes that were not requested and are not installed, in its
    notes.

    Raises:
        BundleError: A bundle is invalid.
        InputError: The labelled data or the image cannot be read, or a setting is out of range.
        RuntimeMissingError: No runtime of the bundles is installed.
    """
    _check(settings)
    bundles = {bundle.digest: bundle for bundle in map(Bundle.open, settings.models or (str(default_model()),))}
    report = Report(machine=device(), load_before=load_average())
    with _scratch() as folder:
        image = _image(settings.image, folder)
        report.settings = {
            "image": {"source": str(settings.image or "drawn"), "width": image[1], "height": image[2]},
            "sentence": PROMPT,
            **{key: getattr(settings, key) for key in ("runs", "seconds", "uncertainty", "starts", "stream_seconds")},
            "data": str(settings.data) if settings.data else None,
            "files_dropped_from_memory": hasattr(os, "posix_fadvise"),
        }
        cases = _cases(settings, bundles.values(), report, str(image[0]), folder, progress)
        if not cases and not report.failures:
            raise RuntimeMissingError(f"Nothing to measure: {'; '.join(report.notes)}.")
        if settings.starts:
            _measure_starts(cases, settings, report, str(image[0]), folder, progress)
        _measure_latency(cases, settings, report, str(image[0]), progress)
        if settings.stream_seconds:
            _measure_throughput(cases, settings, report, str(image[0]), progress)
    report.cases = [case.report for case in cases]
    report.load_after = load_average()
    return report


def _check(settings: Settings) -> None:
    if settings.runs < 1 or settings.starts < 0 or settings.seconds < 0 or settings.stream_seconds < 0:
        raise OptionError(
            f"Got runs={settings.runs}, starts={settings.starts} and seconds={settings.seconds}; expected at least one "
            f"run and no negative number."
        )
    if settings.data is not None:
        from cris_edge.image.labelled import read_samples

        read_samples(settings.data)  # fail before spending an hour on measurements


def _cases(
    settings: Settings, bundles: Iterable[Bundle], report: Report, image: str, folder: Path, progress: Progress
) -> list[_Case]:
    """Find the combinations that run on this machine, by starting each once, which also fills Python's caches."""
    found: list[_Case] = []
    for bundle in bundles:
        for runtime in settings.runtimes or bundle.manifest.runtimes:
            if note := "" if settings.runtimes else _why_not(runtime, settings.devices):
                report.notes += [note] * (note not in report.notes)
                continue
            for device_name in settings.devices:
                ran: set[tuple[Any, ...]] = set()
                for precision in settings.precisions:
                    options = {
                        "runtime": runtime,
                        "device": device_name,
                        "precision": precision,
                        "threads": settings.threads,
                    }
                    name = f"{bundle.manifest.name} on {runtime} {device_name} {precision}"
                    progress(f"trying {name}")
                    try:
                        first = start(str(bundle.path), {**options, "cache_dir": str(folder / "tried")}, image, PROMPT)
                    except CrisEdgeError as error:
                        report.failures.append({"case": name, "error": str(error)})
                        continue
                    info = first["info"]
                    if (kind := (info["device"], info["precision"])) not in ran:
                        ran.add(kind)
                        found.append(_Case(bundle, options, CaseReport.of(bundle, runtime, info, precision)))
    return found


def _why_not(runtime: str, devices: tuple[str, ...]) -> str:
    """Why a runtime that was not requested is not measured; empty if it is."""
    if not registry.is_available(runtime):
        return f"{runtime} is not installed; {registry.how_to_install(runtime)}"
    if runtime == "qnn" and devices == ("CPU",):
        return f"{runtime} runs only on an NPU; measure it with --runtime {runtime} --device NPU"
    return ""


def _measure_starts(
    cases: list[_Case], settings: Settings, report: Report, image: str, folder: Path, progress: Progress
) -> None:
    for number in range(settings.starts):
        for index, case in enumerate(cases):
            progress(f"start {number + 1} of {settings.starts}: {case.report.label}")
            cache = folder / f"cache-{index}"
            shutil.rmtree(cache, ignore_errors=True)
            _drop_from_memory(case.bundle)
            options = {**case.options, "cache_dir": str(cache)}
            with _noted(report, f"{case.report.label}, start"):
                case.first.append(start(case.model, options, image, PROMPT))
                case.later.append(start(case.model, options, image, PROMPT))
    for index, case in enumerate(cases):
        shutil.rmtree(folder / f"cache-{index}", ignore_errors=True)
        for kind, starts in (("first_start", case.first), ("later_start", case.later)):
            if not starts:
                continue
            setattr(
                case.report,
                kind,
                {part: Spread.of([[run[part]] for run in starts]) for part in ("total", "import", "load", "mask")},
            )
            peaks = [run["memory"] for run in starts if run["memory"] is not None]
            case.report.memory[kind] = max(peaks) if peaks else None


def _measure_latency(cases: list[_Case], settings: Settings, report: Report, image: str, progress: Progress) -> None:
    with _workers(cases, "latency", image, report, progress) as workers:
        samples: list[LatencySamples] = []
        while workers and not samples:
            try:
                samples = interleave(
                    list(workers.values()),
                    runs=settings.runs,
                    seconds=settings.seconds,
                    uncertainty=settings.uncertainty,
                    progress=progress,
                )
            except WorkerFailure as error:  # restart without it, so that the others share the same rounds
                index = list(workers)[error.index]
                report.failures.append({"case": f"{cases[index].report.label}, latency", "error": str(error)})
                workers.pop(index).close()
        for (index, worker), measured in zip(workers.items(), samples, strict=True):
            cases[index].report.latency = measured.spreads()
            cases[index].report.memory["running"] = worker.ask("memory")
        if settings.data is None:
            return
        for index, worker in workers.items():
            with _noted(report, f"{cases[index].report.label}, accuracy"):
                cases[index].report.accuracy = _score(worker, settings.data, progress)


def _measure_throughput(cases: list[_Case], settings: Settings, report: Report, image: str, progress: Progress) -> None:
    with _workers(cases, "throughput", image, report, progress) as workers:
        rates: dict[int, list[float]] = {index: [] for index in workers}
        for number in range(_STREAMS + 1):
            for index, worker in workers.items():
                progress(f"throughput: {worker.label}")
                with _noted(report, f"{worker.label}, throughput"):
                    rate = worker.ask("stream", seconds=settings.stream_seconds / (_STREAMS + 1))
                    if number:  # the first round creates the runtime's requests
                        rates[index].append(rate)
        for index, values in rates.items():
            if len(values) == _STREAMS:
                cases[index].report.throughput = Spread.of([[value] for value in values])
                cases[index].report.parallel = int(workers[index].info["parallel"])


@contextmanager
def _noted(report: Report, case: str) -> Iterator[None]:
    """Add an error to the report's failures, once per case."""
    try:
        yield
    except RuntimeFailure as error:
        if case not in [failure["case"] for failure in report.failures]:
            report.failures.append({"case": case, "error": str(error)})


@contextmanager
def _workers(
    cases: list[_Case], hint: str, image: str, report: Report, progress: Progress
) -> Iterator[dict[int, Worker]]:
    """Start a worker for each case, by the case's index; those that cannot start are reported."""
    with ExitStack() as stack:
        workers: dict[int, Worker] = {}
        for index, case in enumerate(cases):
            progress(f"loading {case.report.label}")
            # No cache: with one, a runtime maps its file instead of allocating memory. The starts measure caches.
            arguments = {
                "model": case.model,
                "options": {**case.options, "hint": hint, "cache_dir": None},
                "image": image,
                "prompt": PROMPT,
            }
            try:
                workers[index] = stack.enter_context(Worker(_SUBJECT, arguments, case.report.label))
            except CrisEdgeError as error:
                report.failures.append({"case": f"{case.report.label}, {hint}", "error": str(error)})
        yield workers


def _score(worker: Worker, data: Path, progress: Progress) -> dict[str, Any]:
    from cris_edge.image.labelled import read_samples

    total, scores = len(read_samples(data, check_files=False)), Scores()
    for first in range(0, total, _SAMPLES):
        progress(f"accuracy: {worker.label}, sample {first} of {total}")
        scores.merge([Scores(**worker.ask("score", data=str(data), first=first, count=_SAMPLES))])
    figures = scores.to_dict()
    return {"data": str(data), "images": total, "sentences": figures.pop("samples"), **figures}


def synthetic_image(folder: Path) -> Path:
    """Write a 640 x 480 JPEG into `folder`, the same on every machine, and return its path."""
    import cv2
    import numpy as np

    # Noise at several scales: values vary as in a photo, and a JPEG decoder has as much to do.
    noise, image = np.random.default_rng(0), np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for side in (4, 16, 64, 256):
        coarse = noise.normal(0, 1, (side * 3 // 4, side, 3)).astype(np.float32)
        image += cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) * np.float32(60 / side**0.5)
    path = folder / "synthetic.jpg"
    cv2.imwrite(str(path), np.clip(image + 128, 0, 255).astype(np.uint8))
    return path


def _image(given: Path | None, folder: Path) -> tuple[Path, int, int]:
    """Return the image file for timing, its width and its height."""
    from cris_edge.image import load_image

    if given is None:
        return synthetic_image(folder), WIDTH, HEIGHT
    height, width, _ = load_image(given).shape
    return given.absolute(), width, height


def _drop_from_memory(bundle: Bundle) -> None:
    """Drop the bundle's files from the page cache, so that the next reader loads them from disk."""
    for name in bundle.manifest.files if hasattr(os, "posix_fadvise") else ():
        with suppress(OSError):
            handle = os.open(bundle.file(name), os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


@contextmanager
def _scratch() -> Iterator[Path]:
    """Create a temporary folder where caches are: temporary folders are often in memory, and a cache is not."""
    parent = cache_folder()
    try:
        if parent is None:
            raise OSError("the home folder is unknown")
        parent.mkdir(parents=True, exist_ok=True)
        holder = tempfile.TemporaryDirectory(prefix="benchmark-", dir=parent)
    except OSError:
        holder = tempfile.TemporaryDirectory(prefix="cris-edge-benchmark-")
    with holder as folder:
        yield Path(folder).resolve()
