"""Scores of a network on labelled data, in PyTorch or through the SDK.

Every prompt is scored, its mask compared on the original image at a fixed threshold. Only the predictor differs between
PyTorch and the runtimes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from cris_edge.bundle import Bundle
from cris_edge.image import THRESHOLD, postprocess, preprocess
from cris_edge.metrics import overlap
from cris_edge.tokenizer import PromptWarning, Tokenizer
from training.data.samples import Example, Source
from training.model import CRIS
from training.model.candidatenet import CandidateNet
from training.report import Case, Report

Pixels = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]
Presence = npt.NDArray[np.float32]

MIN_PRESENCE = 0.5
"""Presence below which a mask counts as empty, unless the bundle has its own value."""


class Predictor(Protocol):
    """A network in any runtime; one that predicts presence also has `logits_and_presence`, see `run_predictor`.

    Attributes:
        input_size: S, in pixels.
        word_len: L, in tokens.
        runtime: Name of the runtime, for reports.
        precision: Precision of the computation, for reports.
    """

    input_size: int
    word_len: int
    runtime: str
    precision: str

    def logits(self, pixels: Pixels, tokens: Tokens) -> npt.NDArray[np.float32]:
        """(1, 3, S, S) and (k, L) -> (k, 1, S/4, S/4)."""


def run_predictor(
    predictor: Predictor, pixels: Pixels, tokens: Tokens
) -> tuple[npt.NDArray[np.float32], Presence | None]:
    """Return logits (k, 1, S/4, S/4) and presence (k,) in [0, 1], None if it is not predicted."""
    both = getattr(predictor, "logits_and_presence", None)
    if both is None:
        return predictor.logits(pixels, tokens), None
    logits, presence = both(pixels, tokens)
    return logits, presence


class TorchPredictor:
    """A network in PyTorch; the prompts of an image share its encoding.

    Args:
        model: The network; switched to eval mode.
        device: Device of its weights.
        autocast: Returns the context to run it in.
        input_size: In pixels; the architecture's by default.
        precision: Precision of the computation, for reports.
    """

    runtime = "pytorch"

    def __init__(
        self,
        model: CRIS | CandidateNet,
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
        """As `run_predictor`."""
        inputs = torch.from_numpy(pixels).to(self.device), torch.from_numpy(tokens).to(self.device)
        with self.autocast():
            both = getattr(self.model, "forward_with_presence", None)
            logits, presence = both(*inputs) if both is not None else (self.model(*inputs), None)
        found = None if presence is None else presence.float().sigmoid().flatten().cpu().numpy()
        return np.asarray(logits.float().cpu().numpy(), dtype=np.float32), found


class BundlePredictor:
    """A bundle, run by the SDK.

    Args:
        path: The bundle.
        runtime: ``auto``, ``onnxruntime``, ``openvino``, ...
        options: Keyword arguments of :class:`cris_edge.Segmenter`.
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
        """As `run_predictor`."""
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
    """Score every prompt of every example of ``source``.

    Args:
        predictor: Computes the logits.
        source: The data; one example per image is faster than one per object, with the same scores.
        threshold: A pixel belongs to the object if its probability is strictly above it.
        min_presence: A mask with a lower presence counts as empty; 0 disables this.
        limit: Number of examples, from the first.
        shard: Rank and number of processes, which divide the examples.
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
    """Yield the mask of each prompt, (H, W) bool on the original image, and its presence or None."""
    pixels, letterbox = preprocess(example.image, predictor.input_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)  # long prompts are truncated, as in the reference
        tokens = tokenizer(example.sentences, length=predictor.word_len)
    all_logits, presences = run_predictor(predictor, pixels, tokens)
    for number, logits in enumerate(all_logits):
        mask, presence = postprocess(logits[None], letterbox) > threshold, None
        if presences is not None:
            presence = float(presences[number])
            mask &= presence >= min_presence
        yield mask, presence
