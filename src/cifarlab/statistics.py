"""How sure a figure is: intervals over seeds and over pictures, and tests of a difference.

Accuracies are 0..1 throughout. Nothing here knows of runs or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

POWER = 0.8  # the chance to find a difference that is there, by convention (Cohen 1988, section 2.4)
MOST_SEEDS = 10_000  # beyond which no number of seeds is worth naming


@dataclass(frozen=True)
class Summary:
    """Of n values: mean, standard deviation (n - 1), and the interval from low to high for the true mean.

    `sd` is None with one value. `low` and `high` are None too where all values are equal: they show no spread to go by.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        """{n, mean, sd, interval: [low, high] or None}, as every command's JSON has it."""
        return {"n": self.n, "mean": self.mean, "sd": self.sd, "interval": _ends(self.low, self.high)}


@dataclass(frozen=True)
class Difference:
    """mean(b) - mean(a), its interval from low to high, and the two-sided p of no difference.

    `low`, `high` and `p` are None where a side has one value (paired: one pair), or where nothing varies.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n_a: int
    n_b: int
    paired: bool

    @property
    def interval(self) -> list[float] | None:
        return _ends(self.low, self.high)


@dataclass(frozen=True)
class McNemar:
    """Of pictures judged by two classifiers: how many only a had right, only b had right, and the mid-p value."""

    only_a: int
    only_b: int
    p: float


def summarize(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Mean, deviation and Student's t interval of the mean (Student 1908).

    Raises:
        ValueError: without values.
    """
    if len(values) == 0:
        raise ValueError("no values to summarize")
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Summary(1, mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    if not _varies(values):
        return Summary(n, mean, 0.0, None, None)
    margin = _t_quantile(confidence, n - 1) * sd / np.sqrt(n)
    return Summary(n, mean, sd, float(mean - margin), float(mean + margin))


def prediction_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Where one further value will lie: mean ± t * sd * sqrt(1 + 1/n); None with fewer than two values.

    Source: Hahn and Meeker, Statistical Intervals (1991), chapter 4, for one future normal observation.
    """
    summary = summarize(values, confidence)
    if summary.sd is None:
        return None
    margin = _t_quantile(confidence, summary.n - 1) * summary.sd * float(np.sqrt(1 + 1 / summary.n))
    return summary.mean - margin, summary.mean + margin


def proportion_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a share of n independent pictures (Wilson 1927; Brown, Cai and DasGupta 2001).

    Raises:
        ValueError: when n is 0, or successes is not from 0 to n.
    """
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    paired: bool,
    confidence: float = 0.95,
    inflation: float = 1.0,
) -> Difference:
    """mean(b) - mean(a) with its t interval: of the pairs' differences, or Welch's for two samples (Welch 1947).

    Paired, a[i] and b[i] belong together. `inflation` multiplies the standard error: `fold_inflation` for folds.

    Raises:
        ValueError: without values, or when pairs are not of equal number.
    """
    if paired and len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values make no pairs")
    mean = float(np.mean(b) - np.mean(a))
    spread = _spread(a, b, paired=paired)
    if spread is None:
        return Difference(mean, None, None, None, len(a), len(b), paired)
    error, freedom = spread[0] * inflation, spread[1]
    margin = _t_quantile(confidence, freedom) * error
    p = float(2 * stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, mean - margin, mean + margin, p, len(a), len(b), paired)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number, in the order given (Holm 1979, Scandinavian Journal of Statistics 6:65)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted.tolist()


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> McNemar:
    """McNemar's test of bool (N,) against bool (N,): of each picture, whether a and whether b had it right.

    The mid-p version of the exact test, which keeps to its level without the exact test's loss of power (Fagerland,
    Lydersen and Laake 2013, BMC Medical Research Methodology 13:91). It speaks of these two trained networks on
    pictures like these; of the recipes it says nothing, because another seed makes another network.
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    if only_a == only_b:  # none above the other: the two tails meet
        return McNemar(only_a, only_b, 1.0)
    fewer, discordant = min(only_a, only_b), only_a + only_b
    p = 2 * stats.binom.cdf(fewer, discordant, 0.5) - stats.binom.pmf(fewer, discordant, 0.5)
    return McNemar(only_a, only_b, float(p))


def bootstrap_interval(
    values: np.ndarray, confidence: float = 0.95, resamples: int = 9_999, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap of the mean of float (N,), one value for each picture (Efron and Tibshirani 1993, ch. 13).

    A resample of pictures is drawn as the number of pictures of each distinct value, which is the same distribution and
    does not need N draws. The same values give the same interval: the draws are seeded.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn @ distinct / len(values), [tail, 1 - tail])
    return float(low), float(high)


def fold_inflation(folds: int) -> float:
    """What the standard error of a mean over the folds of a cross-validation is multiplied with, 1.5 for five folds.

    Each two of K folds share most of their training pictures, so that their results are not independent. The corrected
    resampled t test takes (1/K + n_test / n_train) for 1/K in the variance (Nadeau and Bengio 2003, Machine Learning
    52:239, section 3); n_test / n_train is 1 / (K - 1).
    """
    return float(np.sqrt(1 + folds / (folds - 1)))


def smallest_difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    paired: bool,
    confidence: float = 0.95,
    inflation: float = 1.0,
) -> float | None:
    """The smallest true difference that a t test of samples like these finds with a power of 80 %.

    It solves P(T > t) = 0.8 for d, where T is noncentral t with noncentrality d / standard error, and t the two-sided
    critical value (Cohen, Statistical Power Analysis, 1988, chapter 2). None where no standard error can be estimated.
    """
    spread = _spread(a, b, paired=paired)
    return None if spread is None else _detectable(spread[0] * inflation, spread[1], confidence)


def seeds_needed(true_difference: float, sd: float, confidence: float = 0.95) -> int | None:
    """Seeds for each of two recipes, not paired, that show `true_difference` with a power of 80 %.

    `sd` is the assumed deviation between seeds, the same for both. None beyond 10,000.
    """

    def enough(n: int) -> bool:
        return _detectable(sd * np.sqrt(2 / n), 2 * n - 2, confidence) <= abs(true_difference)

    if not enough(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS  # low is too few
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _detectable(error: float, freedom: float, confidence: float) -> float:
    """A significant result of the wrong sign is left out of the power: it has less than one chance in a million."""
    return float(error * special.nctdtrinc(freedom, 1 - POWER, _t_quantile(confidence, freedom)))


def _spread(a: Sequence[float], b: Sequence[float], *, paired: bool) -> tuple[float, float] | None:
    """Standard error of mean(b) - mean(a) and its degrees of freedom; None where it cannot be estimated."""
    if paired:
        between = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
        if len(between) < 2 or not _varies(between):
            return None
        return float(np.std(between, ddof=1) / np.sqrt(len(between))), len(between) - 1
    if min(len(a), len(b)) < 2 or not (_varies(a) or _varies(b)):
        return None
    parts = np.array([np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)])
    freedom = parts.sum() ** 2 / (parts**2 / [len(a) - 1, len(b) - 1]).sum()  # Welch and Satterthwaite
    return float(np.sqrt(parts.sum())), float(freedom)


def _varies(values: Sequence[float] | np.ndarray) -> bool:
    """Whether values differ by more than rounding: differences of accuracies are not equal to the last bit."""
    return float(np.ptp(values)) > 1e-12 * max(1.0, float(np.max(np.abs(values))))


def _t_quantile(confidence: float, freedom: float) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, freedom))


def _ends(low: float | None, high: float | None) -> list[float] | None:
    return None if low is None or high is None else [low, high]
