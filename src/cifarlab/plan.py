"""Runs that shall be there: which are finished, which were cut off, which are missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cifarlab.errors import UserError
from cifarlab.groups import differing_fields
from cifarlab.recipe import Recipe
from cifarlab.run import Run, is_run, stopped_early

if TYPE_CHECKING:
    from cifarlab.cost import Estimate

Standing = Literal["finished", "diverged", "cut off", "missing", "kept as a record only"]


@dataclass(frozen=True)
class Planned:
    """A run that shall be at `path`, trained by `recipe` for `recipe.epochs` epochs on the data called `data`."""

    path: Path
    recipe: Recipe
    data: str

    @property
    def run(self) -> Run | None:
        """What is there of it, perhaps for another number of epochs; None when nothing is.

        Raises:
            UserError: when it is of another recipe, or on other data.
        """
        if not is_run(self.path):
            return None
        run = Run(self.path)
        if run.data["name"] != self.data:
            raise UserError(
                f"{self.path} was trained on {run.data['name']}, and {self.data} is asked for: give another folder"
            )
        if other := _differing(run.recipe, self.recipe, but=("epochs",)):
            field, (there, asked) = next(iter(other.items()))
            raise UserError(
                f"{self.path} is of another recipe: {field} is {there} there, {asked} here: give another folder"
            )
        return run

    @property
    def standing(self) -> Standing:
        """A record (a run kept without its resume state) is taken as it is: it cannot be trained further."""
        run = self.run
        if run is None:
            return "missing"
        if run.divergence is not None:
            return "diverged"
        if self.epochs_left == 0:
            return "finished"
        return "kept as a record only" if run.is_record else "cut off"

    @property
    def epochs_left(self) -> int:
        run = self.run
        rows = run.metrics if run else []
        return 0 if stopped_early(rows, self.recipe) else max(0, self.recipe.epochs - len(rows))

    def seconds_left(self, expected: Estimate) -> float:
        """What its training will take, by an estimate of one like it."""
        return expected.seconds_per_epoch * self.epochs_left


def differing_settings(a: Recipe, b: Recipe) -> list[str]:
    """The fields that make `a` and `b` different recipes: not the seed, the device or the number of epochs."""
    return list(_differing(a, b, but=("epochs", "seed")))


def _differing(a: Recipe, b: Recipe, but: tuple[str, ...]) -> dict[str, tuple[object, object]]:
    return {field: both for field, both in differing_fields(a, b).items() if field not in but}
