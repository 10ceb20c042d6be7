"""A run's answers with the pictures they are about: what every part of a page is made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cifarlab.calibration import with_mirror_images
from cifarlab.data import Source
from cifarlab.data.sources import DecodingProgress
from cifarlab.environment import choose_device
from cifarlab.errors import UserError
from cifarlab.evaluation import (
    Evaluation,
    evaluate,
    judged_before,
    load_answers,
    load_views,
    open_data,
    open_pictures,
)
from cifarlab.groups import check_same_pictures
from cifarlab.preparation import Preparation
from cifarlab.run import Run


@dataclass(frozen=True, eq=False)
class Judged:
    """One run on one split.

    Attributes:
        name: what the page calls it.
        logits: float64 (N, classes).
        labels: int64 (N,).
        images: uint8 (N, H, W, 3).
        source: the run's data, opened.
        held_out: logits and labels that a temperature is fitted to: of validation pictures that are apart from the test
            set, if there are any.
        model: in evaluation mode, on the device it works on.
    """

    name: str
    run: Run
    evaluation: Evaluation
    logits: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    source: Source
    held_out: tuple[np.ndarray, np.ndarray] | None
    model: nn.Module
    preparation: Preparation

    @cached_property
    def probabilities(self) -> np.ndarray:
        from scipy.special import softmax

        return softmax(self.logits, axis=1)

    @cached_property
    def predicted(self) -> np.ndarray:
        return self.logits.argmax(axis=1)

    @cached_property
    def sureness(self) -> np.ndarray:
        """float64 (N,), 0..1: the probability of the class that was answered."""
        return self.probabilities.max(axis=1)

    @property
    def is_right(self) -> np.ndarray:
        return self.predicted == self.labels

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def inputs(self, indices: np.ndarray) -> torch.Tensor:
        """Prepared pictures float32 (M, 3, H, W), as the network takes them."""
        images = torch.from_numpy(self.images[indices]).to(self.device).permute(0, 3, 1, 2)
        return self.preparation(images)


def judge(
    runs: Sequence[Run],
    split: str,
    weights: str | None,
    data: Source | None = None,
    data_dir: str | Path | None = None,
    decoding: DecodingProgress | None = None,
) -> tuple[Judged, ...]:
    """Every run on the same pictures; what `evaluate` has stored is used again.

    Raises:
        UserError: when the runs' pictures are not the same, a network's answers are not numbers, or one of them cannot
            be evaluated.
    """
    check_same_pictures(runs, split)
    return tuple(
        _judge(run, name, split, weights, data, data_dir, decoding)
        for run, name in zip(runs, _names(runs), strict=True)
    )


def _judge(
    run: Run,
    name: str,
    split: str,
    weights: str | None,
    data: Source | None,
    data_dir: str | Path | None,
    decoding: DecodingProgress | None,
) -> Judged:
    evaluation = judged_before(
        run, split=split, weights=weights, data=data, data_dir=data_dir, decoding=decoding
    )
    logits, labels = _as_arrays(run, split, evaluation.weights)
    if not np.isfinite(logits).all():
        raise UserError(
            f"{run.path}: the network's answers are not numbers, so there is nothing to report: it has diverged"
        )
    source = open_data(run, data, data_dir, decoding)
    held_out = None
    if run.recipe.data.validation not in ("none", "test"):
        evaluate(run, split="validation", weights=evaluation.weights, data=source)
        views, told = load_views(run, "validation", evaluation.weights)
        held_out = with_mirror_images(views.double().numpy(), told.numpy())
    device = choose_device(run.recipe.device.model_copy(update={"name": "auto"}))
    return Judged(
        name=name,
        run=run,
        evaluation=evaluation,
        logits=logits,
        labels=labels,
        images=open_pictures(run, split, evaluation.weights, command="report", data=source),
        source=source,
        held_out=held_out,
        model=run.load_model(evaluation.weights, str(device)),  # type: ignore[arg-type]
        preparation=run.load_preparation(evaluation.weights),  # type: ignore[arg-type]
    )


def _as_arrays(run: Run, split: str, weights: str) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = load_answers(run, split, weights)
    return logits.double().numpy(), labels.numpy()


def _names(runs: Sequence[Run]) -> list[str]:
    """The shortest kind of name that tells the runs apart: recipe, recipe and seed, folder, or path."""
    kinds = (
        [run.recipe.name for run in runs],
        [f"{run.recipe.name}, seed {run.recipe.seed}" for run in runs],
        [run.path.resolve().name for run in runs],
    )
    return next((names for names in kinds if len(set(names)) == len(runs)), [str(run.path) for run in runs])
