"""`cifarlab evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.data import decoding_progress
from cifarlab.cli.options import AsJson, DataDir
from cifarlab.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.evaluation import Evaluation
    from cifarlab.run import Run

LARGEST_MATRIX = 12  # classes whose confusion matrix fits 80 columns


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run's directory, or a folder of them: the seeds of a group; without one, the weights that come"
            " with cifarlab.",
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="test|validation|train", help="The pictures to judge on.")
    ] = "test",
    weights: Annotated[
        str | None, typer.Option(metavar="best|last", help="By default those that the run's recipe names.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Judge a run: loss, accuracy, each class, and the confusion matrix; written into its evaluation.json.

    Without a run, the weights that come with cifarlab are judged, and must reach what is recorded with them.

    \b
    Examples:
      cifarlab evaluate runs/vgg3-s0-1
      cifarlab evaluate runs/vgg3
      cifarlab evaluate
    """
    if run is None:
        _check_shipped_run(split, weights, data_dir, as_json)
        return
    from cifarlab.run import EVALUATION, Run, is_run

    if run.is_dir() and not is_run(run):
        _evaluate_folder(run, split, weights, data_dir, as_json)
        return
    opened = Run(run)
    from cifarlab.evaluation import evaluate

    with decoding_progress() as decoding:
        result = evaluate(opened, split=split, weights=weights, data_dir=data_dir, decoding=decoding)
    if result.reused:
        screen.note("answered from the logits stored by an earlier evaluation; no picture was opened again")
    if result.validation_was_test:
        screen.note(screen.VALIDATION_IS_TEST)
    screen.note_import(opened)
    if as_json:
        screen.write_json(result.to_dict())
        return
    console = screen.open_console()
    _print_result(console, result, opened.data["name"])
    console.print(f"\nwritten to {opened.path / EVALUATION}", markup=False)
    console.print(f"Next: {text.command('predict', opened.path, 'PICTURE')}", markup=False)


def _evaluate_folder(
    folder: Path, split: str, weights: str | None, data_dir: Path | None, as_json: bool
) -> None:
    """Every finished run, a line each, then mean and interval of each group."""
    from cifarlab.evaluation import evaluate
    from cifarlab.groups import group_runs, runs_under
    from cifarlab.statistics import summarize

    console = screen.open_console(as_json)
    documents, groups = [], []
    for group in group_runs(runs_under([folder])):
        accuracies = []
        for run in group.runs:
            if why := _why_not(run):
                screen.note(f"left out: {run.path} {why}")
                continue
            with decoding_progress() as decoding:
                result = evaluate(run, split=split, weights=weights, data_dir=data_dir, decoding=decoding)
            documents.append(result.to_dict())
            accuracies.append(result.accuracy)
            again = "  (stored before)" if result.reused else ""
            told = (
                f"{text.percent(result.accuracy, 2):>8}  loss {text.number(result.loss)}  {run.path}{again}"
            )
            console.print(told, markup=False)
        if accuracies:
            groups.append((group.name, summarize(accuracies)))
        if group.runs[0].recipe.data.validation == "test":
            screen.note(f"{group.name}: {screen.VALIDATION_IS_TEST}")
    if as_json:
        named = [{"name": name, **summary.to_dict()} for name, summary in groups]
        screen.write_json({"split": split, "groups": named, "runs": documents})
    for name, summary in groups:
        console.print(f"\n{name}", style="bold", markup=False)
        console.print(f"{split} accuracy {screen.mean_and_interval(summary)}", markup=False)


def _why_not(run: Run) -> str:
    """Why a run of a folder is not judged; empty where nothing speaks against it."""
    if not run.is_complete:
        return f"has finished {len(run.metrics)} of {run.recipe.epochs} epochs"
    return "" if run.weights_path(run.default_weights).exists() else "is a record without weights"


def _check_shipped_run(split: str, weights: str | None, data_dir: Path | None, as_json: bool) -> None:
    from cifarlab.shipped_run import check_shipped_run, shipped_run

    run = shipped_run()
    if weights not in (None, run.default_weights):
        raise UserError(f"--weights {weights}: those that come with cifarlab are the {run.default_weights}")
    found = check_shipped_run(split, data_dir)
    if as_json:
        screen.write_json(found.to_dict())
        return
    console = screen.open_console()
    _print_result(console, found, run.data["name"])
    console.print("\nas recorded with the weights that come with cifarlab, to the last digit")


def _print_result(console: Console, result: Evaluation, data: str) -> None:
    about = f"{result.weights} weights, {result.split} pictures of {data}: {result.n:,}"
    console.print(f"{result.run}  {text.one_line(about)}\n", markup=False, style="bold")
    right = sum(row[index] for index, row in enumerate(result.confusion))
    console.print(f"accuracy  {text.percent(result.accuracy, 2)}  ({right:,} of {result.n:,} right)")
    if result.accuracy_with_tta is not None:
        average = f"(mean of {result.tta_views} views of each picture: test-time augmentation)"
        console.print(f"with TTA  {text.percent(result.accuracy_with_tta, 2)}  {average}")
    if result.is_uneven:
        console.print(
            f"macro     {text.percent(result.macro_accuracy, 2)}  (mean over classes, which are uneven)"
        )
        console.print(f"macro F1  {text.percent(result.macro_f1, 2)}")
    console.print(f"loss      {text.number(result.loss)}\n")
    from rich.cells import cell_len, set_cell_size

    names = [text.one_line(each.name) for each in result.classes]
    width = max(cell_len(name) for name in ("class", *names))
    console.print(f"{'class':{width}}  precision   recall       F1  pictures", style="dim")
    names = [set_cell_size(name, width) for name in names]
    for name, each in zip(names, result.classes, strict=True):
        figures = "".join(f"{text.percent(value):>9}" for value in (each.precision, each.recall, each.f1))
        console.print(f"{name}  {figures}  {each.n:8,}", markup=False)
    console.print()
    if len(result.classes) <= LARGEST_MATRIX:
        _print_confusion(console, names, result.confusion)


def _print_confusion(console: Console, names: Sequence[str], confusion: Sequence[Sequence[int]]) -> None:
    """`names` are all of one width."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    cell = max(5, *(len(str(n)) + 1 for row in confusion for n in row))
    heads = [set_cell_size(name, cell - 1).rstrip() for name in names]
    head = "".join(" " * (cell - cell_len(name)) + name for name in heads)
    console.print("confusion: a row is the true class, a column what it was taken for", style="dim")
    console.print(" " * (cell_len(names[0]) + 1) + head, style="dim", markup=False)
    for true, (name, row) in enumerate(zip(names, confusion, strict=True)):
        line = Text(f"{name} ")
        for predicted, n in enumerate(row):
            style = "bold" if predicted == true else "" if n else "dim"
            line.append(f"{n if n else '·':>{cell}}", style)
        console.print(line)
