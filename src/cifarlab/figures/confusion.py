"""The confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter

from cifarlab.figures.style import FACE, INK, NAME, PALE_INK, add_title, new_figure, shortened

ROOMY_CLASSES = 20  # with more, cells and letters are smaller


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], title: str = "") -> Figure:
    """Counts in the cells; colour: the share of a true class (row) that was taken for a class (column).

    `matrix` is int (classes, classes), `matrix[true][predicted]`.
    """
    counts = np.asarray(matrix)
    many = len(classes)
    cell, letters = (0.56, 11.0) if many <= ROOMY_CLASSES else (0.3, 8.5)
    # In inches: the cells, then room for the names at the left, the names above, and the scale at the right.
    cells = max(cell * many, 3.0)
    longest = max(len(shortened(name)) for name in classes) * letters / 11
    left, right, below, above = 0.6 + 0.09 * longest, 1.0, 0.3, 0.85 + 0.07 * longest
    width, height = left + cells + right, below + cells + above
    figure = new_figure(width, height)
    axes = figure.add_axes((left / width, below / height, cells / width, cells / height))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    drawn = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="equal", interpolation="nearest")
    _name_both_sides(axes, [shortened(name) for name in classes], letters)
    _write_counts(axes, counts, shares, letters - 1)
    scale = figure.add_axes(((left + cells + 0.15) / width, below / height, 0.15 / width, cells / height))
    _add_scale(figure, drawn, scale)
    if title:
        add_title(figure, title, left=0.2 / width, top=1 - 0.15 / height)
    return figure


def _name_both_sides(axes: Axes, names: list[str], letters: float) -> None:
    many, style = len(names), {**NAME, "fontsize": letters}
    axes.set_yticks(range(many), names, **style)
    axes.set_xticks(range(many), names, rotation=45, ha="left", **style)
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
    axes.set_ylabel("true class", fontsize=11, color=PALE_INK)
    axes.set_xlabel("predicted class", fontsize=11, color=PALE_INK)
    axes.xaxis.set_label_position("top")


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray, letters: float) -> None:
    """A number in every cell that is not empty, small enough for the longest of them."""
    digits = len(str(int(counts.max(initial=0))))
    size = letters if digits <= 4 else letters * 4 / digits
    for true, predicted in zip(*np.nonzero(counts), strict=True):
        dark = shares[true, predicted] > 0.55
        axes.text(
            predicted,
            true,
            str(int(counts[true, predicted])),
            ha="center",
            va="center",
            fontsize=size,
            color=FACE if dark else INK,
        )


def _add_scale(figure: Figure, drawn: AxesImage, axes: Axes) -> None:
    bar = figure.colorbar(drawn, cax=axes, format=PercentFormatter(xmax=1.0, decimals=0, symbol=" %"))
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=10, labelcolor=PALE_INK, length=0)
    bar.set_label("of the true class", fontsize=10, color=PALE_INK)
