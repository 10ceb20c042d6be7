"""Pictures whose label is probably wrong, found by a network that was not trained on them: confident learning.

Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", arXiv 1911.00068,
sections 3.1 (equations 1 to 3) and 3.2 (method 2, C_confusion).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """Pictures to look at, the most doubtful label first.

    Attributes:
        indices: int64 (M,), places in the split.
        suggested: int64 (M,), the class that each confidently belongs to.
        margins: float64 (M,), -1..1: probability of the label minus that of the likeliest other class.
        estimated_share: of all labels, the share estimated to be wrong, 0..1.
    """

    indices: np.ndarray
    suggested: np.ndarray
    margins: np.ndarray
    estimated_share: float


def find_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Off-diagonal pictures of the confident joint, by margin.

    A class's threshold is the mean probability that its own pictures give it, so that a network that is too sure, or
    not sure enough, of a class is corrected for.

    Args:
        probabilities: float (N, classes), from a network that was not trained on these pictures.
        labels: int (N,).
    """
    probabilities = probabilities.astype(np.float64)
    confident = _confident_classes(probabilities, labels)
    doubtful = np.flatnonzero((confident >= 0) & (confident != labels))
    given = probabilities[doubtful, labels[doubtful]]
    others = probabilities[doubtful].copy()
    others[np.arange(len(doubtful)), labels[doubtful]] = -np.inf
    margins = given - others.max(axis=1, initial=-np.inf)
    order = np.argsort(margins, kind="stable")
    share = _estimated_share(confident, labels, probabilities.shape[1])
    return LabelErrors(doubtful[order], confident[doubtful][order], margins[order], share)


def _confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int64 (N,): of the classes whose threshold a picture reaches, the most probable; -1 where it reaches none."""
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    own = np.bincount(labels, weights=probabilities[np.arange(len(labels)), labels], minlength=len(counts))
    thresholds = np.where(
        counts > 0, own / np.maximum(counts, 1), np.inf
    )  # no picture, no threshold to reach
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where(reached.max(axis=1) >= 0.0, reached.argmax(axis=1), -1).astype(np.int64)


def _estimated_share(confident: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """1 minus the diagonal of the joint of given and true labels (equation 3)."""
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels[confident >= 0], confident[confident >= 0]), 1.0)
    counted = np.bincount(labels, minlength=classes).astype(float)
    rows = joint.sum(axis=1)
    right = np.where(rows > 0, joint.diagonal() / np.maximum(rows, 1.0), 1.0)
    joint_total = counted.sum()
    return float(1.0 - (right * counted).sum() / joint_total) if joint_total else 0.0
