"""Whether a picture is like those that a network was trained on, told from its logits.

Sources: the energy, Liu and others, "Energy-based Out-of-distribution Detection", arXiv 2010.03759, section 3; the
largest logit, Hendrycks and others, "Scaling Out-of-Distribution Detection for Real-World Settings", arXiv 1911.11132.
"""

from typing import Literal

import numpy as np

Rule = Literal["energy", "max-logit"]
RULES: tuple[Rule, ...] = ("energy", "max-logit")


def score(logits: np.ndarray, rule: Rule) -> np.ndarray:
    """float64 (N,) of logits (N, classes): the lower, the less the picture is like the training pictures."""
    largest = logits.astype(np.float64).max(axis=1)
    if rule == "max-logit":
        return largest
    with np.errstate(invalid="ignore"):  # logits of a network that diverged
        return largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))  # minus the energy


def threshold_at(scores: np.ndarray, rate: float) -> float:
    """The score that the fraction `rate` of these scores, of pictures like the training pictures, are below."""
    return float(np.quantile(scores, rate))
