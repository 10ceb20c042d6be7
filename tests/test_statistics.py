"""Intervals and tests: against published figures, and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cifarlab.statistics import (
    bootstrap_interval,
    difference,
    holm,
    mcnemar,
    prediction_interval,
    proportion_interval,
    seeds_needed,
    smallest_difference,
    summarize,
)

EXPERIMENTS = 2_000
PICTURES = 10_000

# Student's own data (1908, Biometrika 6:1, section VIII): hours of sleep gained by ten patients with two drugs.
DEXTRO = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
LAEVO = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

accuracies = st.lists(st.floats(0.1, 0.99), min_size=2, max_size=8)


def experiments(n: int, shared: float) -> list[tuple[list[float], list[float]]]:
    """Test accuracies of two recipes that are equally good, n seeds each, with a part that the seeds share."""
    draws = np.random.default_rng(n)
    seed_effect = draws.normal(0, shared, (EXPERIMENTS, 1, n))
    true = 0.85 + seed_effect + draws.normal(0, 0.004, (EXPERIMENTS, 2, n))
    measured = draws.binomial(PICTURES, true) / PICTURES
    return [(a.tolist(), b.tolist()) for a, b in measured]


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("paired", [True, False])
def test_at_no_true_difference_95_percent_intervals_cover_it_as_often_as_they_say(n, paired):
    found = [difference(a, b, paired=paired) for a, b in experiments(n, shared=0.004 if paired else 0.0)]
    covers = [each.low is not None and each.high is not None and each.low <= 0 <= each.high for each in found]
    assert 0.93 <= np.mean(covers) <= 0.97
    assert [each.p is not None and each.p >= 0.05 for each in found] == covers


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_of_a_mean_and_of_one_further_run_cover_what_they_should(n):
    draws = np.random.default_rng(n).normal(0.9, 0.01, (EXPERIMENTS, n + 1))
    of_mean = [summarize(row[:-1].tolist()) for row in draws]
    of_next = [prediction_interval(row[:-1].tolist()) for row in draws]
    assert 0.93 <= np.mean([each.low <= 0.9 <= each.high for each in of_mean]) <= 0.97
    covers_next = [low <= row[-1] <= high for (low, high), row in zip(of_next, draws, strict=True)]
    assert 0.93 <= np.mean(covers_next) <= 0.97


def test_students_own_data_gives_the_published_paired_interval():
    found = difference(DEXTRO, LAEVO, paired=True)
    assert found.mean == pytest.approx(1.58)
    assert (found.low, found.high) == (pytest.approx(0.7001, abs=1e-4), pytest.approx(2.4599, abs=1e-4))
    assert found.p == pytest.approx(0.002833, abs=1e-6)
    assert (found.n_a, found.n_b, found.paired) == (10, 10, True)


@given(accuracies, accuracies)
def test_differences_are_those_of_scipy(a, b):
    if np.ptp(a) < 1e-6 or np.ptp(b) < 1e-6:
        return
    found, expected = difference(a, b, paired=False), stats.ttest_ind(b, a, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.p == pytest.approx(expected.pvalue)


@given(accuracies)
def test_a_summary_is_that_of_scipy(values):
    found = summarize(values)
    assert found.mean == pytest.approx(np.mean(values))
    if found.low is not None:
        low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_spread():
    assert summarize([0.8]) == summarize([0.8], 0.9)
    assert (summarize([0.8]).sd, summarize([0.8]).low) == (None, None)
    assert prediction_interval([0.8]) is None
    alone = difference([0.8], [0.9, 0.91], paired=False)
    assert (alone.mean, alone.low, alone.high, alone.p) == (pytest.approx(0.105), None, None, None)
    assert difference([0.8], [0.9], paired=True).p is None


def test_differences_that_do_not_vary_claim_no_certainty():
    """Three pairs that differ by 0.05 each, but for rounding: an interval of no width would be a lie."""
    found = difference([0.10, 0.15, 0.20], [0.15, 0.20, 0.25], paired=True)
    assert (found.mean, found.low, found.p) == (pytest.approx(0.05), None, None)
    assert summarize([0.5, 0.5]).low is None and summarize([0.5, 0.5]).sd == 0.0


def test_mistakes_of_a_caller_are_told():
    with pytest.raises(ValueError, match="no values"):
        summarize([])
    with pytest.raises(ValueError, match="make no pairs"):
        difference([0.1], [0.1, 0.2], paired=True)


def test_the_prediction_interval_is_the_textbook_one():
    """Five values of mean 50.10 and deviation 1.31: 46.1 to 54.1 (Hahn and Meeker 1991, chapter 4)."""
    values = np.array([-1.2, -0.5, 0.1, 0.4, 1.2])
    values = 50.10 + 1.31 * (values - values.mean()) / values.std(ddof=1)
    low, high = prediction_interval(values.tolist())
    assert (round(low, 1), round(high, 1)) == (46.1, 54.1)


def test_wilsons_interval():
    """81 of 263: 0.2553 to 0.3662 (Newcombe 1998, Statistics in Medicine 17:857, table I)."""
    assert proportion_interval(81, 263) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert proportion_interval(0, 20)[0] == 0.0 and proportion_interval(20, 20)[1] == 1.0


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.6, 0.7]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_corrected_p_values_keep_their_order_and_never_fall(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    assert [adjusted[i] for i in np.argsort(p_values, kind="stable")] == sorted(adjusted)


def right(both: int, only_a: int, only_b: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, 10])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, 10])
    return a, b


def test_mcnemars_mid_p():
    """1 and 7 discordant pairs: exact 0.0703, mid-p 0.0391 (Fagerland and others 2013, table 1 and results)."""
    found = mcnemar(*right(1, 1, 7))
    assert (found.only_a, found.only_b, round(found.p, 4)) == (1, 7, 0.0391)
    assert mcnemar(*right(5, 0, 0)).p == mcnemar(*right(5, 3, 3)).p == 1.0
    assert mcnemar(*right(9, 7, 1)).p == found.p


def test_the_bootstrap_agrees_with_the_normal_interval_on_many_pictures_and_is_repeatable():
    values = np.random.default_rng(0).choice(
        [-1.0, -0.5, 0.0, 0.5, 1.0], 10_000, p=[0.03, 0.02, 0.88, 0.03, 0.04]
    )
    low, high = bootstrap_interval(values)
    margin = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - margin, abs=2e-4)
    assert high == pytest.approx(values.mean() + margin, abs=2e-4)
    assert (low, high) == bootstrap_interval(values[::-1])


def with_deviation(n: int, mean: float, sd: float) -> list[float]:
    values = np.linspace(-1, 1, n)
    return (mean + sd * values / values.std(ddof=1)).tolist()


def test_the_smallest_difference_is_that_of_the_power_tables():
    """n = 26 a side finds d = 0.8, n = 64 d = 0.5 (Cohen 1988, table 2.4.1); paired, 34 pairs find d = 0.5."""
    for n, d in ((26, 0.8), (64, 0.5)):
        found = smallest_difference(with_deviation(n, 0.8, 0.01), with_deviation(n, 0.9, 0.01), paired=False)
        assert found == pytest.approx(d * 0.01, rel=0.01)
    steady = with_deviation(34, 0.0, 0.01)
    assert smallest_difference([0.0] * 34, steady, paired=True) == pytest.approx(0.005, rel=0.01)
    assert smallest_difference([0.8], [0.9], paired=True) is None


def test_seeds_needed_are_those_of_the_power_tables():
    assert seeds_needed(0.008, 0.01) == 26 and seeds_needed(-0.005, 0.01) == 64
    assert seeds_needed(1e-6, 0.01) is None and seeds_needed(0.5, 0.001) == 2


def test_the_smallest_difference_is_found_four_times_in_five():
    draws = np.random.default_rng(5).normal(0.85, 0.004, (EXPERIMENTS, 2, 5))
    size = float(np.sqrt(2 / 5) * 0.004)
    exact = smallest_difference(with_deviation(5, 0.85, 0.004), with_deviation(5, 0.85, 0.004), paired=False)
    assert exact is not None and exact > 2 * size
    found = [difference(a.tolist(), (b + exact).tolist(), paired=False).p < 0.05 for a, b in draws]
    assert 0.76 <= np.mean(found) <= 0.84
