"""Accuracy on changed pictures: robustness, and averaging over copies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cifarlab import text
from cifarlab.report.charts import Chart, Series, as_percent, line_chart
from cifarlab.report.judged import Judged
from cifarlab.report.pictures import as_uri
from cifarlab.robustness import CHANGES, Change, Curve, measure_robustness, passes
from cifarlab.statistics import difference, proportion_interval
from cifarlab.tta import RULES, Averaged, measure_tta

SAMPLE = 2_000
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Changed:
    """A kind of change: its curves, and one picture at each level (image, level)."""

    chart: Chart
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class AveragedRow:
    run: str
    name: str
    views: int
    accuracy: str
    change: str


def sample(n: int, wanted: int) -> np.ndarray:
    """Indices of at most `wanted` of n pictures, evenly through the split."""
    return np.arange(min(n, wanted)) * n // max(min(n, wanted), 1)


def looks(n_pictures: int) -> int:
    """How many pictures a network looks at for both parts."""
    return n_pictures * (passes() + len(RULES["mirror-shift"]))


def robustness_charts(judged: Sequence[Judged], chosen: np.ndarray, progress: Progress) -> list[Changed]:
    found = [
        measure_robustness(each.model, each.preparation, each.images[chosen], each.labels[chosen], progress)
        for each in judged
    ]
    example = judged[0].images[chosen[:1]]
    return [
        Changed(
            _chart(change, [(each.name, curves[place]) for each, curves in zip(judged, found, strict=True)]),
            _examples(change, example),
        )
        for place, change in enumerate(CHANGES)
    ]


def tta_rows(judged: Sequence[Judged], chosen: np.ndarray, progress: Progress) -> list[AveragedRow]:
    """Accuracy without, and with each kind of averaging the change against that, paired picture by picture."""
    rows = []
    for each in judged:
        found = measure_tta(each.model, each.preparation, each.images[chosen], each.labels[chosen], progress)
        rows += [
            AveragedRow(
                each.name,
                averaged.name,
                averaged.views,
                text.percent(float(averaged.right.mean()), 2),
                _change(found[0], averaged),
            )
            for averaged in found
        ]
    return rows


def _change(without: Averaged, averaged: Averaged) -> str:
    """In points, with its 95 % interval over the pictures."""
    if averaged is without:
        return "–"
    found = difference(
        without.right.astype(float).tolist(), averaged.right.astype(float).tolist(), paired=True
    )
    if found.low is None or found.high is None:
        return "no picture changed"
    words = f"{100 * found.mean:+.2f} points ({100 * found.low:+.2f} to {100 * found.high:+.2f})"
    return words.replace("-", "−")


def _chart(change: Change, curves: Sequence[tuple[str, Curve]]) -> Chart:
    places = list(range(len(change.levels))) if change.words else list(change.levels)
    series = []
    for style, (name, curve) in enumerate(curves):
        intervals = [proportion_interval(right, curve.n) for right in curve.right]
        series.append(
            Series(
                name,
                places,
                [right / curve.n for right in curve.right],
                low=[low for low, _ in intervals],
                high=[high for _, high in intervals],
                style=style,
                joined=change.is_scale,
            )
        )
    return line_chart(
        change.name,
        series,
        x_label=f"{change.name.lower()}{': ' if change.unit else ''}{change.unit}",
        y_label="accuracy",
        y_text=as_percent,
        y_range=(0.0, 1.0),
        x_words=change.words,
        description="; ".join(_in_words(change, name, curve) for name, curve in curves) + ".",
    )


def _in_words(change: Change, name: str, curve: Curve) -> str:
    unchanged = curve.right[change.levels.index(change.as_it_is)] / curve.n
    return f"{name}: {text.percent(unchanged)} unchanged, at worst {text.percent(min(curve.right) / curve.n)}"


def _examples(change: Change, image: np.ndarray) -> tuple[tuple[str, str], ...]:
    words = change.words or tuple(f"{level:g}" for level in change.levels)
    return tuple(
        (as_uri(change.apply(image, level)[0]), word)
        for level, word in zip(change.levels, words, strict=True)
    )
