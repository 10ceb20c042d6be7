"""Several runs beside each other: a table, and picture by picture where they differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cifarlab import text
from cifarlab.calibration import measure_calibration
from cifarlab.models import describe_model
from cifarlab.report.answers import Shown, with_temperature
from cifarlab.report.charts import Chart, Series, as_percent, line_chart
from cifarlab.report.facts import in_words, interval_text, series_of
from cifarlab.report.judged import Judged
from cifarlab.statistics import mcnemar, proportion_interval

OF_A_DIFFERENCE = 12  # pictures shown of each direction of a pair


@dataclass(frozen=True)
class RunColumn:
    """A run in the table: its figures as text, by name; `style` is how its curves are drawn."""

    name: str
    style: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Difference:
    """Of two runs: how many pictures only one of them has right, and some of those."""

    a: int
    b: int
    title: str
    sentence: str
    only_a: tuple[Shown, ...]
    only_b: tuple[Shown, ...]
    n_only_a: int
    n_only_b: int


@dataclass(frozen=True)
class ClassComparison:
    """A class's accuracy in each run: (style, 0..1 or None, low, high, text)."""

    name: str
    n: int
    runs: tuple[tuple[int, float | None, float, float, str], ...]


def run_columns(judged: Sequence[Judged]) -> list[RunColumn]:
    return [RunColumn(each.name, style, _figures(each)) for style, each in enumerate(judged)]


def differences(judged: Sequence[Judged]) -> list[Difference]:
    """Every pair, where they differ; the surest of the right answers first."""
    return [_difference(judged, a, b) for a, b in combinations(range(len(judged)), 2)]


def class_comparisons(judged: Sequence[Judged]) -> list[ClassComparison]:
    rows = []
    for k, name in enumerate(judged[0].run.classes):
        of_class = judged[0].labels == k
        n = int(of_class.sum())
        figures = []
        for style, each in enumerate(judged):
            right = int((each.is_right & of_class).sum())
            low, high = proportion_interval(right, n) if n else (0.0, 1.0)
            rate = right / n if n else None
            figures.append((style, rate, low, high, text.percent(rate)))
        rows.append(ClassComparison(name, n, tuple(figures)))
    return rows


def curves(judged: Sequence[Judged]) -> list[Chart]:
    """Validation accuracy and loss of every run that has them, over each other."""
    charts = []
    for quantity in ("accuracy", "loss"):
        key = f"validation_{quantity}"
        series = [
            series_of(each.run.metrics, key, each.name, style)
            for style, each in enumerate(judged)
            if any(row[key] is not None for row in each.run.metrics)
        ]
        if series:
            charts.append(
                line_chart(
                    f"Validation {quantity}",
                    series,
                    x_label="epoch",
                    y_label=quantity,
                    y_text=as_percent if quantity == "accuracy" else "{:.3g}".format,
                    description="; ".join(_ended(each, quantity) for each in series) + ".",
                )
            )
    return charts


def reliability_chart(judged: Sequence[Judged]) -> Chart:
    series = []
    for style, each in enumerate(judged):
        filled = [found for found in measure_calibration(each.logits, each.labels).bins if found.n]
        confidence = [round(found.confidence or 0.0, 4) for found in filled]
        series.append(Series(each.name, confidence, [found.accuracy for found in filled], style=style))
    return line_chart(
        "Accuracy against probability",
        series,
        x_label="probability of the answer",
        y_label="accuracy",
        y_text=as_percent,
        y_range=(0.0, 1.0),
        diagonal=True,
    )


def _figures(judged: Judged) -> dict[str, str]:
    run, rows = judged.run, judged.run.metrics
    right = int(judged.is_right.sum())
    parameters = sum(parameter.numel() for parameter in judged.model.parameters())
    layers = describe_model(judged.model, tuple(run.data["input_shape"]))
    calibration = measure_calibration(judged.logits, judged.labels)
    calibrated = with_temperature(judged)
    validation = run.recipe.data.validation
    return {
        "Accuracy": text.percent(judged.evaluation.accuracy, 2),
        "95 % interval": interval_text(right, len(judged.labels)),
        **_macro_figures(judged),
        "Loss": text.number(judged.evaluation.loss),
        "Calibration error": text.percent(calibration.expected_error, 1),
        "… with temperature": text.percent(None if calibrated is None else calibrated.expected_error, 1),
        "Weights": judged.evaluation.weights,
        "Validation": "the test set" if validation == "test" else validation,
        "Seed": str(run.recipe.seed),
        "Epochs": f"{len(rows):,}",
        "Parameters": f"{parameters:,}",
        "Multiply-adds": in_words(sum(layer["multiply_adds"] for layer in layers)),
        "Training time": text.duration(rows[-1]["elapsed_seconds"]) if rows else "–",
    }


def _macro_figures(judged: Judged) -> dict[str, str]:
    evaluation = judged.evaluation
    if not evaluation.is_uneven:
        return {}
    return {
        "Macro accuracy": text.percent(evaluation.macro_accuracy, 2),
        "Macro F1": text.percent(evaluation.macro_f1, 2),
    }


def _difference(judged: Sequence[Judged], a: int, b: int) -> Difference:
    first, second = judged[a], judged[b]
    only_a, only_b = first.is_right & ~second.is_right, second.is_right & ~first.is_right
    both, neither = (
        int((first.is_right & second.is_right).sum()),
        int((~first.is_right & ~second.is_right).sum()),
    )
    test = mcnemar(first.is_right, second.is_right)
    return Difference(
        a=a,
        b=b,
        title=f"{first.name} and {second.name}",
        sentence=(
            f"Both have {both:,} pictures right and {neither:,} wrong. McNemar's test on the others:"
            f" mid-{text.p_statement(test.p)}. It speaks of these two trained networks on pictures like these; of the"
            " recipes it says nothing, because another seed makes another network."
        ),
        only_a=_shown(first, second, only_a),
        only_b=_shown(second, first, only_b),
        n_only_a=int(only_a.sum()),
        n_only_b=int(only_b.sum()),
    )


def _shown(right: Judged, wrong: Judged, where: np.ndarray) -> tuple[Shown, ...]:
    indices = np.flatnonzero(where)
    surest = indices[np.argsort(-right.sureness[indices], kind="stable")][:OF_A_DIFFERENCE]
    classes = right.run.classes
    shown = []
    for index in surest:
        true, answer = classes[right.labels[index]], classes[wrong.predicted[index]]
        words = f"picture {index}: {true}, which {wrong.name} takes for {answer}"
        shown.append(Shown(int(index), (true, f"not {answer}"), words))
    return tuple(shown)


def _ended(series: Series, quantity: str) -> str:
    values = [value for value in series.y if value is not None]
    last = text.percent(values[-1]) if quantity == "accuracy" else text.number(values[-1])
    return f"{series.name} ends at {last}"
