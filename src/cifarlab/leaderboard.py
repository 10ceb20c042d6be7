"""A folder of runs as a table: one row for each group, from what the runs have recorded. Nothing is evaluated."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from cifarlab import text
from cifarlab.errors import UserError
from cifarlab.groups import Group, group_runs, runs_under, sample_key
from cifarlab.macro import macro_mean, uneven
from cifarlab.run import Run, chosen_row
from cifarlab.statistics import Summary, summarize


@dataclass(frozen=True)
class Entry:
    """A group of runs. Accuracies are 0..1.

    Attributes:
        test: over the runs that `evaluate` has judged on the test set with the weights that their recipe names.
        test_with_tta: over the runs judged with test-time augmentation too; None where the recipe has none.
        tta_views: copies of each picture that those answers are averaged over.
        test_macro, test_macro_f1: of the same runs, averaged over classes.
        is_uneven: the classes of the test set differ much in size, so that macro averages say more.
        validation: over all runs, of those weights; None without validation pictures apart from the test set.
        n_unjudged: finished runs that were not judged on the test set.
        n_unfinished: runs whose training was cut off, or goes on; they are in no figure but this.
        epochs: the most that a run has finished.
        seconds: mean time of training.
        hardware: processors and threads, or GPUs.
        saw_test: the recipe validated on the test set: whoever chose anything by validation looked at it.
        test_set_uses: the most that the test set was opened for one run.
    """

    name: str
    recipe: str
    data: str
    test: Summary | None
    test_with_tta: Summary | None
    tta_views: int
    test_macro: Summary | None
    test_macro_f1: Summary | None
    is_uneven: bool
    validation: Summary | None
    n_unjudged: int
    n_unfinished: int
    epochs: int
    planned_epochs: int
    parameters: int | None
    seconds: float | None
    hardware: str
    saw_test: bool
    test_set_uses: int
    runs: tuple[str, ...]

    @property
    def fields(self) -> str:
        """What tells the group from others of its recipe: `batch_size=32, epochs=10`, or nothing."""
        return self.name.removeprefix(self.recipe).strip().removeprefix("(").removesuffix(")")

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "recipe": self.recipe,
            "data": self.data,
            "test_accuracy": _document(self.test),
            "test_accuracy_with_tta": _document(self.test_with_tta),
            "tta_views": self.tta_views,
            "test_macro_accuracy": _document(self.test_macro),
            "test_macro_f1": _document(self.test_macro_f1),
            "validation_accuracy": _document(self.validation),
            "unjudged": self.n_unjudged,
            "unfinished": self.n_unfinished,
            "epochs": self.epochs,
            "planned_epochs": self.planned_epochs,
            "parameters": self.parameters,
            "elapsed_seconds": self.seconds,
            "hardware": self.hardware,
            "validated_on_test_set": self.saw_test,
            "test_set_uses": self.test_set_uses,
            "runs": list(self.runs),
        }


def leaderboard(paths: Sequence[str | Path]) -> list[Entry]:
    """Groups of the runs at `paths`, the best mean test accuracy first; those without one last, by validation accuracy.

    Raises:
        UserError: when there is no run, or one is damaged.
    """
    entries = [_entry(group) for group in group_runs(runs_under(paths))]
    return sorted(entries, key=lambda entry: (_descending(entry.test), _descending(entry.validation)))


def _descending(summary: Summary | None) -> tuple[bool, float]:
    return (True, 0.0) if summary is None else (False, -summary.mean)


def _entry(group: Group) -> Entry:
    finished = list({sample_key(run): run for run in reversed(group.runs) if run.is_complete}.values())[::-1]
    tested = [recorded for run in finished if (recorded := _test_record(run)) is not None]
    with_tta = [recorded for recorded in tested if recorded.get("tta")]
    validated = [accuracy for run in finished if (accuracy := _validation_accuracy(run)) is not None]
    rows = [run.metrics[-1] for run in group.runs if run.metrics]
    recipe = group.runs[0].recipe
    return Entry(
        name=group.name,
        recipe=recipe.name,
        data=group.runs[0].data["name"],
        test=_mean_of(tested, "accuracy"),
        test_with_tta=_mean_of(with_tta, "accuracy_with_tta"),
        tta_views=with_tta[0]["tta_views"] if with_tta else 1,
        test_macro=summarize([_macro(recorded, "recall") for recorded in tested]) if tested else None,
        test_macro_f1=summarize([_macro(recorded, "f1") for recorded in tested]) if tested else None,
        is_uneven=any(uneven([each["n"] for each in recorded["classes"]]) for recorded in tested),
        validation=summarize(validated) if validated else None,
        n_unjudged=len(finished) - len(tested),
        n_unfinished=sum(not run.is_complete for run in group.runs),
        epochs=max((row["epoch"] for row in rows), default=0),
        planned_epochs=recipe.epochs,
        parameters=recipe.parameters or _count_parameters(group.runs[0]),
        seconds=sum(row["elapsed_seconds"] for row in rows) / len(rows) if rows else None,
        hardware=", ".join(dict.fromkeys(run.hardware for run in group.runs)),
        saw_test=recipe.data.validation == "test",
        test_set_uses=max(len(run.evaluations.get("test_set_uses", [])) for run in group.runs),
        runs=tuple(str(run.path) for run in group.runs),
    )


def _mean_of(records: list[dict[str, Any]], figure: str) -> Summary | None:
    return summarize([recorded[figure] for recorded in records]) if records else None


def _macro(recorded: dict[str, Any], figure: str) -> float:
    return macro_mean([(each[figure], each["n"]) for each in recorded["classes"]])


def _test_record(run: Run) -> dict[str, Any] | None:
    """As recorded, if it is of the weights as they are now; a record has no weights, and is taken as it is."""
    weights = run.default_weights
    recorded = run.evaluations.get("test", {}).get(weights)
    if recorded is None:
        return None
    kept = run.weights_path(weights).exists()
    if kept and run.judged_weights("test").get(weights) != run.weights_checksum(weights):
        return None
    return recorded


def _validation_accuracy(run: Run) -> float | None:
    rows = run.metrics
    if not rows or run.recipe.data.validation == "test":
        return None
    return chosen_row(rows, run.recipe)["validation_accuracy"]


def _document(summary: Summary | None) -> dict[str, Any] | None:
    return None if summary is None else summary.to_dict()


def _count_parameters(run: Run) -> int | None:
    """Of the network as it was built, with batch norm's running statistics, as Keras counts."""
    import torch

    from cifarlab.models import build_model

    try:
        with torch.device("meta"):
            model = build_model(run.recipe.model, len(run.classes), tuple(run.data["input_shape"]))
    except (KeyError, UserError):
        return None
    tensors = model.state_dict()
    return sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith("num_batches_tracked"))


# The page

WITH_VIEWS = "With test-time views"
BREAKS = re.compile(r"(=|[._](?=[a-z]))")
Column = tuple[str, str, Callable[[Entry], tuple[str, float | str | None]]]
COLUMNS: tuple[Column, ...] = (
    ("Recipe", "text", lambda entry: (f"{entry.recipe}{' †' if entry.saw_test else ''}", entry.name.lower())),
    ("Data", "text", lambda entry: (entry.data, entry.data)),
    ("Runs", "number", lambda entry: (_n_text(entry), entry.test.n if entry.test else 0)),
    ("Test accuracy", "number", lambda entry: _mean_cell(entry.test)),
    (WITH_VIEWS, "number", lambda entry: _tta_cell(entry)),
    ("95 % interval", "number", lambda entry: _interval_cell(entry.test)),
    ("Validation", "number", lambda entry: _mean_cell(entry.validation)),
    ("Epochs", "number", lambda entry: (epochs_text(entry), entry.epochs)),
    (
        "Parameters",
        "number",
        lambda entry: ("–" if entry.parameters is None else f"{entry.parameters:,}", entry.parameters),
    ),
    (
        "Time a run",
        "number",
        lambda entry: ("–" if entry.seconds is None else text.duration(entry.seconds), entry.seconds),
    ),
    ("Hardware", "text", lambda entry: (entry.hardware, entry.hardware)),
)


def page(entries: Sequence[Entry], title: str) -> str:
    """One HTML page that needs nothing else: sortable, to be filtered, light and dark."""
    template = Template((files("cifarlab") / "leaderboard.html").read_text("utf-8"))
    columns = [
        column
        for column in COLUMNS
        if column[0] != WITH_VIEWS or any(entry.test_with_tta is not None for entry in entries)
    ]
    heads = "".join(
        f'<th scope="col" class="{kind}"><button type="button" data-column="{number}">{name}</button></th>'
        for number, (name, kind, _) in enumerate(columns)
    )
    options = "".join(
        f'<option value="{number}">{name}</option>' for number, (name, _, _) in enumerate(columns)
    )
    data = "".join(
        f"<option>{escape(name)}</option>" for name in dict.fromkeys(entry.data for entry in entries)
    )
    return template.substitute(
        title=escape(title),
        heads=heads,
        sort_options=options,
        data_options=data,
        rows="\n".join(_row(entry, columns) for entry in entries),
        count=len(entries),
    )


def _row(entry: Entry, columns: Sequence[Column]) -> str:
    cells = []
    for number, (name, kind, value) in enumerate(columns):
        shown, key = value(entry)
        tag = 'th scope="row"' if number == 0 else "td"
        sort = "" if key is None else escape(str(key), quote=True)
        hint = ' title="validated on the test set while it trained"' if number == 0 and entry.saw_test else ""
        content = escape(shown) + (_fields(entry) if number == 0 else "")
        closing = tag.split()[0]
        cells.append(
            f'<{tag} class="{kind}" data-label="{name}" data-key="{sort}"{hint}>{content}</{closing}>'
        )
    saw_test = " saw-test" if entry.saw_test else ""
    return f'<tr class="entry{saw_test}" data-data="{escape(entry.data, quote=True)}">{"".join(cells)}</tr>'


def _fields(entry: Entry) -> str:
    """Below the recipe's name; lines may end after a part of a field's name, not within a number."""
    if not entry.fields:
        return ""
    content = BREAKS.sub(r"\1<wbr>", escape(entry.fields))
    return f'<span class="fields">{content}</span>'


def epochs_text(entry: Entry) -> str:
    """`100`, or `14 of 100` where none has finished them all."""
    return (
        f"{entry.epochs:,}"
        if entry.epochs == entry.planned_epochs
        else f"{entry.epochs:,} of {entry.planned_epochs:,}"
    )


def mean_text(summary: Summary | None) -> str:
    """`71.23 % ± 0.42`."""
    if summary is None:
        return "–"
    return text.percent(summary.mean, 2) + ("" if summary.sd is None else f" ± {100 * summary.sd:.2f}")


def interval_text(summary: Summary | None) -> str:
    """`70.19 to 72.27 %`."""
    if summary is None or summary.low is None or summary.high is None:
        return "–"
    return f"{100 * summary.low:.2f} to {100 * summary.high:.2f} %"


def _n_text(entry: Entry) -> str:
    n = 0 if entry.test is None else entry.test.n
    left = [(entry.n_unjudged, "not judged"), (entry.n_unfinished, "not finished")]
    return ", ".join([str(n), *(f"{count} {what}" for count, what in left if count)])


def _mean_cell(summary: Summary | None) -> tuple[str, float | None]:
    return mean_text(summary), None if summary is None else summary.mean


def _tta_cell(entry: Entry) -> tuple[str, float | None]:
    shown, key = _mean_cell(entry.test_with_tta)
    return f"{shown} ({entry.tta_views})" if entry.test_with_tta else shown, key


def _interval_cell(summary: Summary | None) -> tuple[str, float | None]:
    return interval_text(summary), None if summary is None else summary.low
