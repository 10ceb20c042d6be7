"""Whether a network's probabilities mean what they say, and one temperature that mends most of what they do not.

Source: Guo and others, "On Calibration of Modern Neural Networks", arXiv 1706.04599, sections 2 and 4.2.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from cifarlab.data import Source
from cifarlab.errors import UserError
from cifarlab.evaluation import evaluate, load_answers
from cifarlab.familiarity import Rule, score, threshold_at
from cifarlab.run import Run

BINS = 15  # as in the paper
COLDEST, HOTTEST = 0.05, 20.0  # temperatures looked at
RULE: Rule = "energy"  # finds more foreign pictures than the largest logit: benchmarks/foreign_pictures.py
FALSE_ALARMS = 0.02  # of pictures like those trained on, called unlike them


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


def calibrate(
    run: Run | str | Path,
    *,
    false_alarms: float = FALSE_ALARMS,
    data: Source | None = None,
    data_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Fit a run's temperature, and when a picture is unlike its training pictures, on its validation pictures.

    Both are written to the run's calibration.json, and prediction goes by them: {weights, weights_sha256, split, n,
    temperature, expected_calibration_error: {before, after}, rule, threshold, false_alarms}. They are of the weights
    that the recipe names; the stored answers are used where `evaluate` has looked at validation before. `data` and
    `data_dir` as for `evaluate`.

    Raises:
        UserError: when the run has no validation pictures to choose by, or `false_alarms` is not between 0 and 1.
    """
    run = run if isinstance(run, Run) else Run(run)
    if not run.recipe.data.may_choose:
        raise UserError(
            f"{run.path} has no validation pictures to calibrate on: its recipe says"
            f" data.validation={run.recipe.data.validation}"
        )
    if not 0 < false_alarms < 1:
        raise UserError(f"false alarms should be above 0 and below 1, {false_alarms:g} given")
    weights = run.default_weights
    evaluate(run, split="validation", data=data, data_dir=data_dir)
    logits, labels = (tensor.numpy() for tensor in load_answers(run, "validation", weights))
    if not np.isfinite(logits).all():
        raise UserError(
            f"{run.path}: the network's answers are not numbers: its weights are damaged or diverged"
        )
    temperature = fit_temperature(logits, labels)
    found = {
        "weights": weights,
        "weights_sha256": run.weights_checksum(weights),
        "split": "validation",
        "n": len(labels),
        "temperature": temperature,
        "expected_calibration_error": {
            "before": measure_calibration(logits, labels).expected_error,
            "after": measure_calibration(logits, labels, temperature).expected_error,
        },
        "rule": RULE,
        "threshold": threshold_at(score(logits, RULE), false_alarms),
        "false_alarms": false_alarms,
    }
    run.set_calibration(found)
    return found


def _bin(low: float, high: float, confidence: np.ndarray, right: np.ndarray) -> Bin:
    if len(right) == 0:
        return Bin(low, high, 0, None, None)
    return Bin(low, high, len(right), float(confidence.mean()), float(right.mean()))


def _loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())
