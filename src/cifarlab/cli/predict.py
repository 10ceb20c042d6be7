"""`cifarlab predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.options import AsJson
from cifarlab.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.prediction import Prediction, Predictor
    from cifarlab.run import Run

BAR_WIDTH = 30
FEW = 10  # up to this many pictures get a chart each, more a line each


def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[RUN] PICTURE|FOLDER...",
            help="A run, then pictures or folders; without a run, the weights that come with cifarlab.",
        ),
    ],
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="RUN", help="The run; then every argument is a picture or folder."),
    ] = None,
    top: Annotated[int, typer.Option("--top", metavar="K", help="Classes to give for each picture.")] = 3,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Write path, rank, class, probability, error, note."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is in pictures (JPEG, PNG, WebP, GIF, BMP): classes, the most probable first.

    A picture that cannot be read is reported, the others go on, and the exit code is 2.

    \b
    Examples:
      cifarlab predict photo.jpg
      cifarlab predict runs/vgg3-s0-1 photo.jpg
      cifarlab predict runs/vgg3-s0-1 holiday/ --top 1 --csv holiday.csv
    """
    opened, wanted = _run_and_pictures(paths, run)
    if csv is not None:
        screen.check_file(csv, "--csv")
    from cifarlab.pictures import find_pictures

    pictures = find_pictures(wanted)
    from cifarlab.prediction import load_predictor, write_csv
    from cifarlab.shipped_run import is_shipped

    predictor = load_predictor(opened)
    console = screen.open_console(as_json)
    predictions = []
    for prediction in _watched(predictor, pictures, top, is_shown=not as_json and csv is None):
        predictions.append(prediction)
        if prediction.error is None and not as_json and (csv is None or len(pictures) <= FEW):
            _print_prediction(console, prediction, in_full=len(pictures) <= FEW)
    if csv is not None:
        write_csv(predictions, csv)
    if as_json:
        screen.write_json([prediction.to_dict() for prediction in predictions])
    failed = [prediction.error for prediction in predictions if prediction.error is not None]
    if csv is not None:
        also = f" and {len(failed):,} that could not be read" if failed else ""
        read = text.count(len(predictions) - len(failed), "picture")
        console.print(f"{read}{also}, written to {csv}", markup=False)
    if is_shipped(opened):
        console.print(_about(opened), style="dim", markup=False)
    _note_calibration(opened, predictor, predictions)
    if opened.recipe.data.validation == "test":
        screen.note(f"{opened.path}: {screen.VALIDATION_IS_TEST}")
    if failed:
        raise UserError(_failures(failed, len(predictions), are_in_report=as_json or csv is not None))


def _note_calibration(run: Run, predictor: Predictor, predictions: list[Prediction]) -> None:
    """How many pictures are of something else, and how far that can be trusted."""
    if predictor.calibration is None:
        if run.calibration is not None:
            screen.note(
                f"{run.path} was calibrated with other weights: `{text.command('calibrate', run.path)}` again"
            )
        return
    unlike = sum(bool(prediction.unlike_training) for prediction in predictions)
    if unlike:
        rate = text.percent(predictor.calibration["false_alarms"], 0)
        of_all = f"{unlike:,} of {text.count(len(predictions), 'picture')}"
        screen.note(f"{of_all} unlike the training pictures; so are about {rate} of pictures like them")


def _run_and_pictures(paths: Sequence[Path], run: Path | None) -> tuple[Run, Sequence[Path]]:
    """The run, the one that comes with cifarlab where none is named, and what to predict with it."""
    from cifarlab.run import Run, is_run
    from cifarlab.shipped_run import has_shipped_run, shipped_run

    if run is not None:
        return Run(run), paths
    first, *pictures = paths
    if not first.exists():
        raise UserError(f"there is no {first}: give a picture, or a run and then pictures or folders")
    if is_run(first):
        if not pictures:
            raise UserError(f"nothing to predict: give pictures or folders after the run {first}")
        return Run(first), pictures
    for path in pictures:
        if is_run(path):
            raise UserError(f"{path} is a run: put it first, or give --run {path}")
    if first.is_dir() and any(is_run(child) for child in first.iterdir()):
        Run(first)  # says that it holds runs, and names one
    if not has_shipped_run():
        raise UserError(
            f"no run named: {first} is not one (it has no recipe.json), and this copy of cifarlab comes without"
            f" weights; put a run's directory first, or give --run RUN{_runs_here()}"
        )
    return shipped_run(), paths


def _about(run: Run) -> str:
    """One line: which network answered, and what it is worth."""
    judged = run.evaluations["test"][run.default_weights]
    accuracy = f"{text.percent(judged['accuracy'], 2)} of {run.data['name']}'s test pictures right"
    if judged["tta"]:
        accuracy += (
            f" ({text.percent(judged['accuracy_with_tta'], 2)} over {judged['tta_views']} views of each)"
        )
    return f"answered by {run.recipe.name}, which comes with cifarlab: {accuracy}"


def _runs_here() -> str:
    from cifarlab.run import is_run

    runs = [path for path in Path("runs").glob("*") if is_run(path)]
    return f", for example {max(runs, key=lambda path: path.stat().st_mtime)}" if runs else ""


def _watched(predictor: Predictor, pictures: list[Path], top: int, *, is_shown: bool) -> Iterator[Prediction]:
    """The predictions one after the other; with a bar on a terminal's stderr where nothing else shows them."""
    stream = predictor.stream(pictures, top)
    if is_shown or not sys.stderr.isatty() or len(pictures) <= FEW:
        return stream
    from rich.console import Console
    from rich.progress import track

    total = len(pictures)
    return iter(track(stream, "predicting", total=total, console=Console(stderr=True), transient=True))


def _print_prediction(console: Console, prediction: Prediction, *, in_full: bool) -> None:
    from rich.cells import cell_len, set_cell_size

    from cifarlab.prediction import UNLIKE

    path = text.one_line(prediction.path or "")
    names = [text.one_line(ranked.class_name) for ranked in prediction.predictions]
    if in_full:
        console.print(path, markup=False, style="bold")
        if prediction.unlike_training:
            console.print(f"  {UNLIKE}: its class is a guess", markup=False, style="yellow")
        width = max(cell_len(name) for name in names)
        for name, ranked in zip(names, prediction.predictions, strict=True):
            value = f"{text.percent(ranked.probability):>8}"
            line = f"  {set_cell_size(name, width)} {value}  {text.bar(ranked.probability, BAR_WIDTH)}"
            console.print(line, markup=False)
    else:
        values = [text.percent(ranked.probability) for ranked in prediction.predictions]
        ranked = "  ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
        note = f"  ({UNLIKE})" if prediction.unlike_training else ""
        console.file.write(
            f"{path}  {ranked}{note}\n"
        )  # thousands of plain lines: rich takes as long as the network


def _failures(failed: list[str], n: int, *, are_in_report: bool) -> str:
    """The last line: how many, and why where it is one. Of several each is told before it, if no report has it."""
    of_all = f"{len(failed):,} of {text.count(n, 'picture')} could not be read"
    if len(failed) == 1:
        return f"{of_all}: {failed[0]}"
    if are_in_report:
        return f"{of_all}, the first of them: {failed[0]}"
    for reason in failed:
        sys.stderr.write(f"not read: {text.one_line(reason)}\n")
    return of_all
