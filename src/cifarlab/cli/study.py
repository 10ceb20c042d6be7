"""`cifarlab study`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.data import open_source
from cifarlab.cli.options import Data, DataDir, JsonAndProgress, LabelsFrom, Plan, Settings, SkipUnreadable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cifarlab.study import Outcome, Study


def study(
    name: Annotated[
        str, typer.Argument(metavar="batch-size|epochs|FILE.toml", help="A study, by name or as your file.")
    ],
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="N", min=1, help="Runs of each point: seeds 0 to N-1.")
    ] = None,
    data: Data = "cifar10",
    data_dir: DataDir = None,
    labels_from: LabelsFrom = None,
    skip_unreadable: SkipUnreadable = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Default runs/study-<name>.")
    ] = None,
    settings: Settings = None,
    plan: Plan = False,
    no_train: Annotated[
        bool,
        typer.Option("--no-train", help="Only write table and figure anew, from the runs that are there."),
    ] = False,
    as_json: JsonAndProgress = False,
) -> None:
    """Train a recipe with some of its fields at other values, and draw what comes out. Ctrl-C saves; the same command
    goes on, and trains nothing twice.

    \b
    Examples:
      cifarlab study batch-size --plan
      cifarlab study batch-size --seeds 1
      cifarlab study my-study.toml --out runs/mine
    """
    from cifarlab.cli.queue import carry_out, cost_of, print_cost, unfinished
    from cifarlab.data.sources import source_name
    from cifarlab.recipe import parse_assignments
    from cifarlab.study import load_study, plan_study, read_study

    chosen = load_study(name)
    folder = out or Path("runs") / f"study-{chosen.name}"
    planned = plan_study(chosen, folder, source_name(data), parse_assignments(settings or []), seeds)
    by_seed = zip(*(some for _, some in planned), strict=True)  # a study cut short has whole seeds
    trainings = list({each.path: each for seed in by_seed for each in seed}.values())
    console = screen.open_console(as_json)
    console.print(
        f"{chosen.title or chosen.name}: {text.count(len(planned), 'point')}, in {folder}", markup=False
    )
    if plan or not no_train:
        source = (
            open_source(data, data_dir, labels_from=labels_from, skip_unreadable=skip_unreadable)
            if unfinished(trainings)
            else None
        )
        cost = cost_of(trainings, source)
        print_cost(console, cost)
        for refusal in cost.refused.values():
            raise refusal
        if plan:
            if as_json:
                screen.write_json(cost.to_dict())
            return
        for _ in carry_out(console, trainings, source):
            pass
    outcomes = read_study(planned)
    _write(chosen, outcomes, folder)
    if as_json:
        screen.write_json(_document(chosen, outcomes))
    else:
        _print(chosen, outcomes, folder)


def _write(chosen: Study, outcomes: Sequence[Outcome], folder: Path) -> None:
    from cifarlab.figures import save_figure
    from cifarlab.files import write_atomic
    from cifarlab.study import study_figure, study_page

    folder.mkdir(parents=True, exist_ok=True)
    save_figure(study_figure(chosen, outcomes), folder / "study.png")
    write_atomic(folder / "study.md", study_page(chosen, outcomes).encode())


def _print(chosen: Study, outcomes: Sequence[Outcome], folder: Path) -> None:
    from cifarlab.study import study_table

    console = screen.open_console()
    header, rows = study_table(chosen, outcomes)
    shown = [index for index, name in enumerate(header) if name not in ("series", "range", "loss")]
    lines = text.aligned([[text.one_line(row[index]) for index in shown] for row in [header, *rows]])
    console.print(f"\n{lines[0]}", style="dim", markup=False)
    series = ""
    for outcome, line in zip(outcomes, lines[1:], strict=True):
        if outcome.point.series != series:
            series = outcome.point.series
            console.print(text.one_line(series), style="bold", markup=False)
        console.print(line, markup=False)
    console.print(f"\ntable   {folder / 'study.md'}\nfigure  {folder / 'study.png'}", markup=False)


def _document(chosen: Study, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    from cifarlab.statistics import summarize

    points = []
    for outcome in outcomes:
        accuracies = [reading.validation_accuracy for reading in outcome.readings]
        points.append(
            {
                "series": outcome.point.series,
                "values": outcome.point.values,
                "published": outcome.point.published,
                "validation_accuracy": summarize(accuracies).to_dict() if accuracies else None,
                "runs": [asdict(reading) for reading in outcome.readings],
                "standings": list(outcome.standings),
            }
        )
    return {"study": chosen.name, "recipe": chosen.recipe, "points": points}
