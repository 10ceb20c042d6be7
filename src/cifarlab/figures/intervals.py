"""Means of groups and differences of pairs, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cifarlab.figures.style import BLUE, FACE, INK, ORANGE, PALE_INK, add_title, new_figure, plain_axes


@dataclass(frozen=True)
class Interval:
    """A row of `intervals`: a mean, its interval, and the values that it is the mean of."""

    name: str
    mean: float
    low: float | None = None
    high: float | None = None
    values: Sequence[float] = ()
    marked: bool = False


def intervals(
    groups: Sequence[Interval], differences: Sequence[Interval], *, title: str, level: str = "95 %"
) -> Figure:
    """Accuracies of groups above, differences of pairs below: every run a dot, means, and their intervals.

    Accuracies and differences are 0..1, and drawn in per cent and in points. A difference that is marked is orange.
    """
    above, between, below, row = 0.75, 0.95, 0.75, 0.42  # inches
    heights = [row * max(len(part), 1) + 0.15 for part in (groups, differences)]
    height = above + sum(heights) + between + below
    figure = new_figure(8.0, height)
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
    add_title(figure, title, left=0.03, top=1 - 0.2 / height)
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
    plain_axes(axes)
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
