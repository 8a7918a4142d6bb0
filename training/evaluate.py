"""``python -m training.evaluate``: score a checkpoint or a bundle as the reference's test does.

Every sentence is scored, its mask compared on the original image at a fixed threshold. Where sentences match nothing,
the metrics of the generalized task are reported too. The same code scores PyTorch and, through
:class:`cris_edge.Segmenter`, any runtime: only the predictor differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from cris_edge.bundle import Bundle
from cris_edge.errors import CrisEdgeError, OptionError
from cris_edge.files import naming, write_whole
from cris_edge.image import THRESHOLD, postprocess, preprocess
from cris_edge.metrics import overlap
from cris_edge.tokenizer import PromptWarning, Tokenizer
from training.checkpoint import load_model
from training.data.samples import Example, Source, open_source
from training.device import choose_device
from training.gallery import check_gallery, write_gallery
from training.model import CRIS
from training.report import Case, Report

logger = logging.getLogger("cris_edge.training")

Pixels = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]
Presence = npt.NDArray[np.float32]

MIN_PRESENCE = 0.5
"""Presence below which nothing matches, unless a bundle says otherwise."""


class Predictor(Protocol):
    """The network alone, in any runtime.

    One that also knows whether an object is present has a method `logits_and_presence`, see `ask`.

    Attributes:
        input_size: S, pixels.
        word_len: L, tokens.
        runtime: its name, for reports.
        precision: of its arithmetic, for reports.
    """

    input_size: int
    word_len: int
    runtime: str
    precision: str

    def logits(self, pixels: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(1, 3, S, S) and (k, L) -> (k, 1, S/4, S/4)."""


def ask(predictor: Predictor, pixels: Pixels, tokens: Tokens) -> tuple[npt.NDArray[np.float32], Presence | None]:
    """Return logits (k, 1, S/4, S/4) and presence (k,) in [0, 1], None where the predictor does not know it."""
    both = getattr(predictor, "logits_and_presence", None)
    if both is None:
        return predictor.logits(pixels, tokens), None
    logits, presence = both(pixels, tokens)
    return logits, presence


class TorchPredictor:
    """A CRIS in PyTorch, in eval mode; the sentences of an image share one encoding of it.

    Args:
        model: the network; it is switched to eval mode.
        device: where its weights are.
        autocast: makes the context that it runs in.
        input_size: pixels, where it is not the architecture's.
        precision: of its arithmetic, for reports.
    """

    runtime = "pytorch"

    def __init__(
        self,
        model: CRIS,
        device: torch.device | str = "cpu",
        *,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        input_size: int | None = None,
        precision: str = "float32",
    ) -> None:
        self.model, self.device, self.autocast, self.precision = model.eval(), torch.device(device), autocast, precision
        self.input_size, self.word_len = input_size or model.architecture.input_size, model.architecture.word_len

    def logits(self, pixels: Pixels, tokens: Tokens) -> npt.NDArray[np.float32]:
        """(1, 3, S, S) and (k, L) -> (k, 1, S/4, S/4)."""
        return self.logits_and_presence(pixels, tokens)[0]

    @torch.no_grad()
    def logits_and_presence(self, pixels: Pixels, tokens: Tokens) -> tuple[npt.NDArray[np.float32], Presence | None]:
        """As `ask`."""
        inputs = torch.from_numpy(pixels).to(self.device), torch.from_numpy(tokens).to(self.device)
        with self.autocast():
            both = getattr(self.model, "forward_with_presence", None)
            logits, presence = both(*inputs) if both is not None else (self.model(*inputs), None)
        found = None if presence is None else presence.float().sigmoid().flatten().cpu().numpy()
        return np.asarray(logits.float().cpu().numpy(), dtype=np.float32), found


class BundlePredictor:
    """A bundle through the SDK, on one of its runtimes.

    Args:
        path: the bundle.
        runtime: ``auto``, ``onnxruntime``, ``openvino``, ...
        options: keywords of :class:`cris_edge.Segmenter`.
    """

    def __init__(self, path: Path, runtime: str = "auto", **options: Any) -> None:
        from cris_edge import Segmenter

        manifest = Bundle.open(path).manifest
        self.segmenter = Segmenter(path, runtime=runtime, **options)
        self.input_size, self.word_len, self.threshold = manifest.input_size, manifest.word_len, manifest.threshold
        self.min_presence = 0.0 if manifest.presence is None else manifest.presence.min_presence
        info = self.segmenter.info
        self.runtime = str(getattr(info, "runtime", runtime))
        self.precision = str(getattr(info, "precision", manifest.precision))

    def logits(self, pixels: Pixels, tokens: Tokens) -> npt.NDArray[np.float32]:
        """(1, 3, S, S) and (k, L) -> (k, 1, S/4, S/4)."""
        return np.concatenate([self.segmenter.logits(pixels, row[None]) for row in tokens])

    def logits_and_presence(self, pixels: Pixels, tokens: Tokens) -> tuple[npt.NDArray[np.float32], Presence | None]:
        """As `ask`."""
        found = [self.segmenter.logits_and_presence(pixels, row[None]) for row in tokens]
        known = [presence for _, presence in found if presence is not None]
        return np.concatenate([logits for logits, _ in found]), np.array(known, np.float32) if known else None


def score(
    predictor: Predictor,
    source: Source,
    *,
    threshold: float = THRESHOLD,
    min_presence: float = MIN_PRESENCE,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Report:
    """Score every sentence of every example of ``source``.

    Args:
        predictor: computes the logits.
        source: the data; examples that hold all sentences of an image are faster, the scores are the same.
        threshold: probability strictly above which a pixel belongs to the object.
        min_presence: below it the mask counts as empty, where the predictor knows the presence; 0 disables it.
        limit: number of examples, from the first.
        shard: rank and number of processes, each of which scores its share.
    """
    report, tokenizer = Report(source.name, source.split, predictor.runtime, predictor.precision), Tokenizer()
    count = len(source) if limit is None else min(limit, len(source))
    for index in tqdm(
        range(shard[0], count, shard[1]), desc="evaluate", disable=True if shard[0] else None, unit="image", leave=False
    ):
        example = source.load(index, predictor.input_size)
        for number, (mask, presence) in enumerate(predict(predictor, example, tokenizer, threshold, min_presence)):
            truth = example.truth(number)
            intersection, union = overlap(mask, truth)
            report.add(
                Case(
                    index,
                    number,
                    example.id,
                    example.sentences[number],
                    intersection,
                    union,
                    float(truth.mean()),
                    matches=number not in example.absent,
                    empty=not mask.any(),
                    presence=presence,
                )
            )
    return report


def predict(
    predictor: Predictor,
    example: Example,
    tokenizer: Tokenizer,
    threshold: float,
    min_presence: float = MIN_PRESENCE,
) -> Iterator[tuple[npt.NDArray[np.bool_], float | None]]:
    """Yield the mask of each sentence, (H, W) bool on the original image, and its presence, None where not known."""
    pixels, letterbox = preprocess(example.image, predictor.input_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)  # long sentences are cut, as the reference cuts them
        tokens = tokenizer(example.sentences, length=predictor.word_len)
    several, presences = ask(predictor, pixels, tokens)
    for number, logits in enumerate(several):
        mask, presence = postprocess(logits[None], letterbox) > threshold, None
        if presences is not None:
            presence = float(presences[number])
            mask &= presence >= min_presence
        yield mask, presence


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    result = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__, allow_abbrev=False)
    what = result.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, help="any CRIS checkpoint, scored in PyTorch")
    what.add_argument("--bundle", type=Path, help="a bundle, scored through the SDK")
    result.add_argument("--data", required=True, help="a JSON Lines file, or scenes:SPLIT:LENGTH:SEED")
    result.add_argument("--runtime", default="auto", help="of the bundle: auto, onnxruntime, openvino, ...")
    result.add_argument("--threads", type=int, help="CPU threads")
    result.add_argument("--device", help="cpu, cuda, or what the runtime calls it")
    result.add_argument("--precision", help="PyTorch: float32 (default), bfloat16, float16; a bundle: the runtime's")
    result.add_argument("--threshold", type=float, help=f"of the probability (default: the bundle's, else {THRESHOLD})")
    result.add_argument(
        "--min-presence",
        type=float,
        help=f"presence below which nothing matches, 0 for none (default: the bundle's, else {MIN_PRESENCE})",
    )
    result.add_argument("--limit", type=int, help="score the first so many images")
    result.add_argument("--input-size", type=int, help="of a public checkpoint, in pixels (416)")
    result.add_argument(
        "--word-len", type=int, help="of a public checkpoint: 17 for RefCOCO and RefCOCO+, 22 for G-Ref"
    )
    result.add_argument("--decoder-heads", type=int, help="of a public checkpoint (8)")
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
        raise OptionError(f"--limit is {options.limit}, but at least one image must be scored.")
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise OptionError(f"--threshold is {options.threshold}; a probability lies between 0 and 1.")
    if options.min_presence is not None and not 0 <= options.min_presence <= 1:
        raise OptionError(f"--min-presence is {options.min_presence}; expected a number in [0, 1].")
    if options.rows < 1:
        raise OptionError(f"--rows is {options.rows}, but a gallery shows one case of each kind at least.")
    if options.gallery:
        check_gallery(options.gallery)
    for path in filter(None, (options.gallery, options.output)):
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)


def _open(options: argparse.Namespace) -> tuple[Predictor, float]:
    """Open the checkpoint or the bundle; return it with the threshold to use."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.bundle:
        given = {"device": options.device, "threads": options.threads, "precision": options.precision}
        predictor = BundlePredictor(
            options.bundle, options.runtime, **{key: value for key, value in given.items() if value is not None}
        )
        return predictor, predictor.threshold if options.threshold is None else options.threshold
    model = load_model(
        options.checkpoint,
        word_len=options.word_len,
        decoder_heads=options.decoder_heads,
        input_size=options.input_size,
    )
    device = choose_device(options.device or "auto")
    dtypes = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    precision = options.precision or "float32"
    if precision not in dtypes:
        raise OptionError(f"--precision is {precision!r}; PyTorch takes {', '.join(dtypes)}.")
    dtype = dtypes[precision]

    def autocast() -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()

    threshold = THRESHOLD if options.threshold is None else options.threshold
    return TorchPredictor(model.to(device), device, autocast=autocast, precision=precision), threshold


if __name__ == "__main__":
    sys.exit(main())
