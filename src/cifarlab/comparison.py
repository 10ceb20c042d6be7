"""Is A better than B? Groups of runs against each other, from the answers that `evaluate` has stored."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cifarlab import text
from cifarlab.errors import UserError, one_of
from cifarlab.evaluation import evaluate, stored_answers
from cifarlab.groups import Group, check_same_pictures, group_runs, runs_under, sample_key
from cifarlab.run import Run
from cifarlab.statistics import (
    Difference,
    McNemar,
    Summary,
    bootstrap_interval,
    difference,
    fold_inflation,
    holm,
    mcnemar,
    seeds_needed,
    smallest_difference,
    summarize,
)

Verdict = Literal["a is better", "b is better", "no difference shown", "not tested"]
LEAST_SEEDS = 3  # a side, for a claim
LEVEL = 0.05
ASSUMED_SD = 0.005  # between seeds, where nothing in the comparison shows it


@dataclass(frozen=True)
class Judged:
    """A run's accuracy on the split; `right` is bool (N,), by picture, or None in a record without stored answers."""

    run: Run
    accuracy: float
    n_pictures: int
    right: np.ndarray | None

    @property
    def key(self) -> tuple[int, int | None]:
        return sample_key(self.run)


@dataclass(frozen=True)
class GroupResult:
    """A group's accuracies, one for each run, and their summary."""

    name: str
    accuracies: dict[str, float]  # by the run's path
    summary: Summary

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **self.summary.to_dict(), "accuracies": self.accuracies}


@dataclass(frozen=True)
class Seeds:
    """How many seeds would show the difference seen, with a power of 80 %, given a deviation between seeds."""

    each: int | None  # for each of the two; None beyond 10,000
    sd: float
    assumed: bool  # the deviation is an assumption, no group here shows it


@dataclass(frozen=True)
class Pair:
    """Group b against group a: differences are b - a, accuracies 0..1.

    Attributes:
        adjusted_p: Holm's, over all pairs of the comparison that have a p.
        smallest_difference: the smallest true difference that these seeds find with a power of 80 %.
        needed: what would be needed, where this many seeds were not enough to say anything.
        mcnemar: for each seed that both have (or else the first runs of each), by its name.
        bootstrap: 95 % interval over pictures, for these trained networks alone; a supplement.
        sentence: to be quoted.
    """

    a: str
    b: str
    difference: Difference
    adjusted_p: float | None
    verdict: Verdict
    smallest_difference: float | None
    needed: Seeds | None
    mcnemar: dict[str, McNemar]
    bootstrap: tuple[float, float] | None
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        difference = self.difference
        return {
            "a": self.a,
            "b": self.b,
            "difference": difference.mean,
            "interval": difference.interval,
            "p": difference.p,
            "adjusted_p": self.adjusted_p,
            "verdict": self.verdict,
            "paired": difference.paired,
            "n": [difference.n_a, difference.n_b],
            "smallest_difference": self.smallest_difference,
            "needed": None if self.needed is None else asdict(self.needed),
            "mcnemar": {name: asdict(test) for name, test in self.mcnemar.items()},
            "bootstrap_interval": None if self.bootstrap is None else list(self.bootstrap),
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class Comparison:
    """Groups, and every pair of them. `notes` say what was left out and what a reader must know."""

    split: str
    data: str
    n_pictures: int
    groups: tuple[GroupResult, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "data": self.data,
            "n_pictures": self.n_pictures,
            "groups": [group.to_dict() for group in self.groups],
            "pairs": [pair.to_dict() for pair in self.pairs],
            "notes": list(self.notes),
        }


def compare(
    runs: Sequence[str | Path],
    *,
    split: str | None = None,
    evaluate_missing: bool = False,
    assumed_sd: float = ASSUMED_SD,
    data_dir: str | Path | None = None,
) -> Comparison:
    """Compare groups of runs on a split, from stored answers.

    Args:
        runs: runs, groups, or folders of runs; the seeds of one recipe are one group.
        split: "test" or "validation"; None for the test set, but for groups of folds their held-out pictures.
        evaluate_missing: judge first what `evaluate` has not judged; otherwise that is an error.
        assumed_sd: deviation between seeds, 0..1, to say how many are needed where no group has two.
        data_dir: for `evaluate`.

    Raises:
        UserError: with fewer than two groups, for runs on different data or pictures, or not judged yet.
    """
    found, notes = _finished(group_runs(runs_under(runs)))
    if len(found) < 2:
        left_out = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(
            f"{text.count(len(found[0].runs), 'finished run')}, all of one recipe, {found[0].name}: give runs of two"
            f" or more{left_out}"
        )
    chosen = _chosen_split(found, split)
    check_same_pictures([run for group in found for run in group.runs], chosen)
    judged = [_judge(group, chosen, evaluate_missing, data_dir) for group in found]
    groups = tuple(_group_result(group, members) for group, members in zip(found, judged, strict=True))
    first = judged[0][0]
    about = f"{first.n_pictures:,} {chosen} pictures of {first.run.data['name']}"
    folds = found[0].runs[0].recipe.data.folds if _of_folds(found[0]) else None
    return Comparison(
        split=chosen,
        data=first.run.data["name"],
        n_pictures=first.n_pictures,
        groups=groups,
        pairs=_pairs(groups, judged, about, folds, assumed_sd),
        notes=(*notes, *_remarks(found, judged, chosen)),
    )


# What is compared


def _finished(groups: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """Groups of the finished runs, each seed once, and what was left out."""
    kept, notes = [], []
    for group in groups:
        by_key: dict[Any, Run] = {}
        for run in group.runs:
            key = sample_key(run)
            if not run.is_complete:
                notes.append(
                    f"left out: {run.path} has finished {len(run.metrics)} of {run.recipe.epochs} epochs"
                )
            elif key in by_key:
                notes.append(
                    f"left out: {run.path} has the seed of {by_key[key].path}, and is no further sample"
                )
            else:
                by_key[key] = run
        if by_key:
            kept.append(Group(group.name, tuple(by_key.values())))
    if not kept:
        raise UserError(f"no run is finished: `{text.command('resume', groups[0].runs[0].path)}`")
    return kept, notes


def _of_folds(group: Group) -> bool:
    return group.runs[0].recipe.data.validation == "fold"


def _chosen_split(groups: Sequence[Group], split: str | None) -> str:
    of_folds = [group for group in groups if _of_folds(group)]
    if split not in (None, "test", "validation"):
        raise UserError(f"--split should be {one_of(('test', 'validation'))}, '{split}' given")
    if of_folds and len(of_folds) < len(groups):
        raise UserError(
            f"{of_folds[0].name} is a cross-validation and another group is not: compare like with like"
        )
    if of_folds and split == "test":
        raise UserError("a cross-validation is judged on what its folds hold out: leave --split out")
    return split or ("validation" if of_folds else "test")


def _judge(group: Group, split: str, evaluate_missing: bool, data_dir: str | Path | None) -> list[Judged]:
    return [_judge_run(run, split, evaluate_missing, data_dir) for run in group.runs]


def _judge_run(run: Run, split: str, evaluate_missing: bool, data_dir: str | Path | None) -> Judged:
    weights = run.default_weights
    has_weights = run.weights_path(weights).exists()
    if has_weights and evaluate_missing:
        evaluate(run, split=split, data_dir=data_dir)
    if has_weights:
        answers = stored_answers(run, split, weights)
        if answers is not None:
            right = (answers[0].argmax(1) == answers[1]).numpy()
            return Judged(run, float(right.mean()), len(right), right)
    recorded = run.evaluations.get(split, {}).get(weights)
    if has_weights or recorded is None:
        option = [] if split == "test" else ["--split", split]
        way_out = f"`{text.command('evaluate', run.path, *option)}`, or --evaluate for all"
        raise UserError(
            f"{run.path} has not been judged on the {split} pictures with its {weights} weights: {way_out}"
        )
    return Judged(run, recorded["accuracy"], recorded["n"], None)


def _group_result(group: Group, judged: Sequence[Judged]) -> GroupResult:
    accuracies = {str(each.run.path): each.accuracy for each in judged}
    return GroupResult(group.name, accuracies, summarize(list(accuracies.values())))


def _remarks(groups: Sequence[Group], judged: Sequence[Sequence[Judged]], split: str) -> list[str]:
    remarks = []
    for group in groups:
        if group.runs[0].recipe.data.validation == "test":
            remarks.append(f"{group.name} validated on the test set while it trained")
    if _of_folds(groups[0]):
        remarks.append(
            "folds share training pictures: intervals of differences are widened for it (Nadeau and Bengio 2003), those"
            " of the means are not"
        )
    if split == "validation" and groups[0].runs[0].default_weights == "best":
        remarks.append("the weights were chosen on these pictures: every accuracy is somewhat too high")
    without = [each.run for members in judged for each in members if each.right is None]
    if without:
        remarks.append(
            f"{without[0].path} is a record without stored answers: nothing is said picture by picture"
        )
    return remarks


# Pairs


def _pairs(
    groups: Sequence[GroupResult],
    judged: Sequence[Sequence[Judged]],
    about: str,
    folds: int | None,
    assumed_sd: float,
) -> tuple[Pair, ...]:
    chosen = list(combinations(range(len(groups)), 2))
    differences = [_difference(judged[a], judged[b], folds) for a, b in chosen]
    p_values = [each.p for each in differences if each.p is not None]
    adjusted = iter(holm(p_values))
    pairs = []
    for (a, b), between in zip(chosen, differences, strict=True):
        adjusted_p = None if between.p is None else next(adjusted)
        pairs.append(
            _pair(
                (groups[a], groups[b]),
                (judged[a], judged[b]),
                between,
                adjusted_p,
                Words(about, folds, len(p_values)),
                _needed([groups[a], groups[b]], groups, between, assumed_sd),
            )
        )
    return tuple(pairs)


def _difference(a: Sequence[Judged], b: Sequence[Judged], folds: int | None) -> Difference:
    """Paired where both groups have the same seeds."""
    of_a, of_b, paired = _samples(a, b)
    return difference(of_a, of_b, paired=paired, inflation=_inflation(folds))


def _inflation(folds: int | None) -> float:
    return 1.0 if folds is None else fold_inflation(folds)


def _samples(a: Sequence[Judged], b: Sequence[Judged]) -> tuple[list[float], list[float], bool]:
    by_a, by_b = ({each.key: each.accuracy for each in members} for members in (a, b))
    paired = by_a.keys() == by_b.keys()
    return list(by_a.values()), [by_b[key] for key in by_a] if paired else list(by_b.values()), paired


@dataclass(frozen=True)
class Words:
    """What a sentence says of the whole comparison: the pictures, what a run is one of, and how many pairs."""

    about: str
    folds: int | None
    n_pairs: int

    @property
    def sample(self) -> str:
        return "seed" if self.folds is None else "fold"


def _pair(
    groups: tuple[GroupResult, GroupResult],
    judged: tuple[Sequence[Judged], Sequence[Judged]],
    between: Difference,
    adjusted_p: float | None,
    words: Words,
    needed: Seeds,
) -> Pair:
    of_a, of_b, paired = _samples(*judged)
    verdict = _verdict(between, adjusted_p)
    smallest = smallest_difference(of_a, of_b, paired=paired, inflation=_inflation(words.folds))
    return Pair(
        a=groups[0].name,
        b=groups[1].name,
        difference=between,
        adjusted_p=adjusted_p,
        verdict=verdict,
        smallest_difference=smallest,
        needed=needed if verdict == "not tested" else None,
        mcnemar=_mcnemar(*judged),
        bootstrap=_bootstrap(*judged),
        sentence=_sentence(groups, between, adjusted_p, verdict, smallest, needed, words),
    )


def _verdict(between: Difference, adjusted_p: float | None) -> Verdict:
    if adjusted_p is None or min(between.n_a, between.n_b) < LEAST_SEEDS:
        return "not tested"
    if adjusted_p >= LEVEL:
        return "no difference shown"
    return "b is better" if between.mean > 0 else "a is better"


def _needed(
    pair: Sequence[GroupResult], groups: Sequence[GroupResult], between: Difference, assumed_sd: float
) -> Seeds:
    """With the deviation of the two groups, or else of all groups, or else an assumed one."""
    for members in (pair, groups):
        known = [group.summary for group in members if group.summary.sd]
        if known:
            freedom = [summary.n - 1 for summary in known]
            sd = float(np.sqrt(np.average([(summary.sd or 0.0) ** 2 for summary in known], weights=freedom)))
            return Seeds(seeds_needed(between.mean, sd), sd, assumed=False)
    return Seeds(seeds_needed(between.mean, assumed_sd), assumed_sd, assumed=True)


def _mcnemar(a: Sequence[Judged], b: Sequence[Judged]) -> dict[str, McNemar]:
    by_b = {each.key: each for each in b}
    shared = [(each, by_b[each.key]) for each in a if each.key in by_b] or [(a[0], b[0])]
    return {
        f"{one.run.path.name} and {other.run.path.name}": mcnemar(one.right, other.right)
        for one, other in shared
        if one.right is not None and other.right is not None
    }


def _bootstrap(a: Sequence[Judged], b: Sequence[Judged]) -> tuple[float, float] | None:
    """Over the pictures of the mean difference of all runs; with folds, over all of the training set."""
    rights = [[each.right for each in members] for members in (a, b)]
    if any(right is None for side in rights for right in side):
        return None
    if a[0].key[1] is None:
        of_a, of_b = (np.mean([_as_float(right) for right in side], axis=0) for side in rights)
        return bootstrap_interval(of_b - of_a)
    by_b = {each.key: each for each in b}
    shared = [(each, by_b[each.key]) for each in a if each.key in by_b]
    of_folds = [_as_float(other.right) - _as_float(one.right) for one, other in shared]
    return bootstrap_interval(np.concatenate(of_folds)) if of_folds else None


def _as_float(right: np.ndarray | None) -> np.ndarray:
    assert right is not None
    return right.astype(float)


# Words


def _sentence(
    groups: tuple[GroupResult, GroupResult],
    between: Difference,
    adjusted_p: float | None,
    verdict: Verdict,
    smallest: float | None,
    needed: Seeds,
    words: Words,
) -> str:
    a, b = groups
    means = f"{b.name} {_percent(b.summary.mean)}, {a.name} {_percent(a.summary.mean)}"
    counts = _counts(between, words.sample)
    if verdict == "not tested":
        return f"Not tested: {counts} on {words.about} ({means}) {_why_not_tested(between, needed)}"
    how = f"{'paired' if between.paired else 'Welch'} t test, {text.p_statement(between.p)}"
    if words.n_pairs > 1:
        how += f"; corrected by Holm for {words.n_pairs} pairs, {text.p_statement(adjusted_p)}"
    found = f"95 % interval {_points(between.low)} to {_points(between.high)}, {how}"
    if verdict == "no difference shown":
        could = "" if smallest is None else f"; {counts} could have shown {100 * smallest:.2f} points or more"
        return (
            f"No difference is shown over {counts} on {words.about}: {b.name} less {a.name} is {_points(between.mean)}"
            f" points ({found}){could}."
        )
    better, worse = (b, a) if between.mean > 0 else (a, b)
    low, high = sorted(abs(value) for value in (between.low or 0.0, between.high or 0.0))
    return (
        f"Over {counts} on {words.about}, {better.name} is {100 * abs(between.mean):.2f} points better than"
        f" {worse.name} (95 % interval {100 * low:.2f} to {100 * high:.2f}, {how})."
    )


def _counts(between: Difference, sample: str) -> str:
    if between.n_a == between.n_b:
        return f"one {sample} each" if between.n_a == 1 else f"{between.n_a} {sample}s each"
    return f"{between.n_b} and {between.n_a} {sample}s"


def _why_not_tested(between: Difference, needed: Seeds) -> str:
    has = min(between.n_a, between.n_b)
    if has >= LEAST_SEEDS:
        return "do not vary from seed to seed, so that they show no spread to judge the difference by."
    if between.mean == 0.0:
        return "show no difference; a claim needs three seeds a side."
    known = "an assumed deviation" if needed.assumed else "the deviation seen here"
    if needed.each is None:
        more = "more than 10,000 seeds"
    else:
        each = max(needed.each, LEAST_SEEDS)
        more = f"about {each} seeds each, {each - has} more,"
    return (
        f"cannot tell the recipes apart from their seeds. Showing a true difference of {100 * abs(between.mean):.2f}"
        f" points (power 80 %, level 5 %) takes {more} with {known} between seeds of {100 * needed.sd:.2f} points."
    )


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f} %"


def _points(difference: float | None) -> str:
    return "–" if difference is None else f"{100 * difference:+.2f}"
