"""Figures: each one function, data in, matplotlib `Figure` out. Nothing draws on a screen or keeps state.

Every figure has an opaque white face, so that it reads the same on a page of any colour. Colours are those of
Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with any kind of colour vision tell apart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from cifarlab.errors import UserError, nearest, one_of
from cifarlab.files import write_atomic

BLUE, ORANGE = "#0072B2", "#D55E00"
SERIES_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
SERIES_MARKERS = ("o", "s", "^", "v", "P", "X")
INK, PALE_INK, LINE, FACE = "#222222", "#5A5A5A", "#DDDDDD", "#FFFFFF"
RESOLUTION_DPI = 144
FORMATS = ("png", "svg", "pdf")
MARKED_EPOCHS = 30  # with more, a marker at each epoch hides the line
NAME: dict[str, Any] = {"fontsize": 11, "color": INK, "parse_math": False}
LONGEST_NAME = 14  # characters of a class name that fit a picture's width
# Without dates, so that the same figure is the same file wherever the format allows it.
METADATA: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Interval:
    """A row of `intervals`: a mean, its interval, and the values that it is the mean of."""

    name: str
    mean: float
    low: float | None = None
    high: float | None = None
    values: Sequence[float] = ()
    marked: bool = False


def learning_curves(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    best_epoch: int | None = None,
    validation_name: str = "validation",
) -> Figure:
    """Loss above, accuracy below, against epochs from 1: training in blue, validation in orange.

    Args:
        rows: lines of metrics.jsonl: `epoch`, `train_loss`, `train_accuracy`, `validation_loss`,
            `validation_accuracy` (0..1). A value that is None or not finite leaves a gap; a line without any
            value is left out.
        title: over the figure.
        best_epoch: the epoch to mark, None for none.
        validation_name: what the orange line is; "test" is shown as "test (used as validation)".
    """
    figure = _new_figure(8.0, 7.6)
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    figure.subplots_adjust(left=0.095, right=0.97, top=0.885, bottom=0.075, hspace=0.09)
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
        _plain_axes(axes)
    loss.set_ylabel("loss")
    accuracy.set_ylabel("accuracy")
    accuracy.set_xlabel("epoch")
    loss.yaxis.set_label_coords(-0.075, 0.5)
    accuracy.yaxis.set_label_coords(-0.075, 0.5)
    _epoch_axis(accuracy, epochs)
    _accuracy_axis(accuracy)
    _loss_axis(loss)
    _mark_best(loss, accuracy, rows, best_epoch)
    _title(figure, title, left=0.095, top=0.975)
    handles, names = loss.get_legend_handles_labels()
    if handles:
        legend = figure.legend(
            handles,
            names,
            loc="lower left",
            bbox_to_anchor=(0.088, 0.887),
            ncols=2,
            frameon=False,
            fontsize=11,
        )
        for text in legend.get_texts():
            text.set_color(INK)
    return figure


def values_against(
    lines: Mapping[str, Sequence[tuple[Any, Sequence[float]]]],
    *,
    x_name: str,
    y_name: str,
    title: str,
    published: Sequence[tuple[Any, float]] = (),
) -> Figure:
    """Accuracies 0..1 against a setting, a line for each of `lines`: its mean, and each run as a dot.

    Args:
        lines: by name, points (x, the accuracy of each run there); a point without runs is left out.
        published: (x, accuracy) as a source reports it.
    """
    places = _places([x for points in lines.values() for x, _ in points])
    below = 0.28 * (len(lines) + bool(published)) if len(lines) > 1 or published else 0.0
    height = 5.2 + below
    figure = _new_figure(8.0, height)
    axes = figure.add_axes((0.095, (0.75 + below) / height, 0.875, (height - 1.45 - below) / height))
    for index, (name, points) in enumerate(lines.items()):
        seen = [(places[str(x)], values) for x, values in points if len(values)]
        colour, marker = (
            SERIES_COLOURS[index % len(SERIES_COLOURS)],
            SERIES_MARKERS[index % len(SERIES_MARKERS)],
        )
        axes.plot(
            [x for x, _ in seen],
            [float(np.mean(values)) for _, values in seen],
            color=colour,
            marker=marker,
            markersize=7,
            linewidth=1.8,
            label=name,
        )
        dots = [(x, value) for x, values in seen if len(values) > 1 for value in values]
        axes.plot([x for x, _ in dots], [y for _, y in dots], "o", color=colour, markersize=4, alpha=0.45)
    if published:
        axes.plot(
            [places[str(x)] for x, _ in published],
            [value for _, value in published],
            "D--",
            color=INK,
            markerfacecolor=FACE,
            markersize=8,
            linewidth=1.2,
            label="published",
        )
    _plain_axes(axes)
    names = [f"{int(name):,}" if name.isdigit() else name for name in places]
    axes.set_xticks(list(places.values()), names, fontsize=10.5)
    axes.margins(x=0.06)
    _accuracy_axis(axes)
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    _title(figure, title, left=0.095, top=1 - 0.2 / height)
    if below:
        legend = figure.legend(
            loc="lower left", bbox_to_anchor=(0.085, 0.06 / height), frameon=False, fontsize=11
        )
        for words in legend.get_texts():
            words.set_color(INK)
    return figure


def _places(values: Sequence[Any]) -> dict[str, float]:
    """Where on the axis each value stands: in proportion, in proportion of logarithms, or one after the other."""
    different = list(dict.fromkeys(values))
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in different):
        return {str(value): float(index) for index, value in enumerate(different)}
    ordered = sorted(different)
    wide = ordered[0] > 0 and ordered[-1] >= 20 * ordered[0]
    return {str(value): float(np.log10(value)) if wide else float(value) for value in ordered}


def picture_grid(
    images: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    rows: int = 3,
    columns: int = 3,
    title: str = "",
) -> Figure:
    """The first `rows` x `columns` of `images`, uint8 (N, H, W, 3), each with its class name beneath it.

    `labels` is int (N,), an index into `classes`. With fewer images than places the last places stay empty.
    """
    cell, gap, names, above = 1.5, 0.12, 0.3, 0.55 if title else 0.15  # inches
    width, height = columns * cell + 0.3, rows * (cell + names) + above
    figure, axes = _canvas(width, height)
    side = cell - gap
    for index in range(min(rows * columns, len(images))):
        row, column = divmod(index, columns)
        left, bottom = 0.15 + gap / 2 + column * cell, height - above - row * (cell + names) - side
        _place_picture(axes, images[index], left, bottom, side)
        name = _shortened(classes[int(labels[index])])
        axes.text(left + side / 2, bottom - 0.06, name, ha="center", va="top", **NAME)
    if title:
        _title(figure, title, left=0.21 / width, top=1 - 0.17 / height)
    return figure


def class_rows(
    images: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    per_class: int = 10,
    seed: int = 0,
    title: str = "",
) -> Figure:
    """`per_class` images of each class in a row of its own, drawn by `seed`; the class name at the left.

    `images` is uint8 (N, H, W, 3), `labels` int (N,), an index into `classes`. A class with fewer shows all.
    """
    cell, gap, above = 0.72, 0.06, 0.55 if title else 0.15  # inches
    names = 0.35 + 0.095 * max(len(_shortened(name)) for name in classes)
    width, height = names + per_class * cell + 0.15, len(classes) * cell + above + 0.1
    figure, axes = _canvas(width, height)
    side = cell - gap
    generator = np.random.default_rng(seed)
    for row, name in enumerate(classes):
        bottom = height - above - row * cell - side
        axes.text(names - 0.12, bottom + side / 2, _shortened(name), ha="right", va="center", **NAME)
        chosen = generator.permutation(np.flatnonzero(labels == row))[:per_class]
        for column, index in enumerate(chosen):
            _place_picture(axes, images[index], names + column * cell, bottom, side)
    if title:
        _title(figure, title, left=0.2 / width, top=1 - 0.17 / height)
    return figure


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], title: str = "") -> Figure:
    """Counts in the cells; colour: the share of a true class (row) that was taken for a class (column).

    `matrix` is int (classes, classes), `matrix[true][predicted]`.
    """
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    many = len(classes)
    # In inches: the cells, then room for the names at the left, the names above, and the scale at the right.
    cells = max(0.56 * many, 3.0)
    longest = max(len(_shortened(name)) for name in classes)
    left, right, below, above = 0.6 + 0.09 * longest, 1.0, 0.3, 0.85 + 0.07 * longest
    width, height = left + cells + right, below + cells + above
    figure = _new_figure(width, height)
    axes = figure.add_axes((left / width, below / height, cells / width, cells / height))
    drawn = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="equal")
    names = [_shortened(name) for name in classes]
    axes.set_yticks(range(many), names, **NAME)
    axes.set_xticks(range(many), names, rotation=45, ha="left", **NAME)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", which="both", pad=2)
    for label in axes.get_xticklabels():
        label.set_rotation_mode("anchor")
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(many - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(many - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=FACE, linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    for true in range(many):
        for predicted in range(many):
            count = int(counts[true, predicted])
            if count:
                dark = shares[true, predicted] > 0.55
                axes.text(
                    predicted,
                    true,
                    str(count),
                    ha="center",
                    va="center",
                    fontsize=10,
                    color=FACE if dark else INK,
                )
    axes.set_ylabel("true class", fontsize=11, color=PALE_INK)
    axes.set_xlabel("predicted class", fontsize=11, color=PALE_INK)
    axes.xaxis.set_label_position("top")
    scale = figure.add_axes(((left + cells + 0.15) / width, below / height, 0.15 / width, cells / height))
    bar = figure.colorbar(drawn, cax=scale, format=PercentFormatter(xmax=1.0, decimals=0, symbol=" %"))
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=10, labelcolor=PALE_INK, length=0)
    bar.set_label("of the true class", fontsize=10, color=PALE_INK)
    if title:
        _title(figure, title, left=0.2 / width, top=1 - 0.15 / height)
    return figure


def intervals(
    groups: Sequence[Interval], differences: Sequence[Interval], *, title: str, level: str = "95 %"
) -> Figure:
    """Accuracies of groups above, differences of pairs below: every run a dot, means, and their intervals.

    Accuracies and differences are 0..1, and drawn in per cent and in points. A difference that is marked is orange.
    """
    above, between, below, row = 0.75, 0.95, 0.75, 0.42  # inches
    heights = [row * max(len(part), 1) + 0.15 for part in (groups, differences)]
    height = above + sum(heights) + between + below
    figure = _new_figure(8.0, height)
    left, width = 0.34, 0.62
    upper = figure.add_axes((left, (height - above - heights[0]) / height, width, heights[0] / height))
    lower = figure.add_axes((left, below / height, width, heights[1] / height))
    for axes, rows in ((upper, groups), (lower, differences)):
        _draw_intervals(axes, rows)
    lower.axvline(0.0, color=INK, linewidth=1.0, zorder=1.5)
    upper.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.4g}" if value else "0"))
    upper.set_xlabel(f"accuracy: each run, mean, {level} interval of the mean", fontsize=10.5)
    lower.set_xlabel(
        f"difference in points, {level} interval; orange: shown, by Holm's correction", fontsize=10.5
    )
    _title(figure, title, left=0.03, top=1 - 0.2 / height)
    return figure


def _draw_intervals(axes: Axes, rows: Sequence[Interval]) -> None:
    for place, each in enumerate(rows):
        colour = ORANGE if each.marked else BLUE
        if each.low is not None and each.high is not None:
            axes.plot(
                [each.low, each.high], [place, place], color=colour, linewidth=2.4, solid_capstyle="butt"
            )
            axes.plot(
                [each.low, each.high], [place, place], "|", color=colour, markersize=11, markeredgewidth=1.8
            )
        axes.plot(
            each.values, [place + 0.22] * len(each.values), "o", color=PALE_INK, markersize=4, alpha=0.8
        )
        axes.plot([each.mean], [place], "D", color=colour, markersize=7, markeredgecolor=FACE)
    _plain_axes(axes)
    axes.margins(x=0.08)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_yticks(
        range(len(rows)),
        [fill(each.name, 30, max_lines=2) for each in rows],
        color=INK,
        fontsize=9.5,
        parse_math=False,
    )
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write `figure` in one step, as PNG, SVG or PDF by the suffix of `path`.

    Raises UserError for any other suffix and if the file cannot be written.
    """
    path = Path(path)
    format = path.suffix.lower().removeprefix(".")
    if format not in FORMATS:
        allowed = one_of(f".{name}" for name in FORMATS)
        given = repr(path.suffix) if path.suffix else "none"
        raise UserError(
            f"a figure is written as {allowed}, by its suffix; {path} has {given}{nearest(format, FORMATS)}"
        )
    buffer = BytesIO()
    figure.savefig(buffer, format=format, dpi=RESOLUTION_DPI, metadata=METADATA[format])
    write_atomic(path, buffer.getvalue())


def _new_figure(width_inches: float, height_inches: float) -> Figure:
    return Figure(figsize=(width_inches, height_inches), dpi=RESOLUTION_DPI, facecolor=FACE)


def _title(figure: Figure, title: str, left: float, top: float) -> None:
    """Bold, as large as its width allows: a letter is about 0.68 of the font's size wide."""
    room_points = 72 * figure.get_figwidth() * (0.98 - left)
    size = min(14.0, max(7.0, room_points / (0.68 * max(len(title), 1))))
    figure.text(
        left, top, title, ha="left", va="top", fontsize=size, weight="bold", color=INK, parse_math=False
    )


def _plain_axes(axes: Axes) -> None:
    axes.grid(color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE_INK)
    axes.tick_params(colors=PALE_INK, labelsize=10.5)
    axes.xaxis.label.set(color=INK, fontsize=12)
    axes.yaxis.label.set(color=INK, fontsize=12)


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


def _accuracy_axis(axes: Axes) -> None:
    """Whole percents, over at least 5 points: a flat line is shown as flat."""
    low, high = axes.get_ylim()
    if high - low < 0.05:
        middle = min(max((low + high) / 2, 0.025), 0.975)
        axes.set_ylim(middle - 0.025, middle + 0.025)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0, symbol=" %"))


def _loss_axis(axes: Axes) -> None:
    """From 0, and not so high that a few wild first epochs press the rest of the curves flat."""
    values = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    finite = np.concatenate(values) if values else np.array([])
    finite = finite[np.isfinite(finite)]
    if finite.size and finite.min() >= 0:
        top = float(finite.max())
        if finite.size >= 20:
            top = min(top, 3 * float(np.percentile(finite, 95)))
        axes.set_ylim(0.0, 1.06 * top if top > 0 else 1.0)


def _mark_best(loss: Axes, accuracy: Axes, rows: Sequence[Mapping[str, Any]], best_epoch: int | None) -> None:
    row = next((row for row in rows if row["epoch"] == best_epoch), None)
    if row is None:
        return
    for axes, quantity, form in ((loss, "loss", "{:.4f}"), (accuracy, "accuracy", "{:.2%}")):
        axes.axvline(row["epoch"], color=PALE_INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1.5)
        value = row.get(f"validation_{quantity}")
        if value is None or not np.isfinite(value):
            continue
        axes.plot(
            [row["epoch"]],
            [value],
            "o",
            color=ORANGE,
            markersize=8,
            markeredgecolor=FACE,
            markeredgewidth=1.5,
        )
        right_half = row["epoch"] > np.mean(axes.get_xlim())
        low, high = axes.get_ylim()
        text = f"best epoch {row['epoch']}: {form.format(value).replace('%', ' %')}"
        axes.annotate(
            text,
            (row["epoch"], 0.97 if quantity == "loss" else 0.04),
            xycoords=("data", "axes fraction"),
            xytext=(-7 if right_half else 7, 0),
            textcoords="offset points",
            ha="right" if right_half else "left",
            va="top" if quantity == "loss" else "bottom",
            fontsize=10.5,
            color=INK,
            bbox={"facecolor": FACE, "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )
        axes.set_ylim(low, high)


def _canvas(width_inches: float, height_inches: float) -> tuple[Figure, Axes]:
    """A figure and axes that fill it, with inches from the bottom left as coordinates."""
    figure = _new_figure(width_inches, height_inches)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width_inches), ylim=(0, height_inches), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def _place_picture(axes: Axes, image: np.ndarray, left: float, bottom: float, side: float) -> None:
    extent = (left, left + side, bottom, bottom + side)
    picture = AxesImage(axes, interpolation="nearest", extent=extent, origin="upper")
    picture.set_data(image)
    axes.add_image(picture)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
