"""Curves as geometry: what the template draws as SVG. Numbers in, places and words out; colours are the style sheet's.

A drawing is 400 units wide, about a phone's width in pixels, so that its letters are never smaller than they should be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 400.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 12.0, 12.0, 42.0
STYLES = 8  # colours, dashes and markers that the style sheet tells apart
MOST_POINTS, MOST_MARKERS, MOST_ROWS = 400, 25, 26
MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.6 -3.6h7.2v7.2h-7.2z",
    "M0 -4.8l4.8 8h-9.6z",
    "M0 -5l5 5l-5 5l-5 -5z",
    "M0 4.8l4.8 -8h-9.6z",
    "M-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "M-4 -4l4 2.5l4 -2.5v8l-4 -2.5l-4 2.5z",
    "M-5 0l3.5 -4h3l3.5 4l-3.5 4h-3z",
)


@dataclass(frozen=True)
class Series:
    """y over x; None leaves a gap. `low` and `high` are a band round it, where there is one."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: int = 0
    joined: bool = True  # a line through the points, and a band; else a bar of low to high at each


@dataclass(frozen=True)
class Line:
    """A series as SVG paths, in drawing units."""

    name: str
    style: int
    path: str
    band: str
    markers: tuple[tuple[float, float], ...]
    marker: str


@dataclass(frozen=True)
class Chart:
    """Everything a chart shows, and its numbers as a table."""

    title: str
    description: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    table: tuple[tuple[str, ...], ...]
    diagonal: str = ""
    mark: tuple[float, str] | None = None
    width: float = field(default=WIDTH, init=False)
    height: float = field(default=HEIGHT, init=False)
    left: float = field(default=LEFT, init=False)
    right: float = field(default=WIDTH - RIGHT, init=False)
    top: float = field(default=TOP, init=False)
    bottom: float = field(default=HEIGHT - BOTTOM, init=False)


def as_percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def as_number(value: float) -> str:
    return f"{value:.4g}"


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    description: str = "",
    y_text: Callable[[float], str] = as_number,
    y_range: tuple[float, float] | None = None,
    x_words: Sequence[str] = (),
    mark: tuple[float, str] | None = None,
    diagonal: bool = False,
) -> Chart:
    """Lines over a common x axis.

    Args:
        y_range: the ends of the y axis; None for those of the values, with 0 where that is not far.
        x_words: names of the places 0, 1, 2, ... where x is not a quantity.
        mark: an x to mark, and what to call it.
        diagonal: a line where y equals x, for charts whose axes have the same unit.
    """
    every_x = [x for each in series for x in each.x] or [0.0]
    every_y = [y for each in series for y in (*each.y, *each.low, *each.high) if y is not None]
    low_y, high_y = y_range or _padded(every_y)
    low_x, high_x = (-0.3, len(x_words) - 0.7) if x_words else _widened(min(every_x), max(every_x))
    across = _scale(low_x, high_x, LEFT, WIDTH - RIGHT)
    up = _scale(low_y, high_y, HEIGHT - BOTTOM, TOP)
    whole = all(float(x).is_integer() for x in every_x)
    x_places = enumerate(x_words) if x_words else [(x, f"{x:g}") for x in _ticks(low_x, high_x, 6, whole)]
    return Chart(
        title=title,
        description=description,
        x_label=x_label,
        y_label=y_label,
        lines=tuple(
            _line(_thinned(each), across, up) if each.joined else _bars(each, place, len(series), across, up)
            for place, each in enumerate(series)
        ),
        x_ticks=tuple((across(x), word) for x, word in x_places),
        y_ticks=tuple((up(y), y_text(y)) for y in _ticks(low_y, high_y, 5)),
        table=_table(series, x_label, x_words, y_text),
        diagonal=_diagonal(low_x, high_x, across, up) if diagonal else "",
        mark=None if mark is None else (across(mark[0]), mark[1]),
    )


def _scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    return lambda value: round(first + (value - low) / (high - low) * (last - first), 1)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if low == high:
        return (0.0, 2 * low) if low > 0 else (low, low + 1.0)
    margin = 0.05 * (high - low)
    return _widened(0.0 if 0 <= low <= high / 2 else low - margin, high + margin)


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, at_most: int, whole: bool = False) -> list[float]:
    places = MaxNLocator(at_most, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [float(place) for place in places if low - slack <= place <= high + slack]


def _thinned(series: Series) -> Series:
    """At most some hundred points, evenly, the last one among them."""
    n = len(series.x)
    if n <= MOST_POINTS:
        return series
    kept = np.unique(np.linspace(0, n - 1, MOST_POINTS).round().astype(int))
    x, y = [series.x[i] for i in kept], [series.y[i] for i in kept]
    return Series(series.name, x, y, style=series.style)


def _line(series: Series, across: Callable[[float], float], up: Callable[[float], float]) -> Line:
    steps, pen = [], "M"
    points = [(across(x), None if y is None else up(y)) for x, y in zip(series.x, series.y, strict=True)]
    for x, y in points:
        if y is not None:
            steps.append(f"{pen}{x:g} {y:g}")
        pen = "M" if y is None else "L"
    band = ""
    if series.low:
        there = [f"{across(x):g} {up(y):g}" for x, y in zip(series.x, series.high, strict=True)]
        back = [f"{across(x):g} {up(y):g}" for x, y in zip(series.x, series.low, strict=True)]
        band = "M" + "L".join(there + back[::-1]) + "Z"
    placed = tuple((x, y) for x, y in points if y is not None)
    markers = placed if len(placed) <= MOST_MARKERS else ()
    return Line(
        series.name, series.style % STYLES, "".join(steps), band, markers, MARKERS[series.style % STYLES]
    )


def _bars(
    series: Series, place: int, of: int, across: Callable[[float], float], up: Callable[[float], float]
) -> Line:
    """Points that no line joins, each with its bar; those of several series stand beside each other."""
    beside = 9.0 * (place - (of - 1) / 2)
    marked = [(round(across(x) + beside, 1), y) for x, y in zip(series.x, series.y, strict=True)]
    bars = [
        f"M{x:g} {up(low):g}V{up(high):g}"
        for (x, _), low, high in zip(marked, series.low, series.high, strict=True)
    ]
    markers = tuple((x, up(y)) for x, y in marked if y is not None)
    style = series.style % STYLES
    return Line(series.name, style, "".join(bars), "", markers, MARKERS[style])


def _diagonal(low: float, high: float, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    return f"M{across(low):g} {up(low):g}L{across(high):g} {up(high):g}"


def _table(
    series: Sequence[Series], x_label: str, x_words: Sequence[str], y_text: Callable[[float], str]
) -> tuple[tuple[str, ...], ...]:
    """A row of names, then one for each x; of many only some, evenly, with the last."""
    values = [dict(zip(each.x, each.y, strict=True)) for each in series]
    every_x = sorted({x for each in series for x in each.x})
    if len(every_x) > MOST_ROWS:
        every_x = [every_x[i] for i in np.linspace(0, len(every_x) - 1, MOST_ROWS).round().astype(int)]
    rows = [(x_label, *(each.name for each in series))]
    for x in every_x:
        cells = [each.get(x) for each in values]
        name = x_words[int(x)] if x_words else f"{x:.4g}"
        rows.append((name, *("–" if cell is None else y_text(cell) for cell in cells)))
    return tuple(rows)
