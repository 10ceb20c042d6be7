"""Results against a setting: what a study asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cifarlab.figures.style import (
    FACE,
    INK,
    SERIES_COLOURS,
    accuracy_axis,
    add_title,
    new_figure,
    plain_axes,
)

SERIES_MARKERS = ("o", "s", "^", "v", "P", "X")


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
    figure = new_figure(8.0, height)
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
    plain_axes(axes)
    names = [f"{int(name):,}" if name.isdigit() else name for name in places]
    axes.set_xticks(list(places.values()), names, fontsize=10.5)
    axes.margins(x=0.06)
    accuracy_axis(axes)
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    add_title(figure, title, left=0.095, top=1 - 0.2 / height)
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
