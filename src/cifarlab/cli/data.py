"""`cifarlab data`, and how every command opens a data source."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.options import AsJson, DataDir, LabelsFrom
from cifarlab.errors import UserError

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from cifarlab.data import Source
    from cifarlab.recipe import Recipe
    from cifarlab.run import Run

BAR_WIDTH = 24
LONG_SECONDS = 3.0  # that decoding takes before it is spoken of where there is no terminal


def data(
    which: Annotated[
        str,
        typer.Argument(
            metavar="[NAME|PATH]",
            help="cifar10, cifar100, cifar100-coarse, svhn or demo; or where your own pictures are, or CIFAR-10 is.",
        ),
    ] = "cifar10",
    data_dir: DataDir = None,
    labels_from: LabelsFrom = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure",
            metavar="FILE",
            help="Draw training pictures with their names: the first nine; of your own, 8 of each class.",
        ),
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option("--per-class", metavar="N", help="With --figure: N pictures of each class."),
    ] = None,
    clear_cache: Annotated[
        bool, typer.Option("--clear-cache", help="Remove the decoded pictures that no running process uses.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find a data set or fetch it, verify it, and print what is in it; of your own pictures, what is wrong with them.

    \b
    Examples:
      cifarlab data
      cifarlab data demo --figure demo.png --per-class 10
      cifarlab data ~/data/cifar-10-python.tar.gz
      cifarlab data ~/photos --figure photos.png
      cifarlab data ~/flat.zip --labels-from '(.+)_\\d+'
      cifarlab data --clear-cache
    """
    if clear_cache:
        _clear_cache(as_json)
        return
    if per_class is not None and (figure is None or per_class < 1):
        problem = (
            "needs --figure FILE to draw into"
            if figure is None
            else f"should be at least 1, {per_class} given"
        )
        raise UserError(f"--per-class {problem}")
    if figure is not None:
        screen.check_file(figure, "--figure", ", as photos.png")
    from cifarlab.data.sources import are_own_pictures

    if are_own_pictures(which):
        from cifarlab.cli.survey import show_survey

        if data_dir is not None:
            raise UserError(f"the data's place is given twice: {which} and --data-dir {data_dir}")
        show_survey(Path(which).expanduser().absolute(), labels_from, figure, per_class, as_json=as_json)
        return
    source = open_source(which, data_dir, labels_from=labels_from)
    import numpy as np

    train = source.load("train")
    test_labels = source.load("test").labels  # counted, never shown
    counts = {
        split: np.bincount(labels, minlength=len(source.classes)).tolist()
        for split, labels in (("train", train.labels), ("test", test_labels))
    }
    if as_json:
        splits = {split: {"n": sum(per), "per_class": per} for split, per in counts.items()}
        content = {"name": source.name, "classes": list(source.classes), "splits": splits}
        screen.write_json(content | {"checksum": source.checksum})
    else:
        _print_survey(source, train.images.shape, counts)
    if figure is not None:
        _draw(source, train, figure, per_class)
        screen.open_console(as_json).print(f"drawn: {figure}", markup=False)


def _clear_cache(as_json: bool) -> None:
    from cifarlab.data.decoded import clear_cache

    freed_bytes = clear_cache()
    if as_json:
        screen.write_json({"freed_bytes": freed_bytes})
    screen.open_console(as_json).print(f"removed decoded pictures: {text.size(freed_bytes)}")


def open_source(
    name: str,
    data_dir: Path | None = None,
    *,
    recipe: Recipe | None = None,
    labels_from: str | None = None,
    skip_unreadable: bool = False,
) -> Source:
    """The data source, fetched, or decoded for `recipe`, with a progress bar on stderr if it has to be.

    What is wrong with somebody's own pictures is noted on stderr.
    """
    from cifarlab.data import open_source
    from cifarlab.data.listing import Reading

    reading = Reading(labels_from, skip_unreadable)
    with _download_progress() as progress, decoding_progress() as decoding:
        source = open_source(
            name, data_dir, progress, reading=reading, decoding=decoding, **_input_of(recipe)
        )
    if source.reading is None and reading != Reading():
        raise UserError(
            f"--labels-from and --skip-unreadable are for your own pictures, and {name} is {source.name}"
        )
    _note_problems(source)
    return source


def _note_problems(source: Source) -> None:
    problems = [] if source.survey is None else source.survey().problems
    for problem in problems:
        screen.note(problem.line)
    if problems:
        labels_from = source.reading and source.reading["labels_from"]
        pattern = ["--labels-from", labels_from] if labels_from else []
        screen.note(f"`{text.command('data', source.location, *pattern)}` says which")


def data_options(source: Source, data: str, data_dir: Path | None) -> list[str]:
    """The options with which a command opens again the `source` that it opened by --data and --data-dir."""
    from cifarlab.data.sources import is_path

    if source.reading is None:
        if is_path(data):
            return ["--data", data]
        named = [] if source.name == "cifar10" else ["--data", source.name]
        return named + (["--data-dir", str(data_dir)] if data_dir else [])
    labels_from = source.reading["labels_from"]
    return [
        "--data",
        source.location,
        *(["--labels-from", labels_from] if labels_from else []),
        *(["--skip-unreadable"] if source.reading["skip_unreadable"] else []),
    ]


def reopen_source(run: Run, data_dir: Path | None = None) -> Source:
    """As `open_source`, the data that a run was trained with."""
    from cifarlab.data.sources import reopen_source

    with _download_progress() as progress, decoding_progress() as decoding:
        return reopen_source(run.data, data_dir, progress, decoding=decoding, **_input_of(run.recipe))


def _input_of(recipe: Recipe | None) -> dict[str, Any]:
    return {} if recipe is None else {"size_pixels": recipe.input.size, "fit": recipe.input.fit}


def fetch_weights(recipe: Recipe) -> None:
    """The weights that the recipe's network begins with, fetched with a progress bar on stderr if they have to be."""
    if getattr(recipe.model, "weights", None) is None or recipe.finetune.init_from is not None:
        return
    from cifarlab import pretrained

    weights = pretrained.wanted(recipe.model)
    if weights is not None:
        with _download_progress() as progress:
            pretrained.find(weights, progress)


@contextmanager
def _download_progress() -> Iterator[Callable[[int, int | None, str], None]]:
    """A bar where there is a terminal, else a line for every tenth; nothing at all when nothing is fetched."""
    if not sys.stderr.isatty():
        yield _print_tenths()
        return
    from rich.progress import DownloadColumn, TextColumn, TransferSpeedColumn

    source = TextColumn("fetching from {task.description}", markup=False)
    with _bar(source, DownloadColumn(), TransferSpeedColumn()) as update:
        yield lambda done_bytes, total_bytes, host: update(done_bytes, total_bytes, text.one_line(host))


@contextmanager
def decoding_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar where there is a terminal, else a line for every tenth if it takes long; nothing if all is decoded."""
    if not sys.stderr.isatty():
        yield _print_decoded_tenths()
        return
    from rich.progress import MofNCompleteColumn, TextColumn

    with _bar(TextColumn("decoding pictures, once"), MofNCompleteColumn()) as update:
        yield lambda done, total: update(done, total, "")


@contextmanager
def _bar(before: ProgressColumn, *after: ProgressColumn) -> Iterator[Callable[[int, int | None, str], None]]:
    """`update(done, total, description)` of a bar on stderr: there from the first call until all is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TimeRemainingColumn

    columns = (before, BarColumn(20), *after, TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task("", total=None)

    def update(done: int, total: int | None, description: str) -> None:
        if not progress.live.is_started:
            progress.reset(task, total=total, description=description)
            progress.start()
        progress.update(task, completed=done, total=total, description=description)
        if done == total:
            progress.stop()

    try:
        yield update
    finally:
        progress.stop()


def _print_decoded_tenths() -> Callable[[int, int], None]:
    said, began, first = 0, 0.0, 0

    def report(done: int, total: int) -> None:
        nonlocal said, began, first
        if not first:
            began, first = time.monotonic(), done
        elapsed_seconds = time.monotonic() - began
        if 10 * done // total > said and elapsed_seconds > LONG_SECONDS:
            said = 10 * done // total
            left = text.duration(elapsed_seconds / (done - first) * (total - done))
            sys.stderr.write(f"decoding pictures, once: {done:,} of {total:,}, {left} left\n")

    return report


def _print_tenths() -> Callable[[int, int | None, str], None]:
    said: set[tuple[str, int]] = set()

    def report(done_bytes: int, total_bytes: int | None, host: str) -> None:
        tenth = 10 * done_bytes // total_bytes if total_bytes else 0
        if (host, tenth) not in said:
            said.add((host, tenth))
            of = f" of {text.size(total_bytes)}" if total_bytes else ""
            sys.stderr.write(f"fetching from {text.one_line(host)}: {text.size(done_bytes)}{of}\n")

    return report


def _print_survey(source: Source, shape: tuple[int, ...], counts: dict[str, list[int]]) -> None:
    console = screen.open_console()
    height, width, channels = shape[1:]
    console.print(f"[bold]{source.name}[/bold]", end="")
    console.print(
        f"  {len(source.classes)} classes of {height} x {width} pictures, {channels} channels of 8 bits"
    )
    console.print(f"from      {text.one_line(source.location)}", markup=False)
    console.print(f"checksum  {source.checksum} (verified)", markup=False)
    for split, per_class in counts.items():
        console.print(f"{split:8s}  {sum(per_class):,} pictures")
    console.print()
    name_width = max(len(name) for name in source.classes)
    n_width = max(len(f"{n:,}") for per_class in counts.values() for n in per_class)
    console.print(f"{'class':{name_width}}  {'train':{n_width + BAR_WIDTH + 3}}{'test'}", style="dim")
    for index, name in enumerate(source.classes):
        cells = [_balance(per_class, index, n_width) for per_class in counts.values()]
        console.print(f"{text.one_line(name):{name_width}}  {'  '.join(cells)}".rstrip(), markup=False)


def _balance(per_class: list[int], index: int, n_width: int) -> str:
    filled = text.bar(per_class[index] / max(per_class), BAR_WIDTH)
    return f"{per_class[index]:{n_width},} {filled:{BAR_WIDTH}}"


def _draw(source: Source, train: Any, path: Path, per_class: int | None) -> None:
    from cifarlab.figures import class_rows, picture_grid, save_figure

    title = f"{source.name}: training pictures"
    if per_class is None:
        drawn = picture_grid(train.images, train.labels, source.classes, title=title)
    else:
        drawn = class_rows(train.images, train.labels, source.classes, per_class=per_class, title=title)
    save_figure(drawn, path)
