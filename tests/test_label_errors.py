import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifarlab.label_errors import find_label_errors


def drawn(seed: int, n: int, classes: int, sharpness: float, wrong: float) -> tuple[np.ndarray, ...]:
    """Probabilities, labels of which a share is wrong, and which those are."""
    draws = np.random.default_rng(seed)
    true = draws.integers(0, classes, n)
    labels, flipped = true.copy(), draws.random(n) < wrong
    labels[flipped] = draws.integers(0, classes, flipped.sum())
    logits = draws.normal(size=(n, classes))
    logits[np.arange(n), true] += sharpness
    odds = np.exp(logits)
    return odds / odds.sum(1, keepdims=True), labels, labels != true


def test_the_same_pictures_as_cleanlab() -> None:
    """cleanlab 2.9.0, compute_confident_joint(..., return_indices_of_off_diagonals=True) on the same drawing."""
    probabilities, labels, _ = drawn(7, 60, 3, 1.5, 0.15)
    found = find_label_errors(probabilities, labels)
    assert sorted(found.indices.tolist()) == [3, 10, 11, 16, 21, 27, 32, 35, 58, 59]
    assert found.estimated_share == pytest.approx(0.2333, abs=0.01)  # cleanlab rounds counts to whole numbers


def test_wrong_labels_are_found_and_come_first() -> None:
    probabilities, labels, wrong = drawn(0, 2_000, 5, 6.0, 0.1)
    found = find_label_errors(probabilities, labels)
    assert wrong[found.indices[:100]].mean() > 0.95
    assert wrong[found.indices].sum() > 0.8 * wrong.sum()
    assert found.estimated_share == pytest.approx(wrong.mean(), abs=0.02)
    assert (np.diff(found.margins) >= 0).all()
    assert (found.suggested == probabilities[found.indices].argmax(1)).mean() > 0.95


def test_a_network_that_is_sure_of_one_class_only_is_corrected_for() -> None:
    """Class 1 never gets more than 0.4, so that plain 'most probable' would call all its pictures wrong."""
    probabilities = np.array([[0.9, 0.1]] * 5 + [[0.6, 0.4]] * 4 + [[0.95, 0.05]])
    labels = np.array([0] * 5 + [1] * 5)
    assert find_label_errors(probabilities, labels).indices.tolist() == [9]


@given(st.integers(0, 1_000), st.integers(1, 40), st.integers(2, 9))
def test_whatever_the_drawing(seed: int, n: int, classes: int) -> None:
    probabilities, labels, _ = drawn(seed, n, classes, 1.0, 0.3)
    found = find_label_errors(probabilities, labels)
    assert (found.suggested != labels[found.indices]).all()
    assert len(set(found.indices.tolist())) == len(found.indices)
    assert 0.0 <= found.estimated_share <= 1.0
