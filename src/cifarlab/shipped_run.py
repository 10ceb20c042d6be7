"""The run whose weights come with the package, in `shipped/`: what predicts where no run is named, and a beginning."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cifarlab.errors import CifarlabError, UserError
from cifarlab.run import Run, is_run

if TYPE_CHECKING:
    from cifarlab.evaluation import Evaluation

FOLDER = Path(__file__).parent / "shipped"
NAME = "shipped"  # where a run to begin with is named


class NotAsRecorded(CifarlabError):
    """The shipped weights do not give the figure that is recorded with them."""


def has_shipped_run() -> bool:
    return is_run(FOLDER)


def is_shipped(run: Run) -> bool:
    return run.path == FOLDER


def shipped_run() -> Run:
    """The run that comes with the package. It is only read.

    Raises:
        UserError: when this copy of the package has none.
    """
    if not has_shipped_run():
        raise UserError("this copy of cifarlab comes without weights: name a run's directory")
    return Run(FOLDER)


def base_run(name: str) -> Run:
    """The run to begin with: that in the directory `name`, or for `shipped`, unless a run lies there, `shipped_run`.

    Raises:
        UserError: as `Run` and `shipped_run` do.
    """
    return shipped_run() if name == NAME and not is_run(Path(name)) else Run(name)


def check_shipped_run(split: str = "test", data_dir: str | Path | None = None) -> "Evaluation":
    """Judge the shipped weights anew on a split, on the CPU, and compare with what is recorded. Nothing is kept.

    Raises:
        NotAsRecorded: when an accuracy is another one than recorded.
        UserError: as `evaluate`; when nothing is recorded for the split.
    """
    from cifarlab.evaluation import evaluate

    run = shipped_run()
    recorded = run.evaluations.get(split, {}).get(run.default_weights)
    if recorded is None:
        raise UserError(f"nothing is recorded of the weights that come with cifarlab on the {split} split")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run.path, copy, ignore=shutil.ignore_patterns("logits-*"))
        found = replace(evaluate(copy, split=split, data_dir=data_dir, device="cpu"), run=str(run.path))
    _compare(found, recorded)
    return found


def _compare(found: "Evaluation", recorded: dict) -> None:
    for name, what in (
        ("accuracy", "accuracy"),
        ("accuracy_with_tta", "accuracy with test-time augmentation"),
    ):
        here, there = getattr(found, name), recorded[name]
        if here != there:
            raise NotAsRecorded(
                f"the weights that come with cifarlab are recorded with {what} {there} on the {found.split} split, and"
                f" reach {here} here"
            )
