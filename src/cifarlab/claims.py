"""The write-ups' twelve claims, each from single runs there, tested on several seeds of ours.

A claim is a few checks. A check says between which bounds a difference of two sides should lie; its 95 % interval,
paired by seed, lies inside (the check holds), outside (it does not), or across a bound (not decided). Fewer than three
seeds that both sides have: not tested.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from cifarlab import text
from cifarlab.recipes import RECIPES
from cifarlab.reproduction import (
    ENOUGH,
    accuracy_at,
    finished_runs,
    published_of,
    published_recipes,
    test_evaluation,
)
from cifarlab.run import Run
from cifarlab.statistics import Difference, difference
from cifarlab.studies import STUDIES
from cifarlab.study import load_study, plan_study

Quantity = Literal[
    "accuracy",  # on the published split, by the recipe's rule for weights
    "validation accuracy",
    "validation loss",
    "best validation accuracy",
    "epoch of the lowest validation loss",
    "epoch of the best validation accuracy",
    "overfitting",  # training accuracy (over the epoch, dropout on) less validation accuracy
]
EPOCHS: tuple[Quantity, ...] = (
    "epoch of the lowest validation loss",
    "epoch of the best validation accuracy",
)
PAGE_HEAD = """\
# The write-ups' claims, tested

Written by `cifarlab reproduce --claims` from the runs in this folder. The write-ups say these from single runs. Here
each needs three seeds or more on both sides. A difference is paired by seed; its 95 % interval decides: inside what the
claim says, the check *holds*; outside, it *does not hold*; across the bound, it is *not decided*. The intervals stand
each for itself: of twenty differences that are nothing, one is expected to look like something. "As good as nothing" is
less than a point.
"""
TRIFLE = 0.01  # of accuracy or loss: as good as nothing


@dataclass(frozen=True)
class Side:
    """A quantity of the runs in a folder of the results: of a recipe, or of a point of a study.

    Attributes:
        epoch: the last one looked at; None for the published number, or for the run's own where nothing is published.
        window_epochs: the mean is taken over so many epochs up to it.
    """

    folder: str
    quantity: Quantity = "accuracy"
    epoch: int | None = None
    window_epochs: int = 1


@dataclass(frozen=True)
class Check:
    """b - a should lie between `low` and `high`; a number for a stands for itself."""

    text: str
    a: Side | float
    b: Side
    low: float
    high: float


@dataclass(frozen=True)
class Claim:
    number: int
    text: str
    checks: tuple[Check, ...]
    remark: str = ""


def _more(a: Side, b: Side, words: str) -> Check:
    return Check(words, a, b, 0.0, inf)


def _no_more(a: Side, b: Side, words: str) -> Check:
    return Check(words, a, b, -inf, TRIFLE)


def _against(a: str, b: str, low: float, high: float) -> tuple[Check, ...]:
    """Recipe b against recipe a: as published, and at equal epochs where their numbers of epochs differ."""
    lengths = [published_of(RECIPES[name]).epochs for name in (a, b)]
    words = f"{b} against {a}"
    if lengths[0] == lengths[1]:
        return (Check(words, Side(a), Side(b), low, high),)
    as_published = f"{words}, as published ({lengths[1]} and {lengths[0]} epochs)"
    early_a, early_b = (Side(name, "validation accuracy", min(lengths)) for name in (a, b))
    at_equal = f"{words}, both after {min(lengths)} epochs"
    return Check(as_published, Side(a), Side(b), low, high), Check(at_equal, early_a, early_b, low, high)


def _overfits(recipe: str) -> Check:
    side = Side(recipe, "epoch of the lowest validation loss")
    return Check(f"{recipe}: epoch of the lowest loss, from 15 to 20", 0.0, side, 15.0, 20.0)


def _batches(words: str, folders: dict[int, str]) -> tuple[Check, ...]:
    """Every smaller batch against the next larger one."""
    sizes = sorted(folders)
    sides = {size: Side(f"study-batch-size/{folders[size]}", "validation accuracy") for size in sizes}
    return tuple(
        _more(sides[large], sides[small], f"batches of {small} against {large:,}, {words}")
        for small, large in itertools.pairwise(sizes)
    )


CLAIMS = (
    Claim(
        1,
        "More VGG blocks are better: vgg1 < vgg2 < vgg3; the baselines overfit from epoch 15 to 20 on",
        (
            *_against("vgg1", "vgg2", 0.0, inf),
            *_against("vgg2", "vgg3", 0.0, inf),
            *(_overfits(recipe) for recipe in ("vgg1", "vgg2", "vgg3")),
        ),
    ),
    Claim(2, "Dropout 0.2 adds about 10 points to vgg3", _against("vgg3", "vgg3-dropout", 0.08, 0.12)),
    Claim(3, "L2 0.001 does not help vgg3", _against("vgg3", "vgg3-l2", -inf, TRIFLE)),
    Claim(
        4,
        "Augmentation adds about 11 points to vgg3, much as dropout does",
        (*_against("vgg3", "vgg3-aug", 0.09, 0.13), *_against("vgg3-dropout", "vgg3-aug", -0.02, 0.02)),
    ),
    Claim(
        5,
        "Rising dropout (200 epochs) beats fixed dropout (100)",
        _against("vgg3-dropout", "vgg3-dropout-rising", 0.0, inf),
    ),
    Claim(
        6,
        "Dropout and augmentation together (200) beat either alone (100)",
        (
            *_against("vgg3-dropout", "vgg3-dropout-aug", 0.0, inf),
            *_against("vgg3-aug", "vgg3-dropout-aug", 0.0, inf),
        ),
    ),
    Claim(
        7,
        "With batch norm, rising dropout and augmentation, 400 epochs reach 88.6, still improving near the end",
        (
            Check("vgg3-bn less 88.6, within a point", 0.886, Side("vgg3-bn"), -0.01, 0.01),
            _more(
                Side("vgg3-bn", "validation accuracy", 350, 20),
                Side("vgg3-bn", "validation accuracy", 400, 20),
                "vgg3-bn in epochs 381 to 400 against 331 to 350",
            ),
        ),
    ),
    Claim(
        8,
        "The small CNN gains 7.7 points from augmentation; AlexNet adds 2 more",
        (
            *_against("cnn-small", "cnn-small-aug", 0.057, 0.097),
            *_against("cnn-small-aug", "alexnet-small", 0.0, 0.04),
        ),
    ),
    Claim(
        9,
        "Training conv3-sgd beyond about 170 epochs gains nothing",
        (
            _no_more(
                Side("study-epochs/base", "validation accuracy", 170, 10),
                Side("study-epochs/base", "validation accuracy", 200, 10),
                "accuracy in epochs 191 to 200 against 161 to 170, less than a point more",
            ),
            Check(
                "loss in epochs 191 to 200 against 161 to 170, less than 0.01 lower",
                Side("study-epochs/base", "validation loss", 170, 10),
                Side("study-epochs/base", "validation loss", 200, 10),
                -TRIFLE,
                inf,
            ),
        ),
    ),
    Claim(
        10,
        "Small batches generalise better, and 32 is the best trade-off",
        (
            *_batches(
                "one rate for all",
                {1: "batch_size=1", 32: "base", 100: "batch_size=100", 1000: "batch_size=1000"},
            ),
            *_batches(
                "rate scaled linearly",
                {
                    1: "optimizer.learning_rate=0.0003125,batch_size=1",
                    32: "base",
                    100: "optimizer.learning_rate=0.03125,batch_size=100",
                    1000: "optimizer.learning_rate=0.3125,batch_size=1000",
                },
            ),
            *_batches(
                "rate scaled by the square root",
                {
                    1: "optimizer.learning_rate=0.0017678,batch_size=1",
                    32: "base",
                    100: "optimizer.learning_rate=0.017678,batch_size=100",
                    1000: "optimizer.learning_rate=0.055902,batch_size=1000",
                },
            ),
            *_batches(
                "1,172 steps for all",
                {
                    1: "data.steps_per_epoch=1172,batch_size=1",
                    32: "data.steps_per_epoch=1172",
                    100: "data.steps_per_epoch=1172,batch_size=100",
                    1000: "data.steps_per_epoch=1172,batch_size=1000",
                },
            ),
        ),
        remark="What a trade-off against time is worth is not tested here: the study's table has the times.",
    ),
    Claim(
        11,
        "Dropout 0.25 lowers overfitting in cnn4 without raising its best accuracy; batch norm before dropout improves"
        " the best; about 7 epochs are best with it",
        (
            Check(
                "overfitting of cnn4-dropout against cnn4",
                Side("cnn4", "overfitting"),
                Side("cnn4-dropout", "overfitting"),
                -inf,
                0.0,
            ),
            _no_more(
                Side("cnn4", "best validation accuracy"),
                Side("cnn4-dropout", "best validation accuracy"),
                "best of cnn4-dropout against cnn4, less than a point more",
            ),
            _more(
                Side("cnn4-dropout", "best validation accuracy"),
                Side("cnn4-bn", "best validation accuracy"),
                "best of cnn4-bn against cnn4-dropout",
            ),
            _more(
                Side("cnn4", "best validation accuracy"),
                Side("cnn4-bn", "best validation accuracy"),
                "best of cnn4-bn against cnn4",
            ),
            Check(
                "cnn4-bn: best epoch, from 6 to 8",
                0.0,
                Side("cnn4-bn", "epoch of the best validation accuracy"),
                6.0,
                8.0,
            ),
        ),
    ),
    Claim(
        12,
        "A frozen VGG16 does not improve on a small CNN trained from scratch; unfreezing changes that",
        (
            _no_more(Side("cnn4"), Side("vgg16-frozen"), "vgg16-frozen against cnn4, less than a point more"),
            _more(
                Side("cnn4", "validation accuracy"),
                Side("vgg16-finetune", "validation accuracy"),
                "vgg16-finetune against cnn4",
            ),
        ),
        remark="Both VGG16 recipes need ImageNet weights: without them there are no runs.",
    ),
)


@dataclass(frozen=True)
class CheckResult:
    """`found` is None where the check could not be made; `why` says what was missing."""

    check: Check
    found: Difference | None
    why: str = ""

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not tested"
        low = self.found.mean if self.found.low is None else self.found.low
        high = self.found.mean if self.found.high is None else self.found.high
        if self.check.low <= low and high <= self.check.high:
            return "holds"
        return "does not hold" if high < self.check.low or low > self.check.high else "not decided"

    @property
    def interval(self) -> list[float] | None:
        found = self.found
        return None if found is None or found.low is None or found.high is None else [found.low, found.high]

    @property
    def sentence(self) -> str:
        if self.found is None:
            return f"{self.check.text}: not tested ({self.why})."
        interval = "no spread between seeds"
        if self.found.low is not None and self.found.high is not None:
            interval = f"95 % interval {self._told(self.found.low)} to {self._told(self.found.high)}"
        told = f"{self._told(self.found.mean)}{self._unit()} ({interval}, {self.found.n_b} seeds)"
        return f"{self.check.text}: {told}: {self.verdict}."

    def _told(self, value: float) -> str:
        if self.check.b.quantity in EPOCHS:
            return f"{value:.1f}"
        return f"{value:+.3f}" if self.check.b.quantity == "validation loss" else f"{100 * value:+.2f}"

    def _unit(self) -> str:
        quantity = self.check.b.quantity
        return "" if quantity in EPOCHS or quantity == "validation loss" else " points"


@dataclass(frozen=True)
class Tested:
    claim: Claim
    results: tuple[CheckResult, ...]

    @property
    def verdict(self) -> str:
        """Of all checks: holds, holds in part, does not hold, not decided, not tested."""
        seen = {result.verdict for result in self.results}
        if seen == {"not tested"}:
            return "not tested"
        if len(seen) == 1:
            return seen.pop()
        tested = seen - {"not tested"}
        told = tested.pop() if len(tested) == 1 else "holds in part" if "holds" in tested else "not decided"
        return f"{told}, as far as it was tested" if "not tested" in seen else told

    @property
    def sentences(self) -> list[str]:
        return [result.sentence for result in self.results]

    def to_dict(self) -> dict[str, Any]:
        checks = [
            {
                "check": result.check.text,
                "difference": result.found and result.found.mean,
                "interval": result.interval,
                "n": result.found.n_b if result.found else None,
                "verdict": result.verdict,
                "sentence": result.sentence,
            }
            for result in self.results
        ]
        return {
            "number": self.claim.number,
            "claim": self.claim.text,
            "verdict": self.verdict,
            "checks": checks,
        }


# Testing


def test_claims(results: Path, claims: Sequence[Claim] = CLAIMS) -> list[Tested]:
    """Every claim, tested on the runs in `results`."""
    runs = runs_by_folder(results)
    return [Tested(claim, tuple(_made(check, runs) for check in claim.checks)) for claim in claims]


def runs_by_folder(results: Path) -> dict[str, dict[int, Run]]:
    """The finished runs of the recipes and of the studies, by folder in `results` and by seed."""
    wanted = dict(RECIPES)
    for name in STUDIES:
        for _, (planned,) in plan_study(load_study(name), Path(f"study-{name}"), seeds=1):
            wanted[str(planned.path.parent)] = planned.recipe
    found = {folder: finished_runs(results / folder, recipe)[0] for folder, recipe in wanted.items()}
    return {folder: {run.recipe.seed: run for run in runs} for folder, runs in found.items()}


def _made(check: Check, runs: Mapping[str, Mapping[int, Run]]) -> CheckResult:
    b = _values(check.b, runs)
    a = _values(check.a, runs) if isinstance(check.a, Side) else dict.fromkeys(b, check.a)
    both = sorted(a.keys() & b.keys())
    if len(both) >= ENOUGH:
        return CheckResult(check, difference([a[s] for s in both], [b[s] for s in both], paired=True))
    told = [f"{check.b.folder} {len(b)}"]
    if isinstance(check.a, Side) and check.a.folder != check.b.folder:
        told.insert(0, f"{check.a.folder} {len(a)}")
        told += [f"with the same seed {len(both)}"] if a and b else []
    return CheckResult(check, None, f"runs at full length: {', '.join(told)}")


def _values(side: Side, runs: Mapping[str, Mapping[int, Run]]) -> dict[int, float]:
    values = {seed: _value(side, run) for seed, run in runs.get(side.folder, {}).items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _value(side: Side, run: Run) -> float | None:
    """The side's quantity of one run; None where the run is too short, or was not evaluated."""
    recipe = RECIPES.get(side.folder)
    published = recipe.published if recipe else None
    end = side.epoch or (published.epochs if published else run.recipe.epochs)
    rows = run.metrics[:end]
    if len(rows) < end:
        return None
    window = rows[-side.window_epochs :]
    match side.quantity:
        case "accuracy":
            return accuracy_at(run, published.split, end) if published else None
        case "validation accuracy":
            return fmean(row["validation_accuracy"] for row in window)
        case "validation loss":
            return fmean(row["validation_loss"] for row in window)
        case "best validation accuracy":
            return max(row["validation_accuracy"] for row in rows)
        case "epoch of the lowest validation loss":
            return min(rows, key=lambda row: row["validation_loss"])["epoch"]
        case "epoch of the best validation accuracy":
            return max(rows, key=lambda row: row["validation_accuracy"])["epoch"]
        case "overfitting":
            return fmean(row["train_accuracy"] - row["validation_accuracy"] for row in window)


# As a page


def claims_page(tested: Sequence[Tested], results: Path) -> str:
    """results/claims.md."""
    rows = [[str(each.claim.number), each.claim.text, each.verdict] for each in tested]
    parts = [PAGE_HEAD, text.markdown_table(("claim", "in words", "verdict"), rows)]
    for each in tested:
        parts.append(f"## Claim {each.claim.number}: {each.verdict}\n\n{each.claim.text}.\n")
        parts.append("".join(f"- {sentence}\n" for sentence in each.sentences))
        parts += [f"{each.claim.remark}\n"] if each.claim.remark else []
    return "\n".join([*parts, _observed(results)])


def _observed(results: Path) -> str:
    """What the write-ups saw in single confusion matrices, looked at in all of ours."""
    rows = []
    for recipe in published_recipes():
        runs = [run for run in finished_runs(results / recipe.name, recipe)[0] if test_evaluation(run)]
        if runs:
            rows.append([f"`{recipe.name}`", str(len(runs)), _most_confused(runs), _worst_named(runs)])
    if not rows:
        return "## Observed\n\nNo run was evaluated on the test set.\n"
    header = ("recipe", "runs", "most confused on the test set", "least often named rightly")
    return (
        "## Observed\n\nThe write-ups say that cat and dog are confused most, and that horse is named worst.\n\n"
        + text.markdown_table(header, rows)
    )


def _most_confused(runs: Sequence[Run]) -> str:
    classes = runs[0].classes
    pairs = {
        (a, b): sum(_confusion(run)[a][b] + _confusion(run)[b][a] for run in runs)
        for a, b in itertools.combinations(range(len(classes)), 2)
    }
    a, b = max(pairs, key=lambda pair: pairs[pair])
    return f"{classes[a]} and {classes[b]}"


def _worst_named(runs: Sequence[Run]) -> str:
    classes = runs[0].classes
    shares = {
        name: fmean(_confusion(run)[index][index] / sum(_confusion(run)[index]) for run in runs)
        for index, name in enumerate(classes)
    }
    worst = min(shares, key=lambda name: shares[name])
    return f"{worst} ({100 * shares[worst]:.1f} %)"


def _confusion(run: Run) -> list[list[int]]:
    return (test_evaluation(run) or {})["confusion"]
