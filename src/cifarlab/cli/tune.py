"""`cifarlab tune` and `cifarlab lr-find`: good settings, found on the validation and training pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.data import data_options, open_source
from cifarlab.cli.options import (
    Data,
    DataDir,
    Device,
    Epochs,
    JsonAndProgress,
    LabelsFrom,
    RecipeName,
    Seed,
    Settings,
    SkipUnreadable,
)
from cifarlab.cli.train import overrides_of
from cifarlab.errors import UserError, nearest, one_of

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.cost import Estimate
    from cifarlab.range_test import RangeTest
    from cifarlab.recipe import Recipe
    from cifarlab.tuning import Done, Progress, Search

PRUNERS = ("median", "hyperband", "none")


def tune(
    recipe: RecipeName,
    space: Annotated[
        Path, typer.Option("--space", metavar="FILE.toml", help="Which fields, and from what to choose.")
    ],
    trials: Annotated[
        int,
        typer.Option("--trials", metavar="N", help="Trials in all, also of a search that is gone on with."),
    ],
    data: Data = "cifar10",
    data_dir: DataDir = None,
    labels_from: LabelsFrom = None,
    skip_unreadable: SkipUnreadable = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The search's folder; default runs/tune-<recipe>."),
    ] = None,
    finalists: Annotated[
        int, typer.Option("--finalists", metavar="K", help="The best trials, trained again with other seeds.")
    ] = 3,
    seeds: Annotated[int, typer.Option("--seeds", metavar="M", help="Seeds for each finalist.")] = 3,
    pruner: Annotated[
        str, typer.Option("--pruner", metavar="median|hyperband|none", help="Which trials are ended early.")
    ] = "median",
    storage: Annotated[
        str | None,
        typer.Option("--storage", metavar="URL", help="An Optuna storage that several machines share."),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option("--study", metavar="NAME", help="The study's name there; default the recipe's."),
    ] = None,
    epochs: Epochs = None,
    seed: Annotated[
        str | None, typer.Option("--seed", metavar="N", help="Of the search and its trials.")
    ] = None,
    device: Device = None,
    settings: Settings = None,
    as_json: JsonAndProgress = False,
) -> None:
    """Search for good settings of a recipe by validation loss. Stopped or killed, the same command goes on.

    \b
    A space is a TOML file:
      batch_size = [32, 64, 128]
      optimizer.learning_rate = {low = 0.001, high = 0.1, log = true}

    \b
    Examples:
      cifarlab tune demo --data demo --space space.toml --trials 20
      cifarlab tune vgg3 --set data.validation=stratified --epochs 20 --space space.toml --trials 50
    """
    from cifarlab.recipe import override
    from cifarlab.recipes import get_recipe
    from cifarlab.space import read_space

    fixed = overrides_of({"seed": seed, "epochs": epochs, "device.name": device}, settings or [])
    chosen = override(get_recipe(recipe), fixed)
    if pruner not in PRUNERS:
        raise UserError(f"--pruner should be {one_of(PRUNERS)}, '{pruner}' given{nearest(pruner, PRUNERS)}")
    dimensions = read_space(space, chosen)
    from cifarlab.tuning import Search, check_search, run_search

    source = open_source(
        data, data_dir, recipe=chosen, labels_from=labels_from, skip_unreadable=skip_unreadable
    )
    search = Search(
        recipe=chosen,
        space=dimensions,
        source=source,
        folder=out or Path("runs") / f"tune-{recipe}",
        trials=trials,
        finalists=finalists,
        seeds=seeds,
        pruner=pruner,  # type: ignore[arg-type]  # checked above
        storage=storage,
        name=study or recipe,
    )
    check_search(search)
    console = screen.open_console(as_json)
    expected = _print_search(console, search)
    from cifarlab.cli.train import say_stopping
    from cifarlab.interrupts import stop_on_signals

    with stop_on_signals(say_stopping) as stop, _Screen(console) as shown:
        report = run_search(search, stop, shown.show, expected.elapsed_seconds)
    _report(console, search, report, fixed, data_options(source, data, data_dir), as_json)


def _print_search(console: Console, search: Search) -> Estimate:
    from cifarlab.cost import estimate
    from cifarlab.job import prepare

    expected = estimate(prepare(search.recipe, search.source))
    finals = search.finalists * search.seeds
    seconds = expected.elapsed_seconds * (search.trials + finals)
    each = f"{text.duration(expected.elapsed_seconds)} each for the recipe as it stands"
    console.print(
        f"{search.recipe.name} on {search.source.name}: {text.count(search.trials, 'trial')} over"
        f" {text.count(len(search.space), 'field')}, then {search.finalists} finalists with {search.seeds} seeds each",
        markup=False,
    )
    console.print(
        f"expected: at most {text.duration(seconds)}, {each}; pruning ends many trials early", markup=False
    )
    console.print(f"search in {search.folder}; Ctrl-C saves, and the same command goes on\n", markup=False)
    return expected


def _report(
    console: Console,
    search: Search,
    report: dict[str, Any],
    fixed: Mapping[str, Any],
    options: Sequence[str],
    as_json: bool,
) -> None:
    from cifarlab.tuning_report import cost_text, median_text, train_command, values_text, write_report

    command = train_command(search.recipe.name, {**fixed, **report["winner"]["values"]}, options)
    paths = write_report(report, command, search.folder)
    if as_json:
        screen.write_json({**report, "command": command})
    _print_finalists(console, report)
    winner = report["winner"]
    console.print(
        f"\nwinner: trial {winner['trial']}, {values_text(winner['values'])}", style="bold", markup=False
    )
    console.print(f"median of {len(winner['losses'])} seeds: {median_text(winner)}", markup=False)
    console.print(cost_text(report["cost"]), markup=False)
    console.print("The test set was not opened.")
    console.print(f"report  {', '.join(str(path) for path in paths)}", markup=False)
    console.print(f"\nNext:\n  {command}", markup=False)


def _print_finalists(console: Console, report: Mapping[str, Any]) -> None:
    from rich.table import Table

    from cifarlab.tuning_report import values_text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("finalist", "median loss", "accuracy", "lowest", "highest"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("values", overflow="fold")
    for each in report["finalists"]:
        losses = [loss for loss in each["losses"].values() if loss is not None]
        ends = [text.number(pick(losses)) if losses else "–" for pick in (min, max)]
        median, accuracy = text.number(each["median_loss"]), text.percent(each["median_accuracy"])
        table.add_row(f"trial {each['trial']}", median, accuracy, *ends, values_text(each["values"]))
    console.print()
    console.print(table, soft_wrap=False, markup=False)


class _Screen:
    """A line for each training that ended and, in a terminal, a bar with the time left below them."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self.console = console
        self.live = console.is_terminal and not console.is_dumb_terminal
        columns = (TextColumn("{task.description}"), BarColumn(16), TextColumn("{task.fields[about]}"))
        self.bar = Progress(*columns, console=console, transient=True, disable=not self.live)
        self.task = self.bar.add_task("starting", total=None, about="")
        self.heading: str | None = None

    def __enter__(self) -> _Screen:
        self.bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.bar.stop()

    def show(self, event: Progress | Done | str) -> None:
        from cifarlab.tuning import Done

        if isinstance(event, str):
            self.console.print(event, markup=False)
        elif isinstance(event, Done):
            self._print(event)
        elif self.live:
            left = text.duration(event.seconds_left)
            now = f"epoch {event.epoch + 1} of {event.stage} {event.number}"
            about = f"{event.done}/{event.of} done, {now}, {left} left"
            self.bar.update(
                self.task, description=f"{event.stage}s", completed=event.done, total=event.of, about=about
            )

    def _print(self, done: Done) -> None:
        from cifarlab.tuning_report import values_text

        if self.heading != done.stage:
            self.heading = done.stage
            what = f"{'trial' if done.stage == 'trial' else 'finalist':>8}"
            self.console.print(
                f"{what}  {'state':8}  {'loss':>8}  {'epochs':>6}  {'time':>11}  values", style="dim"
            )
        told = values_text(done.values) if done.stage == "trial" else f"seed {done.seed}"
        told += f"; {done.error}" if done.error else ""
        time = text.duration(done.elapsed_seconds)
        line = f"{done.number:>8}  {done.state:8}  {text.number(done.loss):>8}  {done.epochs:>6}  {time:>11}  {told}"
        self.console.print(text.one_line(line), markup=False)


def lr_find(
    recipe: RecipeName,
    data: Data = "cifar10",
    data_dir: DataDir = None,
    labels_from: LabelsFrom = None,
    skip_unreadable: SkipUnreadable = False,
    low: Annotated[float, typer.Option("--low", metavar="RATE", help="The first learning rate.")] = 1e-6,
    high: Annotated[float, typer.Option("--high", metavar="RATE", help="The last one.")] = 10.0,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", help="Steps from the first to the last.")
    ] = 300,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE", help="PNG, SVG or PDF; default lr-find-<recipe>.png here."),
    ] = None,
    seed: Seed = None,
    device: Device = None,
    settings: Settings = None,
    as_json: JsonAndProgress = False,
) -> None:
    """Find a learning rate: train a copy for some hundred steps while the rate grows. Nothing is kept but the figure.

    \b
    Examples:
      cifarlab lr-find demo --data demo
      cifarlab lr-find vgg3 --set optimizer.name=adam --figure rates.svg
    """
    from cifarlab.recipe import override
    from cifarlab.recipes import get_recipe

    fixed = overrides_of({"seed": seed, "device.name": device}, settings or [])
    chosen = override(get_recipe(recipe), fixed)
    from cifarlab.figures import range_test_figure, save_figure
    from cifarlab.figures.style import check_format

    path = figure or Path(f"lr-find-{recipe}.png")
    check_format(path)  # a mistake is told before anything is computed
    source = open_source(
        data, data_dir, recipe=chosen, labels_from=labels_from, skip_unreadable=skip_unreadable
    )
    from cifarlab.job import prepare
    from cifarlab.range_test import as_document, range_test

    console = screen.open_console(as_json)
    test = range_test(prepare(chosen, source), low=low, high=high, steps=steps)
    title = f"{recipe}: {chosen.optimizer.name}, learning rate {low:g} to {high:g}"
    drawn = range_test_figure(test.rates, test.losses, test.smoothed, suggestion=test.suggestion, title=title)
    save_figure(drawn, path)
    if as_json:
        screen.write_json(as_document(recipe, test, str(path)))
    _print_range_test(console, chosen, test, path)
    if test.suggestion is not None:
        from cifarlab.tuning_report import train_command

        options = data_options(source, data, data_dir)
        fixed |= {"optimizer.learning_rate": test.suggestion}
        console.print(f"\nNext:\n  {train_command(recipe, fixed, options)}", markup=False)


def _print_range_test(console: Console, recipe: Recipe, test: RangeTest, path: Path) -> None:
    suggested = "none" if test.suggestion is None else f"{test.suggestion:g}"
    console.print(f"suggested learning rate: {suggested}", style="bold", markup=False)
    console.print(f"why     {test.reasoning}", markup=False)
    console.print(f"now     {recipe.optimizer.learning_rate:g} in the recipe", markup=False)
    console.print(f"figure  {path}", markup=False)
