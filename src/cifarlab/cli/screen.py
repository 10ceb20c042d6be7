"""What every command prints with: one console, one JSON document, notes on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarlab.errors import UserError
from cifarlab.text import one_line, percent

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.run import Run
    from cifarlab.statistics import Summary

VALIDATION_IS_TEST = (
    "validation is the test set in this recipe: its figures are test figures, seen while training"
)


def open_console(as_json: bool = False) -> Console:
    """Where people read: stdout, or stderr when stdout is for one JSON document."""
    from rich.console import Console

    class PipeConsole(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            if self.is_terminal:
                super().print(*objects, **options)
                return
            with self.capture() as captured:
                super().print(*objects, **options)
            self.file.write(
                re.sub(r" +\n", "\n", captured.get())
            )  # tables fill their last column with blanks

        def on_broken_pipe(self) -> None:
            raise  # the BrokenPipeError in hand, for `main` to answer

    return PipeConsole(stderr=as_json, highlight=False, soft_wrap=True)


def write_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_file(path: Path, option: str, such_as: str = "") -> None:
    """See, before anything long, that `path`, given by `option`, can be written. UserError where it cannot."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: give a file{such_as}")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path} cannot be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{option} {path} cannot be written: permission denied")


def escaped(content: str) -> str:
    """`content` as it is, where rich would read its brackets as styles."""
    from rich.markup import escape

    return escape(content)


def note_import(run: Run) -> None:
    """Say it where a run began with weights from elsewhere."""
    if run.imported is not None:
        trained = "trained on since" if run.metrics else "not trained since"
        note(f"its weights were imported from {run.imported['file']}, {trained}")


def note(text: str) -> None:
    """One line beside the report, on stderr."""
    sys.stderr.write(f"note: {one_line(text)}\n")


def mean_and_interval(summary: Summary) -> str:
    """`71.23 % ± 0.42 (n = 3), 95 % interval 70.19 to 72.27 %`: mean and deviation, then the interval of the mean."""
    spread = "" if summary.sd is None else f" ± {100 * summary.sd:.2f}"
    interval = ""
    if summary.low is not None and summary.high is not None:
        low, high = (
            max(summary.low, 0.0),
            min(summary.high, 1.0),
        )  # few runs: t's interval may leave 0 to 100 %
        interval = f", 95 % interval {100 * low:.2f} to {100 * high:.2f} %"
    return f"{percent(summary.mean, 2)}{spread} (n = {summary.n}){interval}"
