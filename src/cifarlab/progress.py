"""A training as it goes: a line for each epoch, and below them a bar with the time left.

In a terminal and in a notebook; elsewhere (a file, a pipe) the lines alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cifarlab.text import duration, number, one_line, percent

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.features import FeaturesDone
    from cifarlab.recipe import Recipe
    from cifarlab.training import Event, StepDone

HEADER_EVERY = 25  # lines of epochs


def follow(events: Iterable[Event], recipe: Recipe, console: Console) -> None:
    """Run through `events` (of `cifarlab.training.fit`) and show them on `console` until the training ends."""
    from cifarlab.features import FeaturesDone
    from cifarlab.training import EpochDone, Notice

    lines = 0
    with _open_bar(console) as bar:
        for event in events:
            if isinstance(event, EpochDone):
                if lines % HEADER_EVERY == 0:
                    bar.print(epoch_header(recipe), "dim")
                lines += 1
                bar.print(epoch_line(event.row, event.epochs, event.is_best), "")
            elif isinstance(event, FeaturesDone):
                bar.update_before(event)
            elif isinstance(event, Notice):
                bar.print(one_line(f"note: {event.text}"), "")
            else:
                bar.update(event)


def epoch_header(recipe: Recipe) -> str:
    """Two lines that name the columns of `epoch_line`."""
    validation = {"test": "validation = test set", "none": "no validation"}.get(
        recipe.data.validation, "validation"
    )
    width = _epoch_width(recipe.epochs)
    groups = f"{'':{width}}  {'training':^17}  {validation:^17}  {'learning':>9}"
    names = f"{'epoch':>{width}}  {'loss':>8} {'accuracy':>8}  {'loss':>8} {'accuracy':>8}  {'rate':>9}"
    return f"{groups}\n{names}  {'images/s':>8}  {'elapsed':>7}"


def epoch_line(row: dict[str, Any], epochs: int, is_best: bool) -> str:
    """A finished epoch as one line of at most 80 columns, in the columns of `epoch_header`."""
    train = f"{number(row['train_loss']):>8} {percent(row['train_accuracy']):>8}"
    validation = f"{number(row['validation_loss']):>8} {percent(row['validation_accuracy']):>8}"
    seconds = f"{row['elapsed_seconds']:,.0f}"
    numbered = f"{row['epoch']}/{epochs}"
    pace = f"{row['learning_rate']:>9.3g}  {row['images_per_second']:>8,.0f}  {seconds:>7}"
    return f"{numbered:>{_epoch_width(epochs)}}  {train}  {validation}  {pace}{'  best' if is_best else ''}"


def _epoch_width(epochs: int) -> int:
    return max(5, 2 * len(str(epochs)) + 1)


def in_notebook() -> bool:
    """True in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def show_curves(path: Any) -> None:
    """Show a run's learning curves in the notebook's output."""
    from IPython.display import Image, display  # type: ignore[import-not-found]

    display(Image(filename=str(path)))


def _about(event: StepDone) -> str:
    return (
        f"step {event.step_in_epoch:,}/{event.steps_in_epoch:,}  loss {event.loss:.4f}"
        f"  {event.images_per_second:,.0f} images/s  {duration(event.seconds_left)} left"
    )


def _about_features(event: FeaturesDone) -> str:
    return (
        f"frozen layers, once: {event.done:,}/{event.total:,} pictures  {duration(event.seconds_left)} left"
    )


def _open_bar(console: Console) -> _Bar:
    if in_notebook():
        return _NotebookBar(console)
    return _TerminalBar(console) if console.is_terminal and not console.is_dumb_terminal else _Bar(console)


class _Bar:
    """No bar: the lines of epochs alone."""

    def __init__(self, console: Console) -> None:
        self.print: Callable[[str, str], None] = lambda text, style: console.print(
            text, style=style or None, markup=False
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def update(self, event: StepDone) -> None:
        pass

    def update_before(self, event: FeaturesDone) -> None:
        """As `update`, before the first epoch."""


class _TerminalBar(_Bar):
    """Below the lines of epochs, gone when the training ends."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(console)
        before, after = TextColumn("epoch {task.fields[epoch]}"), TextColumn("{task.fields[about]}")
        self.progress = Progress(before, BarColumn(16), after, console=console, transient=True)
        self.task = self.progress.add_task("", total=None, epoch="…", about="starting")

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.progress.stop()

    def update(self, event: StepDone) -> None:
        done, total = event.step_in_epoch, event.steps_in_epoch
        self.progress.update(self.task, completed=done, total=total, epoch=event.epoch, about=_about(event))

    def update_before(self, event: FeaturesDone) -> None:
        about = _about_features(event)
        self.progress.update(self.task, completed=event.done, total=event.total, epoch="…", about=about)


class _NotebookBar(_Bar):
    """One line of the cell's output, written anew; lines of epochs are plain prints, which a saved notebook keeps."""

    def __init__(self, console: Console) -> None:
        from IPython.display import HTML, DisplayHandle  # type: ignore[import-not-found]

        self.html: Callable[[str], Any] = HTML
        self.print = lambda text, style: print(text, flush=True)
        self.handle = DisplayHandle()
        self.handle.display(HTML("starting"))

    def __exit__(self, *_error: object) -> None:
        self.handle.update(self.html(""))

    def update(self, event: StepDone) -> None:
        bar = f'<progress value="{event.step_in_epoch}" max="{event.steps_in_epoch}"></progress>'
        self.handle.update(self.html(f"epoch {event.epoch} {bar} {_about(event)}"))

    def update_before(self, event: FeaturesDone) -> None:
        bar = f'<progress value="{event.done}" max="{event.total}"></progress>'
        self.handle.update(self.html(f"{bar} {_about_features(event)}"))
