"""`cifarlab figure`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifarlab.cli import screen
from cifarlab.cli.data import open_source
from cifarlab.cli.options import DataDir, LabelsFrom, SkipUnreadable
from cifarlab.errors import UserError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {
    "pictures": "the first training pictures, or some at random, with their names",
    "classes": "training pictures of every class, a row each",
    "augmented": "pictures beside what a recipe's augmentation makes of them",
    "predictions": "pictures with what a run predicts and, in brackets, what is true",
    "probabilities": "pictures beside a run's probabilities of the classes",
    "confusion": "a run's confusion matrix",
    "curves": "learning curves of a run; of several, the mean and range of each group",
}
SHOWS_PICTURES = ("predictions", "probabilities")


def figure(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which figure: see above.")],
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="A run's directory; for curves several, or folders of them."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="What to write: .png, .svg or .pdf.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="NAME|PATH", help="The data set; default cifar10.")
    ] = None,
    data_dir: DataDir = None,
    labels_from: LabelsFrom = None,
    skip_unreadable: SkipUnreadable = False,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="RECIPE", help="Whose augmentation.")
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", metavar="N", min=1, help="Of pictures.")] = None,
    columns: Annotated[int | None, typer.Option("--columns", metavar="N", min=1, help="Of pictures.")] = None,
    per_class: Annotated[
        int | None, typer.Option("--per-class", metavar="N", min=1, help="Pictures of each class.")
    ] = None,
    versions: Annotated[
        int | None, typer.Option("--versions", metavar="N", min=1, help="Augmented copies of each picture.")
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Random pictures, not the first ones.")] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Of random pictures and changes; 0.")
    ] = None,
    index: Annotated[
        int | None, typer.Option("--index", metavar="N", min=0, help="The first picture's number, from 0.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="test|validation|train", help="Default: test.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="best|last", help="By default those that the run's recipe names.")
    ] = None,
) -> None:
    """Draw a figure: of the data, of a recipe's augmentation, or of what a run has learned.

    \b
    Figures:
    {figures}

    \b
    Examples:
      cifarlab figure pictures --data demo --out pictures.png
      cifarlab figure augmented --recipe vgg3-aug --rows 6 --columns 1 --versions 5 --out augmented.svg
      cifarlab figure curves runs/vgg3-s0-1 --out curves.pdf
      cifarlab figure predictions runs/vgg3-s0-1 --random --out predictions.png
    """
    if name not in FIGURES:
        hint = nearest(name, FIGURES) or f"; there are {', '.join(FIGURES)}"
        raise UserError(f"unknown figure '{name}'{hint} (`cifarlab figure --help` says what each shows)")
    if out is None:
        raise UserError(f"--out FILE is missing: where to draw, for example --out {name}.png")
    given = {
        "data": data,
        "data_dir": data_dir,
        "labels_from": labels_from,
        "skip_unreadable": skip_unreadable or None,
        "recipe": recipe,
        "rows": rows,
        "columns": columns,
        "per_class": per_class,
        "versions": versions,
        "random": random or None,
        "seed": seed,
        "index": index,
        "split": split,
        "weights": weights,
    }
    from cifarlab.figures.style import check_format

    check_format(out)
    screen.check_file(out, "--out")  # before anything long
    drawn = _draw(name, runs or [], {option: value for option, value in given.items() if value is not None})
    from cifarlab.figures import save_figure

    save_figure(drawn, out)
    screen.open_console().print(f"drawn: {out}", markup=False)


figure.__doc__ = (figure.__doc__ or "").replace(
    "    {figures}", "\n".join(f"      {name:14} {summary}" for name, summary in FIGURES.items())
)


def _draw(name: str, paths: list[Path], given: dict[str, Any]) -> Figure:
    from cifarlab.figures import named

    if name in named.OF_DATA:
        return _draw_data(name, named.OF_DATA[name], paths, given)
    if not paths:
        raise UserError(
            f"the figure {name} is of a run: give its directory, cifarlab figure {name} RUN --out FILE"
        )
    if name == "curves":
        from cifarlab.groups import runs_under

        _check_options(name, named.curves, given)
        return named.curves(runs_under(paths))
    if len(paths) > 1:
        raise UserError(f"the figure {name} is of one run, {len(paths)} given")
    from cifarlab.run import Run

    draw, run = named.OF_A_RUN[name], Run(paths[0])
    _check_options(name, draw, given)
    drawn = draw(run, **given)
    if name in SHOWS_PICTURES and given.get("split", "test") == "test":
        screen.note(f"test pictures are shown; this is recorded in {run.path}: choose nothing by them")
    if run.recipe.data.validation == "test":
        screen.note(screen.VALIDATION_IS_TEST)
    return drawn


def _draw_data(name: str, draw: Callable[..., Figure], paths: list[Path], given: dict[str, Any]) -> Figure:
    if paths:
        raise UserError(
            f"the figure {name} is of a data set, not of a run: leave {paths[0]} out; --data says "
            "which data set"
        )
    _check_options(name, draw, given, "data", "data_dir", "labels_from", "skip_unreadable")
    if name == "augmented" and "recipe" not in given:
        raise UserError("--recipe RECIPE is missing: whose augmentation, for example --recipe vgg3-aug")
    reading = {name: given.pop(name) for name in ("labels_from", "skip_unreadable") if name in given}
    source = open_source(given.pop("data", "cifar10"), given.pop("data_dir", None), **reading)
    return draw(source, **given)


def _check_options(name: str, draw: Callable[..., Figure], given: dict[str, Any], *also: str) -> None:
    parameters = inspect.signature(draw).parameters.values()
    settable = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.name != "data"]
    taken = [*also, *settable]
    for option in given:
        if option not in taken:
            allowed = ", ".join(_as_option(each) for each in taken) or "none but --out"
            raise UserError(f"{_as_option(option)} is not for the figure {name}; its options: {allowed}")


def _as_option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
