"""Whether a network's probabilities mean what they say, and one temperature that mends most of what they do not.

Source: Guo and others, "On Calibration of Modern Neural Networks", arXiv 1706.04599, sections 2 and 4.2.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from cifarlab import text
from cifarlab.data import Source
from cifarlab.errors import UserError
from cifarlab.evaluation import evaluate, load_views
from cifarlab.familiarity import Rule, score, threshold_at
from cifarlab.run import Run
from cifarlab.tta import UNMOVED

BINS = 15  # as in the paper
COLDEST, HOTTEST = 0.05, 20.0  # temperatures looked at
RULE: Rule = "energy"  # finds more foreign pictures than the largest logit: benchmarks/foreign_pictures.py
FALSE_ALARMS = 0.02  # of pictures like those trained on, called unlike them
SURE_ENOUGH = 0.1  # standard error of a temperature, as a share of it
# Of n pictures from the same source, about this many below a threshold fix its rate to a factor of two, 19 times in 20:
# the rate beyond the k-th lowest of n has a beta distribution (k, n - k + 1).
ALARMS_SURE_ENOUGH = 10


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


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The temperature of 0.05 to 20 with the lowest cross-entropy on these pictures, which must not be judged on.

    It changes no answer, only how sure each is (section 4.2). The loss is convex in 1 / temperature. None where it
    falls or rises all the way: where every answer is right, as of few pictures, or none is better than guessing.
    """
    logits = logits.astype(np.float64)
    if _slope(logits, labels, HOTTEST) >= 0 or _slope(logits, labels, COLDEST) <= 0:
        return None
    found = minimize_scalar(
        lambda inverse: _loss(logits, labels, 1.0 / inverse),
        bounds=(1.0 / HOTTEST, 1.0 / COLDEST),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return float(1.0 / found.x)  # type: ignore[attr-defined]


def temperature_standard_error(logits: np.ndarray, temperature: float) -> float:
    """Of a fitted temperature, from the observed Fisher information of its inverse, as N pictures give it."""
    logits = logits.astype(np.float64)
    probabilities = softmax(logits / temperature, axis=1)
    means = (probabilities * logits).sum(axis=1, keepdims=True)
    information = (probabilities * (logits - means) ** 2).sum()
    return float(temperature**2 / np.sqrt(information))


def calibrate(
    run: Run | str | Path,
    *,
    false_alarms: float = FALSE_ALARMS,
    data: Source | None = None,
    data_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Fit a run's temperature, and when a picture is unlike its training pictures, on its validation pictures.

    Both are written to the run's calibration.json, and prediction goes by them: {weights, weights_sha256, split, n,
    temperature, temperature_standard_error, expected_calibration_error: {before, after}, rule, threshold,
    false_alarms, problems}. They are of the weights that the recipe names; the stored answers are used where `evaluate`
    has looked at validation before; the temperature is fitted to the answers to mirror images too, where the recipe's
    `test_time_views` have them. Its standard error is told as of N pictures alone, as a network errs alike on a picture
    and its mirror image. Where the pictures are too few to fix one of the two, that is None and left out of
    predictions; `problems` says so, a line each, and how many pictures it takes. `data` and `data_dir` as for
    `evaluate`.

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
    views, labels = (tensor.numpy() for tensor in load_views(run, "validation", weights))
    logits = views[0]
    if not np.isfinite(logits).all():
        raise UserError(
            f"{run.path}: the network's answers are not numbers: its weights are damaged or diverged"
        )
    temperature, n = fit_temperature(*with_mirror_images(views, labels)), len(labels)
    error = None if temperature is None else temperature_standard_error(logits, temperature)
    found = {
        "weights": weights,
        "weights_sha256": run.weights_checksum(weights),
        "split": "validation",
        "n": n,
        "temperature": temperature,
        "temperature_standard_error": error,
        "expected_calibration_error": {
            "before": measure_calibration(logits, labels).expected_error,
            "after": measure_calibration(logits, labels, temperature or 1.0).expected_error,
        },
        "rule": RULE,
        "threshold": threshold_at(score(logits, RULE), false_alarms)
        if n >= math.ceil(1 / false_alarms)
        else None,
        "false_alarms": false_alarms,
        "problems": [*_temperature_problems(temperature, error, n), *_threshold_problems(n, false_alarms)],
    }
    run.set_calibration(found)
    return found


def with_mirror_images(views: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a temperature is fitted to, of logits (views, N, classes), views as in `cifarlab.tta`, and labels int (N,).

    Logits (M, classes) of the pictures and, where those were looked at, of their mirror images, and labels (M,). A
    mirror image is as good a picture; the moved ones have made-up edges.
    """
    unmoved = views[: len(UNMOVED)]
    return np.concatenate(unmoved), np.tile(labels, len(unmoved))


def _temperature_problems(temperature: float | None, error: float | None, n: int) -> list[str]:
    pictures = text.count(n, "validation picture")
    if temperature is None or error is None:
        return [
            f"no temperature can be found from {pictures}, all answered rightly or no better than by guessing:"
            " probabilities stay as trained"
        ]
    if error <= SURE_ENOUGH * temperature:
        return []
    needed = math.ceil(n * (error / temperature / SURE_ENOUGH) ** 2)
    return [
        f"the temperature is {temperature:.2g} ± {error:.2g} from {pictures}: about {needed:,} would make it sure to"
        f" {SURE_ENOUGH:.0%}"
    ]


def _threshold_problems(n: int, false_alarms: float) -> list[str]:
    needed, fewest = math.ceil(ALARMS_SURE_ENOUGH / false_alarms), math.ceil(1 / false_alarms)
    if n >= needed:
        return []
    rate, pictures = text.percent(false_alarms), text.count(n, "validation picture")
    enough = f"{needed:,} fix that rate to a factor of two"
    if n < fewest:
        return [
            f"{pictures}: too few for a threshold with {rate} of false alarms, so that no picture will be called unlike"
            f" the training pictures; {fewest:,} are the fewest, and {enough}"
        ]
    return [
        f"{pictures}: few for a threshold with {rate} of false alarms, which may be none or several times as many;"
        f" {enough}"
    ]


def _bin(low: float, high: float, confidence: np.ndarray, right: np.ndarray) -> Bin:
    if len(right) == 0:
        return Bin(low, high, 0, None, None)
    return Bin(low, high, len(right), float(confidence.mean()), float(right.mean()))


def _slope(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Of the loss, in 1 / temperature."""
    expected = (softmax(logits / temperature, axis=1) * logits).sum(axis=1)
    return float((expected - logits[np.arange(len(labels)), labels]).mean())


def _loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())
