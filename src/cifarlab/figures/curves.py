"""Learning curves: of one run, and of groups of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifarlab.figures.style import (
    BLUE,
    FACE,
    INK,
    ORANGE,
    PALE_INK,
    SERIES_COLOURS,
    accuracy_axis,
    add_title,
    new_figure,
    plain_axes,
)

MARKED_EPOCHS = 30  # with more, a marker at each epoch hides the line
WILD = 8.0  # times all other epochs: losses above this are left off the scale
WILD_SHARE = 0.05  # of the epochs that may be left off; of few epochs two, or one
DASHES = ("-", (0, (6, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (8, 2, 1, 2, 1, 2)))
LONGEST_LABEL, LONGEST_OF_TWO_LABELS = 58, 28  # characters that fit the width, one or two side by side
MOST_WITH_TRAINING = 2  # groups: with more, only validation is drawn

Rows = Sequence[Mapping[str, Any]]


def learning_curves(
    rows: Rows,
    *,
    title: str,
    best_epoch: int | None = None,
    validation_name: str = "validation",
) -> Figure:
    """Loss above, accuracy below, against epochs from 1: training in blue, validation in orange.

    Losses of a few epochs that are far above all others are left off the scale, and said.

    Args:
        rows: lines of metrics.jsonl: `epoch`, `train_loss`, `train_accuracy`, `validation_loss`,
            `validation_accuracy` (0..1). A value that is None or not finite leaves a gap; a line without any
            value is left out.
        title: over the figure.
        best_epoch: the epoch of the lowest validation loss, to mark it; None for no mark.
        validation_name: what the orange line is; "test" is shown as "test (used as validation)".
    """
    figure, loss, accuracy = _two_panels(title)
    if validation_name == "test":
        validation_name = "test (used as validation)"
    epochs = [row["epoch"] for row in rows]
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        for part, name, colour in (("train", "train", BLUE), ("validation", validation_name, ORANGE)):
            values = _finite([row.get(f"{part}_{quantity}") for row in rows])
            if np.isfinite(values).any():
                marker = "o" if len(rows) <= MARKED_EPOCHS else ""
                axes.plot(
                    epochs, values, color=colour, label=name, linewidth=1.8, marker=marker, markersize=4
                )
    _finish_panels(figure, loss, accuracy, epochs)
    _mark_best(loss, accuracy, rows, best_epoch)
    return figure


def group_curves(groups: Mapping[str, Sequence[Rows]], *, title: str, note: str = "") -> Figure:
    """Validation loss and accuracy of several groups: a line for the mean, a band from the lowest run to the highest.

    A group without validation, and with two groups at most every group, also has its training curve, thin and pale.

    Args:
        groups: by name, the lines of metrics.jsonl of each of a group's runs. A mean is over all runs of the group, and
            ends where its shortest run ends.
        note: a line beneath the figure.
    """
    labels = {name: _label(name, len(runs)) for name, runs in groups.items()}
    columns = 2 if max(map(len, labels.values())) <= LONGEST_OF_TWO_LABELS else 1
    figure, loss, accuracy = _two_panels(title, legend_lines=math.ceil(len(groups) / columns), note=note)
    epochs: list[int] = []
    for number, (name, runs) in enumerate(groups.items()):
        length = min(len(rows) for rows in runs)
        shown = [row["epoch"] for row in runs[0][:length]]
        epochs = max(epochs, shown, key=len)
        colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
        dash = DASHES[(number + number // len(SERIES_COLOURS)) % len(DASHES)]
        for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
            label = labels[name]
            for part in ("validation", "train"):
                values = np.stack(
                    [_finite([r.get(f"{part}_{quantity}") for r in rows[:length]]) for rows in runs]
                )
                if not np.isfinite(values).any():
                    continue
                if label or len(groups) <= MOST_WITH_TRAINING:
                    _draw_group(axes, shown, values, colour, dash, label, is_main=bool(label))
                label = ""
    _finish_panels(figure, loss, accuracy, epochs, columns)
    if len(groups) > MOST_WITH_TRAINING:
        loss.set_ylabel("validation loss")
        accuracy.set_ylabel("validation accuracy")
    return figure


def _label(name: str, n_runs: int) -> str:
    count = f" ({n_runs} runs)" if n_runs > 1 else ""
    room = LONGEST_LABEL - len(count)
    return (name if len(name) <= room else name[: room - 1] + "…") + count


def _draw_group(
    axes: Axes, epochs: list[int], values: np.ndarray, colour: str, dash: Any, label: str, *, is_main: bool
) -> None:
    """`values` (runs, epochs): their mean, and, for the main curve of a group, the range over its runs."""
    marker = "o" if len(epochs) <= 2 else ""
    axes.plot(
        epochs,
        values.mean(axis=0),
        color=colour,
        linestyle=dash,
        label=label or "_training",
        linewidth=1.8 if is_main else 1.0,
        alpha=1.0 if is_main else 0.55,
        marker=marker,
    )
    if is_main and len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)


def _two_panels(title: str, legend_lines: int = 1, note: str = "") -> tuple[Figure, Axes, Axes]:
    below = 0.3 if note else 0.0
    height = 7.6 + 0.27 * (legend_lines - 1) + below
    figure = new_figure(8.0, height)
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    above = 0.87 + 0.27 * (legend_lines - 1)
    figure.subplots_adjust(
        left=0.095, right=0.97, top=1 - above / height, bottom=(0.57 + below) / height, hspace=0.09
    )
    add_title(figure, title, left=0.095, top=1 - 0.19 / height)
    if note:
        figure.text(0.095, 0.14 / height, note, fontsize=10, color=PALE_INK, parse_math=False)
    return figure, loss, accuracy


def _finish_panels(
    figure: Figure, loss: Axes, accuracy: Axes, epochs: Sequence[int], legend_columns: int = 2
) -> None:
    plain_axes(loss)
    plain_axes(accuracy)
    loss.set_ylabel("loss")
    accuracy.set_ylabel("accuracy")
    accuracy.set_xlabel("epoch")
    loss.yaxis.set_label_coords(-0.075, 0.5)
    accuracy.yaxis.set_label_coords(-0.075, 0.5)
    _epoch_axis(accuracy, epochs)
    accuracy_axis(accuracy)
    _loss_axis(loss)
    handles, names = loss.get_legend_handles_labels()
    if not handles:
        return
    legend = figure.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(0.088, loss.get_position().y1 + 0.002),
        ncols=legend_columns,
        frameon=False,
        fontsize=11,
    )
    for text in legend.get_texts():
        text.set(color=INK, parse_math=False)


def _finite(values: Sequence[float | None]) -> np.ndarray:
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _epoch_axis(axes: Axes, epochs: Sequence[int]) -> None:
    """Whole epochs from the first, 1, to the last; room at the sides for one epoch alone."""
    if not epochs:
        axes.set_xticks([])
        return
    first, last = min(epochs), max(epochs)
    ticks = MaxNLocator(nbins=12, steps=[1, 2, 2.5, 5, 10], integer=True).tick_values(first, last)
    axes.set_xticks([first, *(int(tick) for tick in ticks if first < tick <= last)])
    margin = max(0.5 if last - first < 2 else 0.0, 0.012 * (last - first))
    axes.set_xlim(first - margin, last + margin)


def _loss_axis(axes: Axes) -> None:
    """From 0, and not so high that a few wild epochs press the rest of the curves flat: those are told in words."""
    lines = [np.array(line.get_data(), dtype=float) for line in axes.get_lines()]
    bands = [np.asarray(path.vertices).T for band in axes.collections for path in band.get_paths()]
    points = np.concatenate([*lines, *bands], axis=1) if lines else np.zeros((2, 0))
    points = points[:, np.isfinite(points[1])]
    if not points.size or points[1].min() < 0:
        return
    top = _top_of_scale(points)
    axes.set_ylim(0.0, 1.13 * top if top > 0 else 1.0)  # room for the words on the best epoch
    hidden = points[:, points[1] > top]
    if hidden.size:
        epoch, highest = hidden[:, hidden[1].argmax()]
        n = len(set(hidden[0]))
        more = f" ({n} epochs)" if n > 1 else ""
        words = f"off the scale: up to {highest:,.4g} at epoch {epoch:.0f}{more}"
        axes.plot(
            hidden[0], np.full(hidden.shape[1], 1.03 * top), "^", color=INK, markersize=6, clip_on=False
        )
        box = {"facecolor": FACE, "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
        style: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": 10, "color": INK, "bbox": box}
        axes.text(0.985, 0.86, f"▲ {words}", transform=axes.transAxes, **style)


def _top_of_scale(points: np.ndarray) -> float:
    """The highest of `points` (2, N), epochs and losses; without the wildest epochs, where those are far above it."""
    highest = sorted((max(points[1, points[0] == epoch]) for epoch in set(points[0])), reverse=True)
    calm = highest[max(1, min(2, len(highest) // 4), round(WILD_SHARE * len(highest))) :]
    if not calm or highest[0] <= WILD * calm[0]:
        return float(highest[0])
    return float(max(value for value in highest if value <= WILD * calm[0]))


def _mark_best(loss: Axes, accuracy: Axes, rows: Rows, best_epoch: int | None) -> None:
    row = next((row for row in rows if row["epoch"] == best_epoch), None)
    if row is None:
        return
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        axes.axvline(row["epoch"], color=PALE_INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1.5)
        value = row.get(f"validation_{quantity}")
        if value is None or not np.isfinite(value):
            continue
        limits = axes.get_ylim()
        axes.plot(
            [row["epoch"]],
            [value],
            "o",
            color=ORANGE,
            markersize=8,
            markeredgecolor=FACE,
            markeredgewidth=1.5,
        )
        if quantity == "loss":
            words = f"best epoch {row['epoch']}: {value:.4f}"
        else:
            words = f"epoch {row['epoch']}, of the lowest loss: {value:.2%}".replace("%", " %")
        _label_epoch(axes, row["epoch"], words, at_top=quantity == "loss")
        axes.set_ylim(limits)


def _label_epoch(axes: Axes, epoch: int, words: str, *, at_top: bool) -> None:
    right_half = epoch > np.mean(axes.get_xlim())
    axes.annotate(
        words,
        (epoch, 0.97 if at_top else 0.04),
        xycoords=("data", "axes fraction"),
        xytext=(-7 if right_half else 7, 0),
        textcoords="offset points",
        ha="right" if right_half else "left",
        va="top" if at_top else "bottom",
        fontsize=10.5,
        color=INK,
        bbox={"facecolor": FACE, "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
    )
