"""`cifarlab watch`: the curves of trainings as they go, also of those that another process trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console, Group

    from cifarlab.recipe import Recipe
    from cifarlab.run import Run
    from cifarlab.terminal_plot import Line

LOOK_SECONDS = 1.0  # between two looks at the files
SILENT_EPOCHS = 3.0  # without a new epoch for so many times an epoch's length: it may have stopped
LEAST_SILENT_SECONDS = 60.0


@dataclass(frozen=True)
class Standing:
    """Where a run is, as its files tell."""

    name: str
    recipe: Recipe
    rows: list[dict[str, Any]]
    is_complete: bool
    divergence: str | None
    silent_seconds: float

    @property
    def is_over(self) -> bool:
        return self.is_complete or self.divergence is not None

    @property
    def seconds_per_epoch(self) -> float | None:
        """By the last ten epochs."""
        if not self.rows:
            return None
        recent = self.rows[-11:]
        began, first = (recent[0]["elapsed_seconds"], recent[0]["epoch"]) if len(recent) > 1 else (0.0, 0)
        return (recent[-1]["elapsed_seconds"] - began) / (recent[-1]["epoch"] - first)

    @property
    def line(self) -> str:
        """The run in a line: epochs, the last figures, time left."""
        done = f"{self.name}: epoch {len(self.rows)}/{self.recipe.epochs}"
        if not self.rows:
            return f"{done}, the first one is not finished"
        last = self.rows[-1]
        about = f"{done}, train loss {text.number(last['train_loss'])} accuracy {text.percent(last['train_accuracy'])}"
        if last["validation_loss"] is not None:
            split = "TEST SET as validation" if self.recipe.data.validation == "test" else "validation"
            about += f", {split} loss {text.number(last['validation_loss'])}"
            about += f" accuracy {text.percent(last['validation_accuracy'])}"
        return f"{about}, {self._end}"

    @property
    def _end(self) -> str:
        if self.divergence is not None:
            return "diverged"
        if self.is_complete:
            return f"complete in {text.duration(self.rows[-1]['elapsed_seconds'])}"
        per_epoch = self.seconds_per_epoch or 0.0
        if self.silent_seconds > max(LEAST_SILENT_SECONDS, SILENT_EPOCHS * per_epoch):
            return f"nothing new for {text.duration(self.silent_seconds)}: it may have stopped"
        left = max(0.0, (self.recipe.epochs - len(self.rows)) * per_epoch - self.silent_seconds)
        return f"{text.duration(left)} left"


def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, one or several.")],
    once: Annotated[bool, typer.Option("--once", help="Show what there is and stop.")] = False,
) -> None:
    """Show the curves of runs as they are trained, until they are complete or Ctrl-C. It only looks.

    \b
    Examples:
      cifarlab watch runs/vgg3-s0-1
      cifarlab watch runs/vgg3-s0-1 runs/vgg3-s1-1
    """
    from cifarlab.run import Run

    opened = [Run(path) for path in dict.fromkeys(runs)]
    console = screen.open_console()
    if console.is_terminal and not console.is_dumb_terminal:
        _watch_in_terminal(console, opened, once)
    else:
        _print_lines(console, opened, once)


def standing_of(run: Run) -> Standing:
    """Read anew what the run's files say."""
    from cifarlab.run import Run

    fresh = Run(run.path)
    rows = fresh.metrics
    written = run.path / ("metrics.jsonl" if rows else "recipe.json")
    silent = max(0.0, time.time() - written.stat().st_mtime)
    return Standing(str(run.path), fresh.recipe, rows, fresh.is_complete, fresh.divergence, silent)


def _watch_in_terminal(console: Console, runs: Sequence[Run], once: bool) -> None:
    from rich.live import Live

    standings = [standing_of(run) for run in runs]
    if once:
        console.print(curves(standings, console.width, console.height - 1))
        return
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(curves(standings, console.width, console.height - 1), refresh=True)
                if all(standing.is_over for standing in standings):
                    return
                time.sleep(LOOK_SECONDS)
                standings = [_looked_again(run, before) for run, before in zip(runs, standings, strict=True)]
    except KeyboardInterrupt:  # the way out that was offered; the training goes on
        return


def _looked_again(run: Run, before: Standing) -> Standing:
    try:
        return standing_of(run)
    except UserError:  # between two of its writes, or moved: what was seen stays
        return before


def _print_lines(console: Console, runs: Sequence[Run], once: bool) -> None:
    """A line for each finished epoch."""
    from cifarlab.progress import epoch_header, epoch_line
    from cifarlab.run import best_epoch

    shown = dict.fromkeys((str(run.path) for run in runs), 0)
    while True:
        standings = [standing_of(run) for run in runs]
        for standing in standings:
            if shown[standing.name] == 0 and standing.rows:
                console.print(f"{standing.name}\n{epoch_header(standing.recipe)}", markup=False)
            for row in standing.rows[shown[standing.name] :]:
                best = best_epoch(standing.rows[: row["epoch"]], standing.recipe) == row["epoch"]
                line = epoch_line(row, standing.recipe.epochs, best)
                console.print(line if len(runs) == 1 else f"{line}  {standing.name}", markup=False)
            shown[standing.name] = len(standing.rows)
        if once or all(standing.is_over for standing in standings):
            for standing in standings:
                console.print(text.one_line(standing.line), markup=False)
            return
        time.sleep(LOOK_SECONDS)


def curves(standings: Sequence[Standing], width: int, height: int) -> Group:
    """Loss above accuracy; for one run training and validation, for several the validation of each (else training)."""
    from rich.console import Group
    from rich.text import Text

    from cifarlab.terminal_plot import plot

    each = max(6, (height - 1 - 2 * len(standings)) // 2)
    width = min(width, 160)

    def drawn(quantity: str, form: Callable[[float], str]) -> Text:
        lines = _lines(standings, quantity)
        return plot(lines, width=width, height=each, title=quantity, x_name="epoch", form=form)

    loss = drawn("loss", lambda y: f"{y:.3g}")
    accuracy = drawn("accuracy", lambda y: f"{100 * y:.1f} %")
    about = [Text(text.one_line(standing.line), overflow="fold", no_wrap=False) for standing in standings]
    return Group(loss, "", accuracy, *about)


def _lines(standings: Sequence[Standing], quantity: str) -> list[Line]:
    from cifarlab.terminal_plot import Line

    lines = []
    for standing in standings:
        validated = any(row[f"validation_{quantity}"] is not None for row in standing.rows)
        parts = ["train"] * (len(standings) == 1 or not validated) + ["validation"] * validated
        for part in parts:
            points = [(row["epoch"], row[f"{part}_{quantity}"]) for row in standing.rows]
            called = (
                "test as validation"
                if part == "validation" and standing.recipe.data.validation == "test"
                else part
            )
            name = called if len(standings) == 1 else f"{_short(standing, standings)} {called}"
            lines.append(Line(name, points))
    return lines


def _short(standing: Standing, standings: Sequence[Standing]) -> str:
    """The name of a run's folder, with the one above where others are called the same."""
    path = Path(standing.name)
    alike = sum(Path(other.name).name == path.name for other in standings) > 1
    return f"{path.parent.name}/{path.name}" if alike else path.name
