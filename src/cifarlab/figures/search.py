"""What a search for settings found, and a learning-rate range test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

from cifarlab.figures.style import BLUE, FACE, INK, ORANGE, PALE_INK, add_title, new_figure, plain_axes


def search_figure(
    trials: Sequence[Mapping[str, Any]], importance: Mapping[str, float], *, title: str
) -> Figure:
    """Validation loss of each trial of a search and the lowest so far; below, what the loss depends on most.

    Args:
        trials: `number`, `state` ("complete", "pruned", "diverged" or "failed") and `loss` or None of each.
        importance: each field's share, 0..1; empty for none, and then there is no second part.
    """
    below = 0.65 + 0.32 * len(importance) if importance else 0.0
    height = 5.0 + below
    figure = new_figure(8.0, height)
    axes = figure.add_axes((0.095, (below + 0.75) / height, 0.875, 3.25 / height))
    _draw_trials(axes, trials)
    add_title(figure, title, left=0.095, top=1 - 0.2 / height)
    legend = figure.legend(
        loc="lower left", bbox_to_anchor=(0.085, 1 - 0.93 / height), ncols=4, frameon=False, fontsize=11
    )
    for words in legend.get_texts():
        words.set_color(INK)
    if importance:
        bars = figure.add_axes((0.36, 0.55 / height, 0.58, (below - 0.6) / height))
        names = list(importance)[::-1]
        bars.barh(names, [importance[name] for name in names], color=BLUE, height=0.6)
        plain_axes(bars)
        bars.grid(visible=False, axis="y")
        bars.set_xlim(0, 1)
        bars.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        bars.set_xlabel("share of the loss's variation that the field explains")
    return figure


def _draw_trials(axes: Axes, trials: Sequence[Mapping[str, Any]]) -> None:
    looks: dict[str, dict[str, Any]] = {
        "complete": {"marker": "o", "color": BLUE},
        "pruned": {"marker": "v", "color": PALE_INK, "markerfacecolor": FACE},
        "diverged": {"marker": "X", "color": INK},
    }
    finite = [trial["loss"] for trial in trials if trial["loss"] is not None]
    top = max(finite, default=1.0)
    for state, look in looks.items():
        seen = [(trial["number"], trial["loss"]) for trial in trials if trial["state"] == state]
        if seen:
            losses = [top if loss is None else loss for _, loss in seen]
            axes.plot([n for n, _ in seen], losses, linestyle="", markersize=6, label=state, **look)
    done = sorted((trial["number"], trial["loss"]) for trial in trials if trial["state"] == "complete")
    if done:
        lowest = np.minimum.accumulate([loss for _, loss in done])
        axes.plot(
            [n for n, _ in done],
            lowest,
            color=ORANGE,
            drawstyle="steps-post",
            linewidth=1.8,
            label="lowest so far",
        )
    if finite and min(finite) > 0 and top > 5 * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    plain_axes(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel("validation loss")


def range_test_figure(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    *,
    suggestion: float | None,
    title: str,
) -> Figure:
    """Training loss against the learning rate, on a logarithmic axis: each step, smoothed, and the suggested rate."""
    figure = new_figure(8.0, 5.0)
    axes = figure.add_axes((0.095, 0.13, 0.875, 0.68))
    axes.plot(rates, losses, color=BLUE, linewidth=0.8, alpha=0.35, label="each step")
    axes.plot(rates, smoothed, color=BLUE, linewidth=2.2, label="smoothed")
    if suggestion is not None:
        near = int(np.argmin(np.abs(np.log(rates) - np.log(suggestion))))
        axes.axvline(suggestion, color=ORANGE, linewidth=1.4, linestyle="--")
        axes.plot(
            [suggestion],
            [smoothed[near]],
            "o",
            color=ORANGE,
            markersize=8,
            label=f"suggested: {suggestion:.2g}",
        )
    axes.set_xscale("log")
    low, high = float(np.min(smoothed)), float(smoothed[0])
    axes.set_ylim(max(0.0, low - 0.15 * (high - low)), high + 1.2 * (high - low) + 0.05)
    plain_axes(axes)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    add_title(figure, title, left=0.095, top=0.955)
    legend = figure.legend(
        loc="lower left", bbox_to_anchor=(0.085, 0.81), ncols=3, frameon=False, fontsize=11
    )
    for words in legend.get_texts():
        words.set_color(INK)
    return figure
