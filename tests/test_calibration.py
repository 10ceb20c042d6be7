import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.calibration import calibration_curve

from cifarlab.calibration import fit_temperature, measure_calibration


def drawn(seed: int, n: int, classes: int = 4, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose probabilities are true, times `scale`: above 1 they are too sure of themselves."""
    draws = np.random.default_rng(seed)
    logits = 2 * draws.standard_normal((n, classes))
    labels = np.array([draws.choice(classes, p=row) for row in softmax(logits, axis=1)])
    return scale * logits, labels


def test_the_bins_are_those_of_scikit_learn() -> None:
    logits, labels = drawn(0, 2_000)
    found = measure_calibration(logits, labels, bins=10)
    probabilities = softmax(logits, axis=1)
    right = probabilities.argmax(1) == labels
    accuracy, confidence = calibration_curve(right, probabilities.max(1), n_bins=10)
    filled = [each for each in found.bins if each.n]
    assert [each.accuracy for each in filled] == pytest.approx(accuracy)
    assert [each.confidence for each in filled] == pytest.approx(confidence)
    assert sum(each.n for each in found.bins) == 2_000


def test_the_error_by_hand() -> None:
    """Two pictures at 0.9, one of them right, and two at 0.6, both right: (2 * 0.4 + 2 * 0.4) / 4."""
    sure, unsure = np.log([0.9, 0.1]), np.log([0.6, 0.4])
    found = measure_calibration(np.array([sure, sure, unsure, unsure]), np.array([0, 1, 0, 0]))
    assert found.expected_error == pytest.approx(0.4)
    assert found.loss == pytest.approx(-np.log([0.9, 0.1, 0.6, 0.6]).mean())


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_the_logits_too_large(scale: float) -> None:
    logits, labels = drawn(1, 20_000, scale=scale)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(scale, rel=0.05)
    before, after = measure_calibration(logits, labels), measure_calibration(logits, labels, temperature)
    assert after.expected_error < 0.02
    assert after.loss <= before.loss
    if scale == 3.0:
        assert before.expected_error > 0.1


@given(st.integers(0, 1_000), st.integers(1, 60), st.integers(2, 12), st.floats(0.1, 30))
def test_the_error_is_a_share_whatever_the_logits(seed: int, n: int, classes: int, scale: float) -> None:
    logits, labels = drawn(seed, n, classes, scale)
    found = measure_calibration(logits, labels)
    assert 0.0 <= found.expected_error <= 1.0
    assert sum(each.n for each in found.bins) == n
    assert 0.05 <= fit_temperature(logits, labels) <= 20.0


def test_a_probability_of_one_has_its_bin() -> None:
    found = measure_calibration(np.array([[1e4, 0.0]]), np.array([0]))
    assert found.bins[-1].n == 1 and found.expected_error == 0.0
