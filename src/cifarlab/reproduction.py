"""Published figures beside ours, from stored runs: `<results>/<recipe>/seed-<n>`, whole runs or records of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarlab import text
from cifarlab.errors import UserError, one_of
from cifarlab.plan import Planned, differing_settings
from cifarlab.recipe import Published, Recipe
from cifarlab.recipes import RECIPES, get_recipe
from cifarlab.run import Run, chosen_row, is_run
from cifarlab.statistics import prediction_interval, summarize

WITHIN = 0.01  # of the published accuracy: reproduced, with fewer than ENOUGH runs
ENOUGH = 3  # runs that a prediction interval is made from
FAR_BELOW = 0.02  # of the published accuracy: to be looked into
HEADER = (
    "recipe",
    "split",
    "published %",
    "ours %",
    "range",
    "n (seeds)",
    "verdict",
    "epochs",
    "test %",
    "TTA",
    "hardware",
    "time of a run",
)
NOTES = """\
CIFAR-10. Ours: mean ± standard deviation over the runs, on the split that the source reports; beside it the accuracy on
all 10,000 test pictures. † As in the source, validation was the test set; nothing was chosen by it. Verdict: with three
runs or more, *reproduced* when the published figure lies in the 95 % prediction interval for one run of ours, else
*better* or *worse*; with fewer, *reproduced* within one point. TTA: predictions averaged over so many views of
a picture (itself, its mirror image, both moved by a pixel); where there is a number, published and ours are with them,
and test % is without. Times are wall-clock, with validation and saving, on machines that other programs used: upper
bounds.
"""


@dataclass(frozen=True)
class Entry:
    """The runs of a published recipe that are of one length. Accuracies are 0..1, in the order of `runs`.

    Attributes:
        epochs: that every run was trained for.
        accuracies: on the published split, by the recipe's rule for weights.
        test_accuracies: of the runs that were evaluated on the test set.
    """

    recipe: Recipe
    epochs: int
    runs: tuple[Run, ...]
    accuracies: tuple[float, ...]
    test_accuracies: tuple[float, ...]

    @property
    def published(self) -> Published:
        return published_of(self.recipe)

    @property
    def verdict(self) -> str:
        if not self.runs:
            return "not run" if _can_begin(self.recipe) else "weights not available"
        if self.epochs < self.published.epochs:
            return "not run at full length"
        if self.epochs > self.published.epochs:
            return "run longer than published"
        return verdict(self.accuracies, self.published.accuracy)

    @property
    def far_below(self) -> bool:
        """More than two points below the published figure at full length: a mistake of ours until shown otherwise."""
        full = bool(self.accuracies) and self.epochs >= self.published.epochs
        return full and summarize(self.accuracies).mean < self.published.accuracy - FAR_BELOW


def _can_begin(recipe: Recipe) -> bool:
    """Whether the weights that the network begins with are on this machine, or it begins with random ones."""
    if getattr(recipe.model, "weights", None) is None:
        return True
    from cifarlab import pretrained

    return pretrained.available(recipe.model)


def published_of(recipe: Recipe) -> Published:
    assert recipe.published is not None, f"{recipe.name} reproduces nothing"
    return recipe.published


def published_recipes(names: Sequence[str] = ()) -> list[Recipe]:
    """The recipes called `names`, or all that have a published figure.

    Raises:
        UserError: for an unknown name, or a recipe without a published figure.
    """
    chosen = [get_recipe(name) for name in dict.fromkeys(names)] or list(RECIPES.values())
    if names and (without := [recipe.name for recipe in chosen if recipe.published is None]):
        there = one_of(recipe.name for recipe in RECIPES.values() if recipe.published)
        raise UserError(f"{without[0]} has no published figure to reproduce; there are {there}")
    return [recipe for recipe in chosen if recipe.published is not None]


def verdict(accuracies: Sequence[float], published: float) -> str:
    """Of runs at full length: reproduced, better or worse, marked where they are too few for an interval."""
    if not accuracies:
        return "not evaluated"
    mean = summarize(accuracies).mean
    if len(accuracies) >= ENOUGH:
        low, high = prediction_interval(accuracies) or (mean, mean)
        mark = ""
    else:
        low, high = mean - WITHIN, mean + WITHIN
        mark = " (one seed)" if len(accuracies) == 1 else " (two seeds)"
    within = low <= published <= high
    return ("reproduced" if within else "better" if mean > published else "worse") + mark


# What is there


def planned_runs(
    recipes: Iterable[Recipe], results: Path, seeds: int, epochs: int | None, device: dict[str, Any]
) -> list[Planned]:
    """The runs that a reproduction needs, seed after seed."""
    return [
        Planned(
            results / recipe.name / f"seed-{seed}",
            recipe.model_copy(
                update={
                    "seed": seed,
                    "epochs": epochs or recipe.epochs,
                    "device": recipe.device.model_copy(update=device),
                }
            ),
            "cifar10",
        )
        for seed in range(seeds)
        for recipe in recipes
    ]


def finished_runs(group: Path, recipe: Recipe) -> tuple[list[Run], list[str]]:
    """The finished runs of `recipe` in `group`/seed-<n>, and a line about each other one."""
    runs, left_out = [], []
    for folder in sorted(group.glob("seed-*"), key=lambda folder: (len(folder.name), folder.name)):
        if not is_run(folder):
            continue
        run = Run(folder)
        if other := differing_settings(run.recipe, recipe):
            left_out.append(f"{folder}: other settings ({', '.join(other)})")
        elif run.data["name"] != "cifar10":
            left_out.append(f"{folder}: trained on {run.data['name']}")
        elif run.divergence is not None:
            left_out.append(f"{folder}: {run.divergence}")
        elif not (run.is_record or run.is_complete):
            left_out.append(f"{folder}: {len(run.metrics)} of {run.recipe.epochs} epochs, to be resumed")
        else:
            runs.append(run)
    return runs, left_out


def read_results(results: Path, recipes: Iterable[Recipe]) -> tuple[list[Entry], list[str]]:
    """An entry for each recipe and length of its runs, and lines about runs that are left out."""
    entries, left_out = [], []
    for recipe in recipes:
        runs, others = finished_runs(results / recipe.name, recipe)
        left_out += others
        lengths: dict[int, list[Run]] = {}
        for run in runs:
            lengths.setdefault(_length(run, recipe), []).append(run)
        entries += [_entry(recipe, epochs, lengths[epochs]) for epochs in sorted(lengths, reverse=True)]
        if not lengths:
            entries.append(Entry(recipe, 0, (), (), ()))
    return entries, left_out


def _entry(recipe: Recipe, epochs: int, runs: list[Run]) -> Entry:
    accuracies = [accuracy_at(run, published_of(recipe).split, epochs) for run in runs]
    tested = [test_evaluation(run) for run in runs if len(run.metrics) == epochs]
    return Entry(
        recipe,
        epochs,
        tuple(runs),
        tuple(accuracy for accuracy in accuracies if accuracy is not None),
        tuple(evaluation["accuracy"] for evaluation in tested if evaluation),
    )


def _length(run: Run, recipe: Recipe) -> int:
    """The epochs that a run counts with: a longer one is read where the source stopped, if its metrics say enough."""
    epochs, published = len(run.metrics), published_of(recipe)
    return min(epochs, published.epochs) if _in_metrics(run, published.split) else epochs


def accuracy_at(run: Run, split: str, epochs: int) -> float | None:
    """Accuracy 0..1 on `split` after `epochs` epochs, by the recipe's rules for weights and for test-time views.

    None when it is not known.
    """
    if _in_metrics(run, split):
        rows = run.metrics[:epochs]
        return chosen_row(rows, run.recipe)["validation_accuracy"] if len(rows) == epochs else None
    evaluation = test_evaluation(run) if split == "test" else None
    if not evaluation or len(run.metrics) != epochs:
        return None
    return evaluation.get("accuracy" if run.recipe.test_time_views == "none" else "accuracy_with_tta")


def _in_metrics(run: Run, split: str) -> bool:
    return split == "validation" or run.recipe.data.validation == split


def test_evaluation(run: Run) -> dict[str, Any] | None:
    """The stored evaluation on the test set with the weights that the recipe names."""
    return run.evaluations.get("test", {}).get(run.default_weights)


# As tables


def results_table(entries: Iterable[Entry], link_to: str = ".") -> str:
    """A Markdown table; recipes link to their folders in `link_to`."""
    rows = []
    for entry in entries:
        name = (
            f"[`{entry.recipe.name}`]({link_to}/{entry.recipe.name})"
            if entry.runs
            else f"`{entry.recipe.name}`"
        )
        rows.append([name, *entry_cells(entry)])
    return text.markdown_table(HEADER, rows)


def entry_cells(entry: Entry) -> list[str]:
    """What stands in the table's columns after the recipe's name, as text."""
    published, accuracies = entry.published, entry.accuracies
    saw_test = " †" if entry.recipe.data.validation == "test" else ""
    before = [f"{published.split}{saw_test}", f"{100 * published.accuracy:.2f}"]
    if not entry.runs:
        return [*before, "–", "–", "–", entry.verdict, f"0 of {published.epochs}", *["–"] * 4]
    seeds = ", ".join(str(run.recipe.seed) for run in entry.runs)
    times = [run.metrics[entry.epochs - 1]["elapsed_seconds"] for run in entry.runs]
    return [
        *before,
        text.mean_and_deviation(accuracies) if accuracies else "–",
        text.span(accuracies) if accuracies else "–",
        f"{len(entry.runs)} ({seeds})",
        entry.verdict,
        f"{entry.epochs} of {published.epochs}",
        text.mean_and_deviation(entry.test_accuracies) if entry.test_accuracies else "–",
        _tta_text([test_evaluation(run) or {} for run in entry.runs]),
        "; ".join(dict.fromkeys(run.hardware for run in entry.runs)),
        text.duration(sum(times) / len(times)),
    ]


def _tta_text(evaluations: list[dict[str, Any]]) -> str:
    views = {evaluation["tta_views"] for evaluation in evaluations if evaluation.get("tta")}
    return ", ".join(text.count(n, "view") for n in views) or "no"


def results_page(entries: Sequence[Entry]) -> str:
    """results/reproduction.md."""
    return (
        "# Published and reproduced\n\nWritten by `cifarlab reproduce` from the runs in this folder.\n\n"
        f"{results_table(entries)}\n{NOTES}"
    )


def entry_document(entry: Entry) -> dict[str, Any]:
    """An entry for JSON."""
    summary = summarize(entry.accuracies) if entry.accuracies else None
    interval = prediction_interval(entry.accuracies) if entry.accuracies else None
    return {
        "recipe": entry.recipe.name,
        "published_accuracy": entry.published.accuracy,
        "published_split": entry.published.split,
        "published_epochs": entry.published.epochs,
        "epochs": entry.epochs,
        "accuracy": summary and summary.to_dict(),
        "lowest": min(entry.accuracies, default=None),
        "highest": max(entry.accuracies, default=None),
        "prediction_interval": interval,
        "test_accuracies": list(entry.test_accuracies),
        "test_time_views": entry.recipe.test_time_views,
        "validation_was_test": entry.recipe.data.validation == "test",
        "elapsed_seconds": [run.metrics[entry.epochs - 1]["elapsed_seconds"] for run in entry.runs],
        "hardware": list(dict.fromkeys(run.hardware for run in entry.runs)),
        "runs": [str(run.path) for run in entry.runs],
        "verdict": entry.verdict,
    }
