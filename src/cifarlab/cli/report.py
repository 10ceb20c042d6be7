"""`cifarlab report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.data import decoding_progress
from cifarlab.cli.options import DataDir

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.report import Progress, Written

SAMPLE = 2_000  # as in cifarlab.report, which is not imported for --help


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="A run's directory; several are set beside each other."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path("report.html"),
    split: Annotated[
        str, typer.Option(metavar="test|validation|train", help="The pictures to judge on.")
    ] = "test",
    weights: Annotated[
        str | None, typer.Option(metavar="best|last", help="By default those that each run's recipe names.")
    ] = None,
    sample: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Pictures to change for robustness and test-time augmentation; 0: none."
        ),
    ] = SAMPLE,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead.")] = False,
) -> None:
    """Write one page about a run, or about several beside each other: a single HTML file that needs no network.

    It opens the test pictures, which is recorded in the run; `--split validation` leaves them alone.

    \b
    Examples:
      cifarlab report runs/vgg3-s0-1 --out report.html
      cifarlab report runs/vgg3-s0-1 --split validation
      cifarlab report runs/vgg3-s0-1 runs/vgg3-bn-s0-1 --out both.html
    """
    screen.check_file(out, "--out", such_as=f", such as {out / 'report.html'}")
    from cifarlab.groups import runs_under
    from cifarlab.run import Run

    opened: list[Run] = runs_under(runs)
    from cifarlab.report import write_report

    console = screen.open_console(as_json)
    with decoding_progress() as decoding, _Bar(console) as progress:
        written = write_report(
            opened,
            out,
            split=split,
            weights=weights,
            data_dir=data_dir,
            sample_pictures=sample,
            progress=progress,
            decoding=decoding,
        )
    if as_json:
        screen.write_json(_document(written))
    for name, accuracy in zip(written.names, written.accuracies, strict=True):
        about = f"{text.percent(accuracy, 2)} of {written.n:,} {written.split} pictures"
        console.print(f"{name}  {about}", markup=False, style="bold")
    console.print(f"written to {written.path}, {text.size(written.size_bytes)}", markup=False)


def _document(written: Written) -> dict[str, object]:
    runs = zip(written.runs, written.names, written.weights, written.accuracies, strict=True)
    return {
        "report": str(written.path),
        "size_bytes": written.size_bytes,
        "split": written.split,
        "n": written.n,
        "n_changed_pictures": written.n_changed_pictures,
        "runs": [
            {"run": run, "name": name, "weights": weights, "accuracy": accuracy}
            for run, name, weights, accuracy in runs
        ],
    }


class _Bar:
    """A bar with the time left, gone when all is done; nothing where no person looks."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        left = TextColumn("left")
        columns = TextColumn("changed pictures"), BarColumn(24), TimeRemainingColumn(compact=True), left
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=None)

    def __enter__(self) -> Progress:
        return self._update

    def _update(self, done: int, total: int) -> None:
        self.bar.start()
        self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *_error: object) -> None:
        self.bar.stop()
