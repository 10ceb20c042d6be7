"""What the network answers: by class, confusions, how true its probabilities are, and which pictures to look at."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import softmax

from cifarlab import text
from cifarlab.calibration import Calibration, fit_temperature, measure_calibration
from cifarlab.data.mapped import Pictures
from cifarlab.errors import UserError
from cifarlab.label_errors import find_label_errors
from cifarlab.out_of_fold import FILE as OUT_OF_FOLD
from cifarlab.out_of_fold import OutOfFold, load_out_of_fold
from cifarlab.report.charts import Chart, Series, as_percent, line_chart
from cifarlab.report.judged import Judged
from cifarlab.report.pictures import as_uri, told
from cifarlab.run import Run, is_run
from cifarlab.statistics import proportion_interval

SHOWN = 18  # pictures in a row of mistakes or hits
PAIRS, OF_A_PAIR = 8, 3
LARGEST_TABLE = 20  # classes whose confusion matrix is a table of cells
OF_A_CELL = 12


@dataclass(frozen=True)
class Shown:
    """A picture of the split, what stands beneath it, and what is said in place of it."""

    index: int
    caption: tuple[str, ...]
    words: str


@dataclass(frozen=True)
class ClassRow:
    """A class's accuracy with its interval, 0..1 (None without pictures), and more figures as text."""

    name: str
    accuracy: float | None
    low: float
    high: float
    interval: str
    precision: str
    f1: str
    n: int


@dataclass(frozen=True)
class Cell:
    """A field of the confusion matrix; `heat` is 0..1, of hits their rate, of mistakes against the largest one."""

    true: int
    predicted: int
    n: int
    rate: float
    heat: float


@dataclass(frozen=True)
class Pair:
    a: str
    b: str
    n: int
    sentence: str
    pictures: tuple[Shown, ...]


@dataclass(frozen=True)
class Reliability:
    """Calibration before and after temperature, or why there is no after."""

    chart: Chart
    before: Calibration
    after: Calibration | None
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Doubtful:
    """Pictures whose label is probably wrong: of the page's split, or of the training set, with images of their own."""

    n: int
    sentence: str
    pictures: tuple[Shown, ...]
    images: dict[int, str] | None = None
    folds: int = 0
    told: dict[str, dict[str, Any]] = field(default_factory=dict)  # by `train-<index>`, as `pictures.told`


def class_rows(judged: Judged) -> list[ClassRow]:
    return [
        _class_row(each.name, each.n, int(judged.evaluation.confusion[k][k]), each.precision, each.f1)
        for k, each in enumerate(judged.evaluation.classes)
    ]


def _class_row(name: str, n: int, right: int, precision: float, f1: float) -> ClassRow:
    if n == 0:
        return ClassRow(name, None, 0.0, 1.0, "no pictures", text.percent(precision), text.percent(f1), 0)
    low, high = proportion_interval(right, n)
    interval = f"{100 * low:.1f} to {100 * high:.1f} %"
    return ClassRow(name, right / n, low, high, interval, text.percent(precision), text.percent(f1), n)


def confusion_cells(judged: Judged) -> list[list[Cell]]:
    """A row for each true class."""
    counts = np.array(judged.evaluation.confusion)
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mistakes = np.where(np.eye(len(counts), dtype=bool), 0.0, rates)
    heat = np.where(np.eye(len(counts), dtype=bool), rates, mistakes / max(mistakes.max(), 1e-9))
    return [
        [
            Cell(t, p, int(counts[t, p]), float(rates[t, p]), round(float(heat[t, p]), 3))
            for p in range(len(counts))
        ]
        for t in range(len(counts))
    ]


def pictures_by_cell(judged: Judged) -> dict[tuple[int, int], list[int]]:
    """For each (true, predicted) that occurs the pictures, the surest answers first."""
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in np.argsort(-judged.sureness, kind="stable"):
        cells[int(judged.labels[index]), int(judged.predicted[index])].append(int(index))
    return cells


def taking_turns(cells: dict[tuple[int, int], list[int]]) -> Iterator[int]:
    """Pictures to have at hand: one of each cell, mistakes and the fullest cells first, then a second, and so on."""
    order = sorted(cells, key=lambda cell: (cell[0] == cell[1], -len(cells[cell])))
    for turn in range(OF_A_CELL):
        for cell in order:
            if turn < len(cells[cell]):
                yield cells[cell][turn]


def confused_pairs(judged: Judged, cells: dict[tuple[int, int], list[int]]) -> list[Pair]:
    """The pairs of classes that are taken for each other most often, in either direction."""
    classes, counts = judged.run.classes, np.array(judged.evaluation.confusion)
    both = counts + counts.T
    every = [(int(both[a, b]), a, b) for a in range(len(classes)) for b in range(a + 1, len(classes))]
    pairs = []
    for n, a, b in sorted(every, key=lambda pair: -pair[0])[:PAIRS]:
        if n == 0:
            break
        ab, ba = int(counts[a, b]), int(counts[b, a])
        sentence = (
            f"{ab:,} of {classes[a]} taken for {classes[b]}, {ba:,} of {classes[b]} taken for {classes[a]}"
        )
        indices = cells.get((a, b), [])[:OF_A_PAIR] + cells.get((b, a), [])[:OF_A_PAIR]
        pairs.append(Pair(classes[a], classes[b], n, sentence, _shown(judged, indices)))
    return pairs


def surest_mistakes(judged: Judged) -> tuple[Shown, ...]:
    wrong = np.flatnonzero(~judged.is_right)
    return _shown(judged, wrong[np.argsort(-judged.sureness[wrong], kind="stable")][:SHOWN])


def least_sure_hits(judged: Judged) -> tuple[Shown, ...]:
    right = np.flatnonzero(judged.is_right)
    return _shown(judged, right[np.argsort(judged.sureness[right], kind="stable")][:SHOWN])


def reliability(judged: Judged) -> Reliability:
    """Calibration as it is, and with a temperature that is fitted on validation pictures, never on the test set."""
    before = measure_calibration(judged.logits, judged.labels)
    after = with_temperature(judged)
    chart = line_chart(
        "Accuracy against probability",
        [_reliability_series("as it is", before, 0)]
        + ([_reliability_series(f"temperature {after.temperature:.2f}", after, 1)] if after else []),
        x_label="probability of the answer",
        y_label="accuracy",
        y_text=as_percent,
        y_range=(0.0, 1.0),
        diagonal=True,
        description=f"Expected calibration error {text.percent(before.expected_error, 1)}.",
    )
    return Reliability(chart, before, after, tuple(_reliability_words(judged, before, after)))


def with_temperature(judged: Judged) -> Calibration | None:
    """Calibration with the temperature of the validation pictures; None where they give none."""
    temperature = None if judged.held_out is None else fit_temperature(*judged.held_out)
    return None if temperature is None else measure_calibration(judged.logits, judged.labels, temperature)


def doubtful_labels(judged: Judged) -> Doubtful:
    """Of every training picture where the run is a fold of a cross-validation, else of the page's split."""
    run = judged.run
    if run.recipe.data.validation != "fold" or not (run.path.parent / OUT_OF_FOLD).is_file():
        return _doubtful(judged.probabilities, judged.labels, run.classes)
    answers = load_out_of_fold(run.path.parent)
    if answers.data != run.data["checksum"]:
        raise UserError(f"{run.path.parent / OUT_OF_FOLD} is of other data than {run.path}")
    found = _doubtful(softmax(answers.logits.double().numpy(), axis=1), answers.labels.numpy(), run.classes)
    images = judged.source.load("train").images
    return replace(
        found,
        images={picture.index: as_uri(images[picture.index]) for picture in found.pictures},
        folds=int(answers.fold.max()) + 1,
        told=_told_by_folds(judged, answers, images, [picture.index for picture in found.pictures]),
    )


def _told_by_folds(
    judged: Judged, answers: OutOfFold, images: Pictures, indices: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Answers and heat maps of training pictures, each by the fold that was not trained on it and has weights."""
    found = {}
    for number in sorted({int(answers.fold[index]) for index in indices}):
        path = judged.run.path.parent / f"fold-{number}"
        if not is_run(path) or Run(path).is_record:
            continue
        run = Run(path)
        fold = replace(
            judged,
            run=run,
            logits=answers.logits.double().numpy(),
            labels=answers.labels.numpy(),
            images=images,
            held_out=None,
            model=run.load_model(device=str(judged.device)),
            preparation=run.load_preparation(),
        )
        held_out = [index for index in indices if int(answers.fold[index]) == number]
        for index, what in told((fold,), held_out).items():
            found[f"train-{index}"] = {**what, "by": path.name}
    return found


def _doubtful(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Doubtful:
    found = find_label_errors(probabilities, labels)
    pictures = []
    for index, suggested in zip(found.indices[:SHOWN], found.suggested[:SHOWN], strict=True):
        label, other = classes[int(labels[index])], classes[int(suggested)]
        words = f"picture {index}, labelled {label}, probably {other}"
        pictures.append(Shown(int(index), (f"labelled {label}", f"{other}?"), words))
    n = len(found.indices)
    if n == 0:
        return Doubtful(0, "The network contradicts no label with confidence.", ())
    share = text.percent(found.estimated_share)
    sentence = (
        f"{text.count(n, 'picture')} look confidently like another class than their label says. Were the network to be"
        f" trusted in this, {share} of the labels would be wrong. The {len(pictures)} most doubtful:"
    )
    return Doubtful(n, sentence, tuple(pictures))


def _shown(judged: Judged, indices: Iterable[int]) -> tuple[Shown, ...]:
    return tuple(_answered(judged, int(index)) for index in indices)


def _answered(judged: Judged, index: int) -> Shown:
    classes = judged.run.classes
    true, answer = classes[judged.labels[index]], classes[judged.predicted[index]]
    sure = text.percent(float(judged.sureness[index]), 0 if judged.sureness[index] < 0.995 else 1)
    if true == answer:
        return Shown(index, (true, sure), f"picture {index}: {true}, recognised with {sure}")
    return Shown(
        index, (true, f"→ {answer}", sure), f"picture {index}: {true}, taken for {answer} with {sure}"
    )


def _reliability_series(name: str, calibration: Calibration, style: int) -> Series:
    filled = [each for each in calibration.bins if each.n]
    intervals = [proportion_interval(round(each.n * (each.accuracy or 0.0)), each.n) for each in filled]
    return Series(
        name,
        [round(each.confidence or 0.0, 4) for each in filled],
        [each.accuracy for each in filled],
        low=[low for low, _ in intervals],
        high=[high for _, high in intervals],
        style=style,
    )


def _reliability_words(judged: Judged, before: Calibration, after: Calibration | None) -> Iterator[str]:
    error = text.percent(before.expected_error, 1)
    sure, right = float(judged.sureness.mean()), judged.evaluation.accuracy
    manner = "too sure of itself" if sure > right else "less sure than it might be"
    yield (
        f"The network is {manner}: its answers carry {text.percent(sure)} on average, and {text.percent(right)} of them"
        f" are right. Expected calibration error: {error}; loss {text.number(before.loss)}."
    )
    if after is not None:
        yield (
            f"Divided by a temperature of {after.temperature:.2f}, fitted on the validation pictures, the logits give"
            f" an expected calibration error of {text.percent(after.expected_error, 1)} and a loss of"
            f" {text.number(after.loss)}. No answer changes by it."
        )
        if judged.evaluation.split == "validation":
            yield "These are the pictures that the temperature was fitted on: the figure after it is flattering."
    elif judged.run.recipe.data.validation == "test":
        yield "No temperature is fitted: validation was the test set in this recipe, and nothing may be fitted on that."
    elif judged.held_out is None:
        yield "No temperature is fitted: this recipe kept no validation pictures to fit it on."
    else:
        yield (
            "No temperature is fitted: none is best on the validation pictures, as where their answers are no better"
            " than guessing, or are all right."
        )
