"""Presence estimated from logits alone, for networks without a presence head.

A logistic regression over a few statistics of the logits, fitted on labelled data with prompts that match nothing. Its
coefficients are in the bundle's manifest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cris_edge.bundle.manifest import STATISTICS, PresenceSpec
from cris_edge.image import THRESHOLD

TOP_SHARE = 0.01  # of the pixels: those with the highest logits
_LEVEL = math.log(THRESHOLD / (1 - THRESHOLD))
_LIMIT = 30.0  # a sigmoid beyond is 0 or 1; infinite logits stay finite


def logit_statistics(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the statistics of one prompt's logits.

    Args:
        logits: any shape with (S/4, S/4) values, before the sigmoid.

    Returns:
        (6,) float64 in the order of `STATISTICS`: the largest logit; the mean of the top 1 %; the mean of all; the mean
        above the default threshold's logit, or that logit where none is above; the natural logarithm of the share of
        pixels above it; the mean distance of a probability from 1/2, relative to the largest there is.
    """
    values = np.clip(np.asarray(logits, np.float64).ravel(), -_LIMIT, _LIMIT)
    count = max(1, round(TOP_SHARE * values.size))
    top = np.partition(values, values.size - count)[-count:]
    inside = values[values > _LEVEL]
    probability = 1 / (1 + np.exp(-values))
    return np.array(
        [
            top.max(),
            top.mean(),
            values.mean(),
            inside.mean() if inside.size else _LEVEL,
            math.log((inside.size + 1) / values.size),
            2 * np.abs(probability - 0.5).mean(),
        ]
    )


def presence_of(outputs: Mapping[str, NDArray[Any]], spec: PresenceSpec | None) -> float | None:
    """Return the presence, 0 to 1, of one prompt's outputs of the mask decoder; None for a bundle without one."""
    if spec is None:
        return None
    if spec.source == "head":
        return sigmoid(float(outputs["presence"].reshape(())))
    return calibrated_presence(outputs["logits"], spec.coefficients)


def calibrated_presence(logits: NDArray[Any], coefficients: Mapping[str, float]) -> float:
    """Return the presence, 0 to 1, of one prompt's logits.

    Args:
        logits: as `logit_statistics` takes them.
        coefficients: ``intercept`` and one for each of `STATISTICS`.
    """
    weights = np.array([coefficients[name] for name in STATISTICS])
    return sigmoid(coefficients["intercept"] + float(weights @ logit_statistics(logits)))


def sigmoid(value: float) -> float:
    """Return the logistic function of a number, without overflow."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
