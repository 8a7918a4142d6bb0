"""``python -m training.evaluate``: score a checkpoint or a bundle as the reference's test does.

Where prompts match nothing, the metrics of the generalized task are reported too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cris_edge.errors import CrisEdgeError, OptionError
from cris_edge.files import naming, write_whole
from cris_edge.image import THRESHOLD
from training.checkpoint import load_network
from training.data.samples import open_source
from training.device import choose_device
from training.gallery import check_gallery, write_gallery
from training.scoring import MIN_PRESENCE, BundlePredictor, Predictor, TorchPredictor, score


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    result = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__, allow_abbrev=False)
    what = result.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, help="any CRIS checkpoint, scored in PyTorch")
    what.add_argument("--bundle", type=Path, help="a bundle, scored through the SDK")
    result.add_argument("--data", required=True, help="a JSON Lines file, or scenes:SPLIT:LENGTH:SEED")
    result.add_argument("--runtime", default="auto", help="runtime of the bundle: auto, onnxruntime, openvino, ...")
    result.add_argument("--threads", type=int, help="CPU threads")
    result.add_argument("--device", help="cpu, cuda, or a device of the bundle's runtime")
    result.add_argument("--precision", help="of the computation; PyTorch: float32 (default), bfloat16 or float16")
    result.add_argument("--threshold", type=float, help=f"mask threshold (default: the bundle's, else {THRESHOLD})")
    result.add_argument(
        "--min-presence",
        type=float,
        help=f"presence below which a mask counts as empty (default: the bundle's, else {MIN_PRESENCE})",
    )
    result.add_argument("--limit", type=int, help="number of images to score, from the first")
    result.add_argument("--input-size", type=int, help="input size of a public checkpoint in pixels (416)")
    result.add_argument(
        "--word-len", type=int, help="tokens of a public checkpoint: 17 for RefCOCO and RefCOCO+, 22 for G-Ref"
    )
    result.add_argument("--decoder-heads", type=int, help="decoder heads of a public checkpoint (8)")
    result.add_argument("--gallery", type=Path, help="write best, worst and random cases to this .html, .png or .jpg")
    result.add_argument("--rows", type=int, default=8, help="cases of each kind in the gallery")
    result.add_argument("--output", type=Path, help="write the report as JSON to this file")
    result.add_argument("--json", action="store_true", help="print the report as JSON")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = parser().parse_args(arguments)
    try:
        _check(options)
        predictor, threshold = _open(options)
        source = open_source(options.data, by_image=True)
        for path in filter(None, (options.gallery, options.output)):
            with naming(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        min_presence = options.min_presence
        if min_presence is None:
            min_presence = getattr(predictor, "min_presence", MIN_PRESENCE)
        report = score(predictor, source, threshold=threshold, min_presence=min_presence, limit=options.limit)
        levels = {"threshold": threshold, "min_presence": min_presence}
        document = {**report.to_dict(), **levels, "model": str(options.checkpoint or options.bundle)}
        # Printed first: a long evaluation must not be lost to a file that cannot be written.
        print(json.dumps(document, indent=2) if options.json else report.table())
        if options.gallery:
            write_gallery(options.gallery, report, predictor, source, **levels, rows=options.rows)
        if options.output:
            write_whole(options.output, json.dumps(document, indent=2) + "\n")
    except (CrisEdgeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _check(options: argparse.Namespace) -> None:
    """Check the options before the long evaluation."""
    if options.limit is not None and options.limit < 1:
        raise OptionError(f"--limit is {options.limit}; expected 1 or more.")
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise OptionError(f"--threshold is {options.threshold}; expected a number between 0 and 1.")
    if options.min_presence is not None and not 0 <= options.min_presence <= 1:
        raise OptionError(f"--min-presence is {options.min_presence}; expected a number in [0, 1].")
    if options.rows < 1:
        raise OptionError(f"--rows is {options.rows}; expected 1 or more.")
    if options.gallery:
        check_gallery(options.gallery)


def _open(options: argparse.Namespace) -> tuple[Predictor, float]:
    """Open the checkpoint or the bundle; return it and the threshold."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.bundle:
        given = {"device": options.device, "threads": options.threads, "precision": options.precision}
        predictor = BundlePredictor(
            options.bundle, options.runtime, **{key: value for key, value in given.items() if value is not None}
        )
        return predictor, predictor.threshold if options.threshold is None else options.threshold
    model = load_network(
        options.checkpoint,
        word_len=options.word_len,
        decoder_heads=options.decoder_heads,
        input_size=options.input_size,
    )
    device = choose_device(options.device or "auto")
    dtypes = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    precision = options.precision or "float32"
    if precision not in dtypes:
        raise OptionError(f"--precision is {precision!r}; expected one of {', '.join(dtypes)}.")
    dtype = dtypes[precision]

    def autocast() -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()

    threshold = THRESHOLD if options.threshold is None else options.threshold
    return TorchPredictor(model.to(device), device, autocast=autocast, precision=precision), threshold


if __name__ == "__main__":
    sys.exit(main())
