"""Presence in a bundle: the threshold of its head, or a calibration of its logits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from cris_edge.bundle.manifest import STATISTICS, PresenceSpec
from cris_edge.bundle.presence import calibrated_presence, logit_statistics
from cris_edge.image import preprocess
from cris_edge.metrics import auroc
from cris_edge.tokenizer import PromptWarning, Tokenizer
from training.data.samples import Source
from training.scoring import MIN_PRESENCE, Predictor, run_predictor

logger = logging.getLogger("cris_edge.runtimes")

Vector = npt.NDArray[np.float64]

KEPT = 0.95  # share of the prompts with a target whose presence is at least the default min_presence
HIGHEST = 0.7  # default min_presence: a higher one would suit only the data that it was measured on
FEWEST = 20  # prompts that match nothing, and as many that match, below which nothing is fitted
FOLDS = 5  # of the cross-validation, which never splits the prompts of one image
_RIDGE = 1e-2  # on standardized statistics, relative to one prompt: keeps coefficients finite on separable data


@dataclass(frozen=True)
class Observations:
    """Logit statistics and presence of a network on labelled prompts.

    Attributes:
        statistics: (N, K) of the logits.
        presence: (N,) of its head, or None.
        matches: (N,) bool.
        images: (N,) index of each prompt's image.
    """

    statistics: Vector
    presence: Vector | None
    matches: npt.NDArray[np.bool_]
    images: npt.NDArray[np.int64]


@dataclass
class Calibrated:
    """A predictor whose presence is computed from its logits.

    Attributes:
        predictor: Without presence of its own.
        spec: The calibration.
    """

    predictor: Predictor
    spec: PresenceSpec

    def __post_init__(self) -> None:
        self.input_size, self.word_len = self.predictor.input_size, self.predictor.word_len
        self.runtime, self.precision = self.predictor.runtime, self.predictor.precision

    def logits(self, pixels: Any, tokens: Any) -> Any:
        """(1, 3, S, S) and (k, L) -> (k, 1, S/4, S/4)."""
        return self.predictor.logits(pixels, tokens)

    def logits_and_presence(self, pixels: Any, tokens: Any) -> tuple[Any, Any]:
        """As `training.scoring.run_predictor`."""
        logits = self.predictor.logits(pixels, tokens)
        return logits, np.array([calibrated_presence(one, self.spec.coefficients) for one in logits], np.float32)


def determine(predictor: Predictor, source: Source | None, *, has_head: bool) -> PresenceSpec | None:
    """Return the manifest's entry on presence for a network; None where it has no head and cannot be calibrated.

    Args:
        predictor: The network.
        source: Labelled data; prompts that match nothing are what is measured and fitted on.
        has_head: Whether the network has a presence head.
    """
    plain = PresenceSpec("head", MIN_PRESENCE) if has_head else None
    if source is None:
        return plain
    seen = observe(predictor, source)
    negatives, positives = int((~seen.matches).sum()), int(seen.matches.sum())
    if min(negatives, positives) < FEWEST:
        logger.info(
            "presence is not %s: the data has %d prompts that match nothing and %d that match; %d of each are needed",
            *("measured" if has_head else "calibrated", negatives, positives, FEWEST),
        )
        return plain
    if has_head:
        assert seen.presence is not None
        return _measured(PresenceSpec("head", MIN_PRESENCE), seen.presence, seen, source)
    held_out, coefficients = cross_validated(seen), fit(seen.statistics, seen.matches)
    return _measured(PresenceSpec("calibration", MIN_PRESENCE, coefficients), held_out, seen, source)


def observe(predictor: Predictor, source: Source) -> Observations:
    """Run a network on every prompt of `source`."""
    tokenizer = Tokenizer()
    statistics: list[Vector] = []
    presence: list[float] = []
    matches: list[bool] = []
    images: list[int] = []
    for index in tqdm(range(len(source)), desc="presence", disable=None, unit="image", leave=False):
        example = source.load(index, predictor.input_size)
        pixels, _ = preprocess(example.image, predictor.input_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptWarning)
            tokens = tokenizer(example.sentences, length=predictor.word_len)
        logits, known = run_predictor(predictor, pixels, tokens)
        statistics += [logit_statistics(one) for one in logits]
        presence += [] if known is None else [float(value) for value in known]
        matches += [number not in example.absent for number in range(len(example.sentences))]
        images += [index] * len(example.sentences)
    return Observations(
        np.array(statistics), np.array(presence) if presence else None, np.array(matches), np.array(images)
    )


def cross_validated(seen: Observations) -> Vector:
    """Return the presence (N,) of each prompt by a calibration that was fitted without its image."""
    images = np.unique(seen.images)
    fold_of = dict(
        zip(images.tolist(), (np.random.default_rng(0).permutation(len(images)) % FOLDS).tolist(), strict=True)
    )
    folds = np.array([fold_of[image] for image in seen.images.tolist()])
    held_out = np.empty(len(folds))
    for fold in range(FOLDS):
        out = folds == fold
        if out.any():
            coefficients = fit(seen.statistics[~out], seen.matches[~out])
            held_out[out] = _predictor_of(coefficients)(seen.statistics[out])
    return held_out


def fit(statistics: Vector, matches: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Fit a ridge logistic regression by Newton's method; both classes weigh the same.

    Returns:
        ``intercept`` and a coefficient for each of `cris_edge.bundle.manifest.STATISTICS`, on raw statistics.
    """
    mean, scale = statistics.mean(axis=0), statistics.std(axis=0) + 1e-9
    x = np.column_stack([np.ones(len(statistics)), (statistics - mean) / scale])
    y = matches.astype(np.float64)
    weight = np.where(matches, 0.5 / max(1, matches.sum()), 0.5 / max(1, (~matches).sum())) * len(y)
    ridge = np.diag([0.0, *[_RIDGE] * len(STATISTICS)])
    beta = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        gradient = x.T @ (weight * (y - p)) - ridge @ beta
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + ridge + 1e-9 * np.eye(len(beta))
        step = np.linalg.solve(hessian, gradient)
        beta += step * min(1.0, 5 / (np.abs(step).max() + 1e-12))  # far steps overshoot where p is 0 or 1
        if np.abs(step).max() < 1e-8:
            break
    raw = beta[1:] / scale
    named = {name: float(value) for name, value in zip(STATISTICS, raw, strict=True)}
    return {"intercept": float(beta[0] - raw @ mean), **named}


def _predictor_of(coefficients: dict[str, float]) -> Callable[[Vector], Vector]:
    weights = np.array([coefficients[name] for name in STATISTICS])

    def predict(statistics: Vector) -> Vector:
        odds: Vector = np.clip(coefficients["intercept"] + statistics @ weights, -30, 30)
        return np.asarray(1 / (1 + np.exp(-odds)))

    return predict


def _measured(spec: PresenceSpec, presence: Vector, seen: Observations, source: Source) -> PresenceSpec:
    """Choose the default threshold, and add what was measured."""
    level = min(HIGHEST, float(np.floor(100 * np.quantile(presence[seen.matches], 1 - KEPT)) / 100))
    metrics = {
        "dataset": source.name,
        "split": source.split,
        "matching": int(seen.matches.sum()),
        "not_matching": int((~seen.matches).sum()),
        "AUROC": 100 * auroc(presence, seen.matches),
        "N-acc": 100 * float((presence[~seen.matches] < level).mean()),
        "T-acc": 100 * float((presence[seen.matches] >= level).mean()),
    }
    logger.info("presence (%s): AUROC %.2f on %s", spec.source, metrics["AUROC"], source.name)
    return replace(spec, min_presence=level, metrics=metrics)
