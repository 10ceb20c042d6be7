"""What `cifarlab train --seeds` and `--folds` print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarlab import text
from cifarlab.cli import screen

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.data import Source
    from cifarlab.plan import Planned
    from cifarlab.recipe import Recipe
    from cifarlab.run import Run
    from cifarlab.statistics import Summary

FOLDS_SHARE_PICTURES = (
    "folds share most of their training pictures, so their spread tells less than that of independent trainings,"
    " and the interval is somewhat too narrow"
)


def train_group(
    recipe: Recipe,
    source: Source,
    *,
    seeds: int | None,
    folds: int | None,
    data_dir: Path | None,
    out: Path | None,
    log: Sequence[str],
    plan: bool,
    as_json: bool,
) -> None:
    from cifarlab.cli.train import say_stopping
    from cifarlab.group_training import plan_group, train_members
    from cifarlab.interrupts import stop_on_signals
    from cifarlab.out_of_fold import write_out_of_fold

    members = plan_group(recipe, seeds=seeds, folds=folds, data=source.name, out=out)
    console = screen.open_console(as_json)
    _print_plan(console, members, source, as_json=plan and as_json)
    if plan:
        return
    with stop_on_signals(say_stopping) as stop:
        runs = train_members(members, source, stop, console, log)
    out_of_fold = None if folds is None else write_out_of_fold(runs, data_dir)
    if as_json:
        screen.write_json(_result_document(runs, out_of_fold))
    _print_result(console, runs, out_of_fold)


def _print_plan(console: Console, members: Sequence[Planned], source: Source, *, as_json: bool) -> None:
    """The cost of the whole, measured on the first run that is not finished."""
    from cifarlab.cli.train import plan_document, plan_lines, print_lines
    from cifarlab.cost import estimate
    from cifarlab.job import prepare

    left = [member for member in members if member.standing != "finished"]
    job = prepare((left or members)[0].recipe, source)
    expected = estimate(job)
    seconds = sum(member.seconds_left(expected) for member in members)
    disk_bytes = expected.disk_bytes * sum(member.run is None for member in members)
    if as_json:
        whole = {
            "runs": len(members),
            "runs_left": len(left),
            "elapsed_seconds": seconds,
            "disk_bytes": disk_bytes,
        }
        screen.write_json(plan_document(job, expected) | {"group": str(members[0].path.parent)} | whole)
        return
    each = f"about {text.duration(expected.elapsed_seconds)} each, {text.duration(seconds)} in all"
    lines = plan_lines(job, expected) | {
        "runs": _runs_text(members, len(left)),
        "expected": f"{each}: done at {text.clock_after(seconds)}" if left else "nothing is left to train",
        "needs": f"{text.size(expected.memory_bytes)} of memory, {text.size(disk_bytes)} of disk",
    }
    print_lines(console, lines, job.recipe)


def _runs_text(members: Sequence[Planned], n_left: int) -> str:
    first, last = members[0].path, members[-1].path
    kept = f", {len(members) - n_left} finished and kept" if n_left < len(members) else ""
    return f"{len(members)}: {first} to {last.name}{kept}"


def _validation(run: Run) -> dict[str, Any]:
    from cifarlab.run import chosen_row

    return chosen_row(run.metrics, run.recipe)


def _summary(runs: Sequence[Run]) -> Summary | None:
    from cifarlab.statistics import summarize

    accuracies = [_validation(run)["validation_accuracy"] for run in runs]
    return None if None in accuracies else summarize(accuracies)


def _result_document(runs: Sequence[Run], out_of_fold: Path | None) -> dict[str, Any]:
    summary = _summary(runs)
    of_group = summary and summary.to_dict()
    rows = [(run, _validation(run)) for run in runs]
    return {
        "group": str(runs[0].path.parent),
        "runs": [
            {
                "run": str(run.path),
                "epochs": run.metrics[-1]["epoch"],
                "elapsed_seconds": run.metrics[-1]["elapsed_seconds"],
                "validation_accuracy": row["validation_accuracy"],
                "validation_loss": row["validation_loss"],
            }
            for run, row in rows
        ],
        "validation_accuracy": of_group,
        "out_of_fold": None if out_of_fold is None else str(out_of_fold),
    }


def _print_result(console: Console, runs: Sequence[Run], out_of_fold: Path | None) -> None:
    recipe, folder = runs[0].recipe, runs[0].path.parent
    seconds = sum(run.metrics[-1]["elapsed_seconds"] for run in runs)
    console.print(f"\n[bold]{recipe.name}: {text.count(len(runs), 'run')} in {text.duration(seconds)}[/bold]")
    width = max(len(run.path.name) for run in runs)
    console.print(f"{'':{width}}  weights of   accuracy      loss", style="dim")
    for run in runs:
        row = _validation(run)
        epoch = f"epoch {row['epoch']}"
        figures = (
            f"{text.percent(row['validation_accuracy'], 2):>9}  {text.number(row['validation_loss']):>8}"
        )
        console.print(f"{run.path.name:{width}}  {epoch:10}  {figures}", markup=False)
    summary = _summary(runs)
    if summary is not None:
        console.print(f"\n{_where(recipe)} accuracy  {screen.mean_and_interval(summary)}", markup=False)
    if out_of_fold is not None:
        console.print(f"out-of-fold predictions  {out_of_fold}", markup=False)
        console.print(f"note: {FOLDS_SHARE_PICTURES}")
    elif summary is not None and summary.n < 3:
        console.print("note: a claim needs three seeds or more")
    if recipe.data.validation == "test":
        console.print(f"note: {screen.VALIDATION_IS_TEST}")
    console.print("\nNext:")
    console.print(f"  {text.command('leaderboard', folder)}", markup=False)
    if out_of_fold is None:
        console.print(f"  {text.command('compare', folder, 'ANOTHER_GROUP', '--evaluate')}", markup=False)


def _where(recipe: Recipe) -> str:
    return {"test": "TEST SET, used as validation:", "fold": "held-out fold"}.get(
        recipe.data.validation, "validation"
    )
