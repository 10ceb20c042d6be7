"""Whether a network's probabilities mean what they say, and one temperature that mends most of what they do not.

Source: Guo and others, "On Calibration of Modern Neural Networks", arXiv 1706.04599, sections 2 and 4.2.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15  # as in the paper
COLDEST, HOTTEST = 0.05, 20.0  # temperatures looked at


@dataclass(frozen=True)
class Bin:
    """The pictures whose largest probability is above `low` and at most `high`; means are None where there are none."""

    low: float
    high: float
    n: int
    confidence: float | None  # mean of the largest probabilities, 0..1
    accuracy: float | None  # 0..1


@dataclass(frozen=True)
class Calibration:
    """Reliability in bins of equal width, and the expected calibration error: mean |accuracy - confidence|, 0..1."""

    temperature: float
    bins: tuple[Bin, ...]
    expected_error: float
    loss: float  # mean cross-entropy, natural logarithm


def measure_calibration(
    logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0, bins: int = BINS
) -> Calibration:
    """Calibration of logits (N, classes) / temperature against labels int (N,): equations 3 and 5 of the paper."""
    probabilities = softmax(logits.astype(np.float64) / temperature, axis=1)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    found = tuple(
        _bin(float(edges[i]), float(edges[i + 1]), confidence[place == i], right[place == i])
        for i in range(bins)
    )
    gaps = [each.n * abs(each.accuracy - each.confidence) for each in found if each.n]  # type: ignore[operator]
    loss = _loss(logits.astype(np.float64), labels, temperature)
    return Calibration(temperature, found, float(sum(gaps) / len(labels)), loss)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of 0.05 to 20 with the lowest cross-entropy on these pictures, which must not be judged on.

    It changes no answer, only how sure each is (section 4.2). The loss is convex in 1 / temperature.
    """
    logits = logits.astype(np.float64)
    found = minimize_scalar(
        lambda inverse: _loss(logits, labels, 1.0 / inverse),
        bounds=(1.0 / HOTTEST, 1.0 / COLDEST),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return float(1.0 / found.x)  # type: ignore[attr-defined]


def _bin(low: float, high: float, confidence: np.ndarray, right: np.ndarray) -> Bin:
    if len(right) == 0:
        return Bin(low, high, 0, None, None)
    return Bin(low, high, len(right), float(confidence.mean()), float(right.mean()))


def _loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())
