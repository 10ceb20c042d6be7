"""A picture beside the probabilities of its classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cifarlab.figures.grids import RIGHT, WRONG
from cifarlab.figures.style import (
    BLUE,
    FACE,
    GREEN,
    INK,
    LINE,
    NAME,
    ORANGE,
    PALE_INK,
    add_title,
    new_figure,
    shortened,
)

MOST_BARS = 12  # with more classes, the most probable ten


def picture_probabilities(
    images: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    title: str = "",
) -> Figure:
    """Each picture in a row, with a bar for the probability of each class beside it.

    `images` is uint8 (N, H, W, 3), `probabilities` (N, classes), 0..1, `labels` int (N,). Bars are in the order of the
    classes; of more than twelve classes the ten most probable are shown, in that order.
    """
    n_bars = len(classes) if len(classes) <= MOST_BARS else 10
    row_height, above, below = max(2.0, 0.24 * n_bars) + 0.55, 0.55 if title else 0.15, 0.3
    names = 0.35 + 0.095 * max(len(shortened(name)) for name in classes)
    left, width = 2.3 + names, 2.3 + names + 4.6
    height = above + len(images) * row_height + below
    figure = new_figure(width, height)
    for row, (image, chances, label) in enumerate(zip(images, probabilities, labels, strict=True)):
        top = height - above - row * row_height
        drawn = row_height - 0.55
        picture = figure.add_axes((0.2 / width, (top - 1.9) / height, 1.8 / width, 1.8 / height))
        picture.imshow(image, interpolation="nearest")
        picture.set_axis_off()
        _caption(picture, int(np.argmax(chances)), int(label), classes)
        bars = figure.add_axes((left / width, (top - 0.1 - drawn) / height, 3.9 / width, drawn / height))
        _draw_bars(bars, np.asarray(chances), int(label), classes, n_bars)
        if row == len(images) - 1:
            more = "" if n_bars == len(classes) else f", the {n_bars} highest of {len(classes)}"
            bars.set_xlabel(f"probability{more}", fontsize=10.5, color=PALE_INK)
    if title:
        add_title(figure, title, left=0.2 / width, top=1 - 0.15 / height)
    return figure


def _caption(axes: Axes, predicted: int, label: int, classes: Sequence[str]) -> None:
    mark, colour = (RIGHT, GREEN) if predicted == label else (WRONG, ORANGE)
    style = {**NAME, "ha": "center", "va": "top", "transform": axes.transAxes}
    axes.text(
        0.5, -0.03, f"{mark} {shortened(classes[predicted])}", **{**style, "color": colour, "weight": "bold"}
    )
    axes.text(0.5, -0.15, f"({shortened(classes[label])})", **style)


def _draw_bars(axes: Axes, chances: np.ndarray, label: int, classes: Sequence[str], n_bars: int) -> None:
    shown = (
        np.arange(len(classes)) if n_bars == len(classes) else np.argsort(-chances, kind="stable")[:n_bars]
    )
    colours = [BLUE if index == int(np.argmax(chances)) else "#9FB8C8" for index in shown]
    axes.barh(range(n_bars), chances[shown], color=colours, height=0.72)
    names = [shortened(classes[int(index)]) for index in shown]
    axes.set_yticks(range(n_bars), names, **NAME)
    for tick, index in zip(axes.get_yticklabels(), shown, strict=True):
        tick.set_fontweight("bold" if index == label else "normal")
    for place, index in enumerate(shown):
        text = f"{100 * chances[index]:.1f} %" + ("  true class" if index == label else "")
        inside = chances[index] > 0.7
        axes.annotate(
            text,
            (chances[index], place),
            xytext=(-5 if inside else 5, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            fontsize=9.5,
            color=FACE if inside else INK,
        )
    axes.set(xlim=(0, 1), ylim=(n_bars - 0.4, -0.6))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(PALE_INK)
    axes.tick_params(axis="x", colors=PALE_INK, labelsize=9.5, length=0)
    axes.tick_params(axis="y", length=0)
