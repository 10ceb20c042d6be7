"""The figures that `cifarlab figure` draws: where the data of each come from. Each function gathers, and draws one.

Test pictures come from `evaluation.open_pictures`, which records what they were opened for, and what was predicted
from the logits that `evaluate` stores: nothing is chosen by either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cifarlab.data import Source
from cifarlab.errors import UserError
from cifarlab.figures.confusion import confusion_matrix
from cifarlab.figures.curves import MOST_WITH_TRAINING, group_curves
from cifarlab.figures.grids import class_rows, picture_blocks, picture_grid, predicted_pictures
from cifarlab.figures.probabilities import picture_probabilities
from cifarlab.recipe import Augment
from cifarlab.recipes import get_recipe
from cifarlab.run import Run
from cifarlab.text import count

SPLITS = {"test": "test", "validation": "validation", "train": "training"}


def pictures(
    source: Source, *, rows: int = 3, columns: int = 3, random: bool = False, seed: int = 0
) -> Figure:
    """The first training pictures, or some drawn by `seed`, with their names."""
    train = source.load("train")
    chosen = _choose(len(train.labels), rows * columns, random, seed)
    what = f"{'random' if random else 'the first'} training pictures"
    return picture_grid(
        train.images[chosen], train.labels[chosen], source.classes, rows, columns, f"{source.name}: {what}"
    )


def classes(source: Source, *, per_class: int = 10, seed: int = 0) -> Figure:
    """Training pictures of every class, a row each."""
    train = source.load("train")
    title = f"{source.name}: training pictures of each class"
    return class_rows(train.images, train.labels, source.classes, per_class, seed, title)


def augmented(
    source: Source,
    *,
    recipe: str,
    rows: int = 3,
    columns: int = 3,
    versions: int = 1,
    random: bool = False,
    seed: int = 0,
) -> Figure:
    """Training pictures beside what the augmentation of `recipe` makes of them."""
    augment = get_recipe(recipe).augment
    if augment.changes_nothing:
        raise UserError(f"{recipe} augments nothing: give a recipe that does, such as --recipe vgg3-aug")
    train = source.load("train")
    images = train.images[_choose(len(train.labels), rows * columns, random, seed)]
    blocks = {"original": images}
    for version in range(versions):
        caption = "augmented" if versions == 1 else f"augmented, {version + 1}"
        blocks[caption] = _changed(images, augment, seed + version)
    return picture_blocks(blocks, rows, columns, f"{source.name}: the augmentation of {recipe}")


def predictions(
    run: Run,
    *,
    rows: int = 4,
    columns: int = 8,
    random: bool = False,
    seed: int = 0,
    split: str = "test",
    weights: str | None = None,
    data: Source | None = None,
    data_dir: Path | None = None,
) -> Figure:
    """Pictures with what was predicted and, in brackets, what is true."""
    images, labels, logits = _judged(run, "predictions", split, weights, data, data_dir)
    chosen = _choose(len(labels), rows * columns, random, seed)
    predicted = logits[chosen].argmax(axis=1)
    right = int((predicted == labels[chosen]).sum())
    what = f"{len(chosen)} {'random' if random else 'first'} {SPLITS[split]} pictures"
    title = f"{_about(run)}: {what}, predicted (true), {right} right"
    return predicted_pictures(images[chosen], labels[chosen], predicted, run.classes, rows, columns, title)


def probabilities(
    run: Run,
    *,
    rows: int = 1,
    index: int = 0,
    split: str = "test",
    weights: str | None = None,
    data: Source | None = None,
    data_dir: Path | None = None,
) -> Figure:
    """Pictures from number `index` on, each beside the probabilities of the classes."""
    images, labels, logits = _judged(run, "probabilities", split, weights, data, data_dir)
    if index >= len(labels):
        raise UserError(
            f"--index {index} is beyond the last of {len(labels):,} {split} pictures, {len(labels) - 1}"
        )
    chosen = np.arange(index, min(index + rows, len(labels)))
    shifted = np.exp(logits[chosen] - logits[chosen].max(axis=1, keepdims=True))
    chances = shifted / shifted.sum(axis=1, keepdims=True)
    numbers = f"picture {index}" if len(chosen) == 1 else f"pictures {index} to {chosen[-1]}"
    title = f"{_about(run)}: {SPLITS[split]} {numbers}"
    return picture_probabilities(images[chosen], chances, labels[chosen], run.classes, title)


def confusion(
    run: Run,
    *,
    split: str = "test",
    weights: str | None = None,
    data: Source | None = None,
    data_dir: Path | None = None,
) -> Figure:
    """The confusion matrix; of a record, which has no weights any more, the one that was written down."""
    from cifarlab.evaluation import judged_before

    chosen = weights or run.default_weights
    recorded = run.evaluations.get(split, {}).get(chosen)
    if recorded is None or run.weights_path(chosen).exists():  # type: ignore[arg-type]
        recorded = judged_before(run, split=split, weights=weights, data=data, data_dir=data_dir).to_dict()
    title = (
        f"{_about(run)}: {recorded['n']:,} {SPLITS[split]} pictures, {100 * recorded['accuracy']:.2f} % right"
    )
    return confusion_matrix(np.asarray(recorded["confusion"]), run.classes, title)


def curves(runs: Sequence[Run]) -> Figure:
    """Learning curves of one run, or the mean and the range of each group of runs."""
    from cifarlab.groups import group_runs

    for run in runs:
        if not run.metrics:
            raise UserError(f"{run.path} has not finished an epoch: there is no curve to draw")
    if len(runs) == 1:
        return runs[0].draw_curves()
    groups = group_runs(runs)
    tested = {group.name for group in groups if group.runs[0].recipe.data.validation == "test"}
    by_name = {
        group.name + (" †" if group.name in tested else ""): [run.metrics for run in group.runs]
        for group in groups
    }
    notes = (
        ["line: mean of the runs, band: from the lowest to the highest"] if len(runs) > len(groups) else []
    )
    if len(groups) <= MOST_WITH_TRAINING:
        notes.append("thin and pale: training")
    if tested:
        notes.append("† validation is the test set")
    if len(groups) == 1:
        seeds = ", ".join(str(run.recipe.seed) for run in groups[0].runs)
        what, of = groups[0].name, f"seeds {seeds}"
    else:
        what, of = count(len(groups), "group"), count(len(runs), "run")
    on = " and ".join(dict.fromkeys(run.data["name"] for run in runs))
    return group_curves(by_name, title=f"{what} on {on}, {of}", note="; ".join(notes))


OF_DATA: dict[str, Callable[..., Figure]] = {"pictures": pictures, "classes": classes, "augmented": augmented}
OF_A_RUN: dict[str, Callable[..., Figure]] = {
    "predictions": predictions,
    "probabilities": probabilities,
    "confusion": confusion,
}


def _choose(n: int, wanted: int, random: bool, seed: int) -> np.ndarray:
    """Numbers of the first pictures of `n`, or of some drawn by `seed`, each once."""
    if random:
        return np.random.default_rng(seed).permutation(n)[:wanted]
    return np.arange(min(n, wanted))


def _changed(images: np.ndarray, augment: Augment, seed: int) -> np.ndarray:
    """uint8 (N, H, W, 3), as training changes them. A square that is cut out is shown in grey."""
    import torch

    from cifarlab.data.augment import apply, cut_out, draw

    draws = draw(augment, len(images), *images.shape[1:3], seed=seed)
    assert draws is not None
    moved = apply(torch.from_numpy(images).permute(0, 3, 1, 2), draws).float()
    shown = cut_out(moved - 128, draws, augment.cutout) + 128
    return shown.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _judged(
    run: Run,
    name: str,
    split: str,
    weights: str | None,
    data: Source | None,
    data_dir: Path | None,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Pictures uint8 (N, H, W, 3), labels int64 (N,) and logits float64 (N, classes) of a split."""
    from cifarlab.evaluation import judged_before, load_answers, open_pictures

    used = judged_before(run, split=split, weights=weights, data=data, data_dir=data_dir).weights
    logits, labels = load_answers(run, split, used)
    images = open_pictures(run, split, used, command=f"figure {name}", data=data, data_dir=data_dir)
    return images, labels.numpy(), logits.double().numpy()


def _about(run: Run) -> str:
    return f"{run.recipe.name} on {run.data['name']}, seed {run.recipe.seed}"
