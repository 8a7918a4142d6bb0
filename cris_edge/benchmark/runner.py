"""Benchmark: latency, throughput, start, memory, size and accuracy of bundles on this device.

How it is measured:

- Each case (bundle, runtime, device, precision) is a process of its own, and does what an app does through `Segmenter`.
- Cases are interleaved: in each round each case, in changing order, measures a block of turns. A turn is one image of
  640 x 480 pixels with a sentence not asked before, then another sentence about the same image.
- Rounds go on until the interval of each median is narrow enough, or the time is up; the interval is told either way.
- A first start finds no compiled graphs, and the bundle's files not in memory where the system lets them be dropped
  (Linux does). The libraries' files are in memory. A later start finds what the first one left.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
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
_SAMPLES = 50  # scored at a time
_STREAMS = 5  # rounds of throughput


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, and for how long.

    Attributes:
        models: Folders of bundles; the embedded one where there is none.
        runtimes: By name; where there is none, all that are installed and that a bundle holds.
        devices: As the runtimes name them.
        precisions: As `Segmenter` takes them. Where two come to the same on a device, one is measured.
        threads: Of the processor; None leaves it to the runtime.
        data: Labelled data to score on, or None.
        image: To time with; a drawn one of 640 x 480 where it is None.
        runs: Iterations at least.
        seconds: For each case's latency and next sentence, at most, once it has `runs` turns.
        uncertainty: That is narrow enough: half the interval of a median, as a share of it.
        starts: Of a process, first and later ones each; 0 leaves them out.
        stream_seconds: For a case's throughput; 0 leaves it out.
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
    """One combination that runs here; what was found of it goes into `report`."""

    bundle: Bundle
    options: dict[str, Any]
    report: CaseReport
    first: list[dict[str, Any]] = field(default_factory=list)
    later: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> str:
        return str(self.bundle.path)


def benchmark(settings: Settings, progress: Progress = lambda _: None) -> Report:
    """Measure; `progress` is told what is done, a line each.

    A case that fails is among the report's failures; a runtime that was not asked for and is not installed is among
    its notes.

    Raises:
        BundleError: A bundle is not whole.
        InputError: The labelled data or the image cannot be read, or a number makes no sense.
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
            raise RuntimeMissingError(f"There is nothing to measure: {'; '.join(report.notes)}.")
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
            f"runs={settings.runs}, starts={settings.starts} and seconds={settings.seconds} were given; expected at "
            f"least one run, and no negative number."
        )
    if settings.data is not None:
        from cris_edge.image.labelled import read_samples

        read_samples(settings.data)  # before an hour is spent


def _cases(
    settings: Settings, bundles: Sequence[Bundle] | Any, report: Report, image: str, folder: Path, progress: Progress
) -> list[_Case]:
    """The combinations that run here. Finding out is a start that does not count: it fills what Python keeps."""
    found: list[_Case] = []
    for bundle in bundles:
        for runtime in settings.runtimes or bundle.manifest.runtimes:
            if not settings.runtimes and not registry.is_available(runtime):
                note = f"{runtime} is not installed; {registry.how_to_install(runtime)}"
                report.notes += [note] * (note not in report.notes)
                continue
            if not settings.runtimes and runtime == "qnn" and settings.devices == ("CPU",):
                note = f"{runtime} runs on an NPU alone; measure it with --runtime {runtime} --device NPU"
                report.notes += [note] * (note not in report.notes)
                continue
            for place in settings.devices:
                ran: set[tuple[Any, ...]] = set()
                for precision in settings.precisions:
                    options = {"runtime": runtime, "device": place, "precision": precision, "threads": settings.threads}
                    name = f"{bundle.manifest.name} on {runtime} {place} {precision}"
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
        turns: list[LatencySamples] = []
        while workers and not turns:
            try:
                turns = interleave(
                    list(workers.values()),
                    runs=settings.runs,
                    seconds=settings.seconds,
                    uncertainty=settings.uncertainty,
                    progress=progress,
                )
            except WorkerFailure as error:  # the others begin again without it, so that all have the same rounds
                index = list(workers)[error.place]
                report.failures.append({"case": f"{cases[index].report.label}, latency", "error": str(error)})
                workers.pop(index).close()
        for (index, worker), measured in zip(workers.items(), turns, strict=True):
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
                    if number:  # the first one makes the requests of all streams
                        rates[index].append(rate)
        for index, values in rates.items():
            if len(values) == _STREAMS:
                cases[index].report.throughput = Spread.of([[value] for value in values])
                cases[index].report.parallel = int(workers[index].info["parallel"])


@contextmanager
def _noted(report: Report, case: str) -> Iterator[None]:
    """Turn an error into one of the report's failures, told once."""
    try:
        yield
    except RuntimeFailure as error:
        if case not in [failure["case"] for failure in report.failures]:
            report.failures.append({"case": case, "error": str(error)})


@contextmanager
def _workers(
    cases: list[_Case], hint: str, image: str, report: Report, progress: Progress
) -> Iterator[dict[int, Worker]]:
    """A worker for each case that can have one, by the case's place."""
    with ExitStack() as stack:
        workers: dict[int, Worker] = {}
        for index, case in enumerate(cases):
            progress(f"loading {case.report.label}")
            # A cache would have the runtime map its file instead of what an app without one has; starts measure that.
            arguments = {
                "model": case.model,
                "options": {**case.options, "hint": hint, "cache_dir": None},
                "image": image,
                "sentence": PROMPT,
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
    """Write a JPEG of 640 x 480 into `folder`, the same everywhere; returns its path."""
    import cv2
    import numpy as np

    # Blots of many sizes: values vary as a photo's do, and a JPEG decoder has as much to do.
    noise, picture = np.random.default_rng(0), np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for side in (4, 16, 64, 256):
        coarse = noise.normal(0, 1, (side * 3 // 4, side, 3)).astype(np.float32)
        picture += cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) * np.float32(60 / side**0.5)
    path = folder / "drawn.jpg"
    cv2.imwrite(str(path), np.clip(picture + 128, 0, 255).astype(np.uint8))
    return path


def _image(given: Path | None, folder: Path) -> tuple[Path, int, int]:
    """The file to time with, its width and its height."""
    from cris_edge.image import load_image

    if given is None:
        return synthetic_image(folder), WIDTH, HEIGHT
    height, width, _ = load_image(given).shape
    return given.absolute(), width, height


def _drop_from_memory(bundle: Bundle) -> None:
    """Have the next reader fetch the bundle's files from the disk."""
    for name in bundle.manifest.files if hasattr(os, "posix_fadvise") else ():
        with suppress(OSError):
            handle = os.open(bundle.file(name), os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder where caches really lie: temporary folders are often in memory, and a cache is not."""
    parent: Path | None = cache_folder()
    try:
        assert parent is not None
        parent.mkdir(parents=True, exist_ok=True)
        holder = tempfile.TemporaryDirectory(prefix="benchmark-", dir=parent)
    except OSError:
        holder = tempfile.TemporaryDirectory(prefix="cris-edge-benchmark-")
    with holder as folder:
        yield Path(folder).resolve()
