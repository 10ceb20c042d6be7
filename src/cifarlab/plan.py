"""Trainings that shall be there: which are finished, which were cut off, which are missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cifarlab.errors import UserError
from cifarlab.recipe import Recipe, settings_of
from cifarlab.run import Run, is_run, stopped_early

Standing = Literal["finished", "diverged", "cut off", "missing", "kept as a record only"]


@dataclass(frozen=True)
class Planned:
    """A run that shall be at `path`, trained by `recipe` for `recipe.epochs` epochs."""

    path: Path
    recipe: Recipe

    @property
    def run(self) -> Run | None:
        """What is there.

        Raises:
            UserError: when it was trained with other settings.
        """
        if not is_run(self.path):
            return None
        run = Run(self.path)
        other = differing_settings(run.recipe, self.recipe)
        if run.recipe.seed != self.recipe.seed:
            other.append("seed")
        if other:
            raise UserError(
                f"{self.path} holds a run with other settings ({', '.join(other)}): move it away, or choose another"
                " folder"
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


def differing_settings(a: Recipe, b: Recipe) -> list[str]:
    """The fields that make `a` and `b` different trainings: not the seed, the device or the number of epochs."""
    of_a, of_b = ({**settings_of(recipe), "epochs": None} for recipe in (a, b))
    return [name for name in {**of_a, **of_b} if of_a.get(name) != of_b.get(name)]
