"""Verification: a bundle's files are intact, and its outputs on this machine match PyTorch's at export."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cris_edge.backends import registry
from cris_edge.bundle import Bundle, Golden
from cris_edge.errors import CrisEdgeError

if TYPE_CHECKING:
    import os

    import numpy as np
    from numpy.typing import NDArray

    from cris_edge.segmenter import Precision

PASSED, FAILED, NOT_CHECKED = "passed", "failed", "not checked"
_EMULATED = 5_000_000_000  # multiply-accumulates per pair that an NPU's emulator computes within a minute
_FLOAT32_TOLERANCE = 1e-3  # absolute, of logits: the limit of every export


@dataclass(frozen=True)
class Check:
    """Result of one runtime at one precision.

    Attributes:
        runtime: Name of the runtime.
        asked: Requested precision, "float32" or "auto".
        outcome: "passed", "failed" or "not checked".
        message: Why it did not pass, or a remark.
        precision: Precision in effect.
        max_abs_diff: Largest absolute difference of the logits from PyTorch's.
        tolerance: Tolerance that the bundle states for this runtime and precision.
        mask_iou: Smallest IoU of the masks from both logits at the bundle's threshold.
        accuracy: Mean IoU with the ground truth of the golden pairs in percent, on this machine and in PyTorch; None if
            the bundle has no ground truth. Too few pairs to measure the model; it only compares the two.
    """

    runtime: str
    asked: str
    outcome: str
    message: str = ""
    precision: str = ""
    max_abs_diff: float | None = None
    tolerance: float | None = None
    mask_iou: float | None = None
    accuracy: tuple[float, float] | None = None


@dataclass(frozen=True)
class Report:
    """Result of a verification.

    Attributes:
        path: Folder of the bundle.
        name: Name of the model.
        files: Number of files, all of which match their hashes.
        size: Total size of the files in bytes.
        pairs: Number of golden pairs.
        checks: Results of every runtime of the bundle.
    """

    path: Path
    name: str
    files: int
    size: int
    pairs: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether at least one check passed and none failed."""
        outcomes = {check.outcome for check in self.checks}
        return PASSED in outcomes and FAILED not in outcomes

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return {**asdict(self), "path": str(self.path), "passed": self.passed}


def verify(path: str | os.PathLike[str]) -> Report:
    """Check hashes and shapes, and compare the golden outputs in every installed runtime of the bundle.

    Each runtime runs with float32 and with its own choice of precision, on the CPU, without a cache. Graphs compiled
    for an NPU run there, or in its emulator with one pair, if the model is small enough.

    Raises:
        BundleError: The bundle is invalid or has no golden pairs.
    """
    bundle = Bundle.open(path, thorough=True)
    golden = bundle.golden()
    checks: list[Check] = []
    for runtime in bundle.manifest.runtimes:
        if registry.is_available(runtime):
            checks += _check_runtime(bundle, golden, runtime)
        else:
            checks.append(
                Check(runtime, "auto", NOT_CHECKED, f"it is not installed; {registry.how_to_install(runtime)}")
            )
    files = bundle.manifest.files
    return Report(
        path=bundle.path,
        name=bundle.manifest.name,
        files=len(files),
        size=sum(file.size for file in files.values()),
        pairs=len(golden.images),
        checks=tuple(checks),
    )


def _check_runtime(bundle: Bundle, golden: Golden, runtime: str) -> list[Check]:
    if runtime == "qnn":
        return [_check_npu(bundle, golden, runtime)]
    checks: list[Check] = []
    requested: tuple[Precision, ...] = ("float32", "auto")
    for asked in requested:
        check = _check(bundle, golden, runtime, asked, {check.precision for check in checks})
        if check is not None:
            checks.append(check)
    return checks


def _check_npu(bundle: Bundle, golden: Golden, runtime: str) -> Check:
    """Run the golden pairs on the NPU, or the first one in its emulator."""
    from cris_edge.backends import qnn

    try:
        devices = [device.name for device in qnn.describe().devices]
    except CrisEdgeError as error:
        return Check(runtime, "auto", FAILED, str(error))
    if not devices:
        return Check(runtime, "auto", NOT_CHECKED, "this machine has no NPU, and there is no emulator for its CPU")
    device = devices[0]
    if device == qnn.EMULATOR:
        work = sum(graph.macs or 0 for graph in bundle.manifest.graphs.values())
        if work > _EMULATED:
            why = f"there is no NPU, and the emulator would take minutes for {work / 1e9:.0f} GMAC"
            return Check(runtime, "auto", NOT_CHECKED, why)
        golden = replace(
            golden,
            images=golden.images[:1],
            tokens=golden.tokens[:1],
            logits=golden.logits[:1],
            own_logits={name: logits[:1] for name, logits in golden.own_logits.items()},
            truth=None if golden.truth is None else golden.truth[:1],
        )
    check = _check(bundle, golden, runtime, "auto", set(), device)
    assert check is not None, "no precision was checked before"
    return replace(check, message=check.message or f"on the {device}, pairs checked: {len(golden.images)}")


def _check(
    bundle: Bundle, golden: Golden, runtime: str, asked: Precision, seen: set[str], device: str = "CPU"
) -> Check | None:
    """Run the golden pairs; None if the resulting precision was `seen` before."""
    import numpy as np

    from cris_edge.image import preprocess
    from cris_edge.metrics import logits_agreement
    from cris_edge.segmenter import Segmenter

    manifest = bundle.manifest
    precision = ""
    try:
        with Segmenter(bundle, runtime=runtime, device=device, precision=asked, cache_dir=None) as segmenter:
            precision = segmenter.info.precision
            if precision in seen:
                return None
            found = []
            for image, tokens in zip(golden.images, golden.tokens, strict=True):
                pixels, _ = preprocess(image, manifest.input_size, mean=manifest.mean, std=manifest.std)
                found.append(segmenter.logits(pixels, tokens[None]))
    except CrisEdgeError as error:
        return Check(runtime, asked, FAILED, str(error), precision)
    logits = np.concatenate(found)
    expected = golden.own_logits.get(runtime, golden.logits)
    difference = float(np.abs(logits.astype(np.float64) - expected).max())
    overlap = min(
        logits_agreement(ours, theirs, manifest.threshold) for ours, theirs in zip(logits, expected, strict=True)
    )
    accuracy = None
    if golden.truth is not None:
        accuracy = (
            _accuracy(logits, golden.truth, manifest.threshold),
            _accuracy(expected, golden.truth, manifest.threshold),
        )
    tolerance = _tolerance(bundle, runtime, precision)
    if tolerance is None:
        outcome, message = NOT_CHECKED, f"the bundle states no tolerance for {precision}"
    elif difference <= tolerance:  # false for NaN
        outcome, message = PASSED, ""
    else:
        outcome, message = (
            FAILED,
            f"a logit differs from PyTorch's by {difference:.3g}; the tolerance is {tolerance:.3g}",
        )
    return Check(runtime, asked, outcome, message, precision, difference, tolerance, overlap, accuracy)


def _tolerance(bundle: Bundle, runtime: str, precision: str) -> float | None:
    """Return the bundle's tolerance for the logits of the whole network.

    For a precision that the exporting machine did not have, PyTorch's emulation of it sets the tolerance.
    """
    for stated in (runtime, "pytorch"):
        for row in bundle.manifest.parity:
            if (row.get("runtime"), row.get("graph"), row.get("precision")) == (stated, "chain", precision):
                value = row.get("tolerance")
                if isinstance(value, (int, float)):
                    return float(value)
    return _FLOAT32_TOLERANCE if precision == "float32" else None


def _accuracy(logits: NDArray[np.float32], truth: NDArray[np.bool_], threshold: float) -> float:
    """Return the mean IoU in percent, on the network's input."""
    import numpy as np

    from cris_edge.image import Letterbox, postprocess
    from cris_edge.metrics import iou

    side = truth.shape[-1]
    square = Letterbox.fit(side, side, side)
    masks = (postprocess(row[None], square) > threshold for row in logits)
    return 100 * float(np.mean([iou(mask, true) for mask, true in zip(masks, truth, strict=True)]))
