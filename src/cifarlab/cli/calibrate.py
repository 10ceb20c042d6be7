"""`cifarlab calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.options import AsJson, DataDir

if TYPE_CHECKING:
    from cifarlab.run import Run


def calibrate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")],
    false_alarms: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Of pictures like the training pictures, to be called unlike them: 0..1."
        ),
    ] = 0.02,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a run's probabilities true, and let it say when a picture is unlike its training pictures.

    Both are found on its validation pictures and written to its calibration.json; `cifarlab predict` goes by them.

    \b
    Example:
      cifarlab calibrate runs/vgg3-s0-1
    """
    from cifarlab.run import Run

    opened = Run(run)
    from cifarlab.calibration import calibrate

    found = calibrate(opened, false_alarms=false_alarms, data_dir=data_dir)
    for problem in found["problems"]:
        screen.note(problem)
    if as_json:
        screen.write_json({"run": str(opened.path), **found})
    else:
        _print(opened, found)


def _print(run: Run, found: dict[str, Any]) -> None:
    from cifarlab.run import CALIBRATION

    console = screen.open_console()
    about = f"{found['weights']} weights, {found['n']:,} validation pictures of {run.data['name']}"
    console.print(f"{run.path}  {about}\n", markup=False, style="bold")
    temperature, error = found["temperature"], found["expected_calibration_error"]
    before, after = (text.percent(error[when], 2) for when in ("before", "after"))
    if temperature is None:
        console.print("temperature        –")
        console.print(f"calibration error  {before}")
    else:
        was = "too sure" if temperature > 1 else "not sure enough"
        sure = f"{text.number(temperature)} ± {text.number(found['temperature_standard_error'])}"
        console.print(f"temperature        {sure}  (as trained, the network was {was})")
        console.print(f"calibration error  {before} before, {after} after")
    rate = f"of these pictures {text.percent(found['false_alarms'])} are called unlike them"
    console.print(f"warning            {'–' if found['threshold'] is None else found['rule'] + ': ' + rate}")
    console.print(f"\nwritten to {run.path / CALIBRATION}", markup=False)
    console.print(f"Next: {text.command('predict', run.path, 'PICTURE')}", markup=False)
