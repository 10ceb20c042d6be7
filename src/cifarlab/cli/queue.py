"""Trainings in turn, for the commands that need several runs: what they cost is told first, and all can be resumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cifarlab import text
from cifarlab.errors import DivergedError, Interrupted

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.plan import Planned
    from cifarlab.recipe import Recipe


def unfinished(planned: Sequence[Planned]) -> list[Planned]:
    return [each for each in planned if each.standing in ("missing", "cut off")]


def print_cost(console: Console, planned: Sequence[Planned], data: str, data_dir: Path | None) -> float:
    """Say what is there and what the rest will take, from a few measured steps of each kind; its seconds."""
    standings = [each.standing for each in planned]
    told = ", ".join(f"{standings.count(s)} {s}" for s in dict.fromkeys(standings))
    console.print(f"{text.count(len(planned), 'training')}: {told}", markup=False)
    left = unfinished(planned)
    if not left:
        return 0.0
    from cifarlab.cost import estimate
    from cifarlab.job import prepare

    known: dict[Recipe, tuple[float, float]] = {}
    seconds = disk_bytes = 0.0
    for each in left:
        kind = _costs_like(each.recipe)
        if kind not in known:
            job = prepare(kind, data, data_dir)
            expected = estimate(job)
            known[kind] = expected.seconds_per_epoch, expected.disk_bytes
        per_epoch, size = known[kind]
        seconds += per_epoch * each.epochs_left
        disk_bytes += size
    done = text.clock_after(seconds)
    console.print(
        f"expected: {text.duration(seconds)} on this machine as it is now: done at {done};"
        f" {text.size(disk_bytes)} of disk\n",
        markup=False,
    )
    return seconds


def _costs_like(recipe: Recipe) -> Recipe:
    """`recipe` without what does not change the cost of an epoch."""
    optimizer = recipe.optimizer.model_copy(update={"learning_rate": 1e-6})
    words = {"published": None, "source": "", "notes": ""}
    return recipe.model_copy(update={"seed": 0, "epochs": 1, "optimizer": optimizer, **words})


def carry_out(
    console: Console, planned: Sequence[Planned], data: str, data_dir: Path | None
) -> Iterator[Planned]:
    """Train what is missing and resume what was cut off, in turn; gives each that is finished now.

    A training that diverges is kept as that, and the next one follows.

    Raises:
        Interrupted: after a signal; everything is saved, and the same command goes on.
    """
    left = unfinished(planned)
    for number, each in enumerate(left, start=1):
        resumed = ", resumed" if each.standing == "cut off" else ""
        console.print(f"\n[{number}/{len(left)}] {each.path}{resumed}", markup=False, style="bold")
        try:
            _train(console, each, data, data_dir)
        except DivergedError as error:
            console.print(f"diverged: {error}", markup=False)
        except Interrupted as stop:
            raise Interrupted(
                f"stopped in {each.path}, saved; the same command goes on", stop.signal_number
            ) from None
        yield each


def _train(console: Console, planned: Planned, data: str, data_dir: Path | None) -> None:
    from cifarlab.interrupts import stop_on_signals
    from cifarlab.job import prepare
    from cifarlab.progress import follow
    from cifarlab.training import fit, reopen, start

    with stop_on_signals() as stop:
        if planned.run is None:
            job = prepare(planned.recipe, data, data_dir)
            run = start(job, planned.path)
        else:
            job, run = reopen(planned.path, planned.recipe.epochs, data_dir=data_dir)
        follow(fit(job, run, stop), job.recipe, console)
