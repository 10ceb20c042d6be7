"""Trainings in turn, for the commands that need several runs: what they cost is told first, and all can be resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cifarlab import text
from cifarlab.errors import DivergedError, Interrupted, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.data import Source
    from cifarlab.plan import Planned
    from cifarlab.recipe import Recipe


def unfinished(planned: Sequence[Planned]) -> list[Planned]:
    return [each for each in planned if each.standing in ("missing", "cut off")]


@dataclass(frozen=True)
class Cost:
    """How many trainings stand how, and what those that are left will take on this machine as it is now.

    `refused` holds what cannot be trained here, by the recipe's name, with the reason: weights that are not there, for
    example.
    """

    standings: dict[str, int]
    elapsed_seconds: float
    disk_bytes: float
    refused: dict[str, UserError]

    def to_dict(self) -> dict[str, Any]:
        """{standings, elapsed_seconds, disk_bytes, refused: {recipe: reason}}, for JSON."""
        return {
            "standings": self.standings,
            "elapsed_seconds": self.elapsed_seconds,
            "disk_bytes": self.disk_bytes,
            "refused": {name: str(reason) for name, reason in self.refused.items()},
        }


def cost_of(planned: Sequence[Planned], source: Source | None) -> Cost:
    """From a few measured steps of each kind. `source` may be None where nothing is left to train."""
    from cifarlab.cost import Estimate, estimate
    from cifarlab.job import prepare

    known: dict[str, Estimate] = {}
    refused: dict[str, UserError] = {}
    seconds = disk_bytes = 0.0
    for each in unfinished(planned):
        assert source is not None, "trainings are left, and no data source is open"
        kind = _costs_like(each.recipe)
        key = kind.model_dump_json()
        if key not in known and kind.name not in refused:
            try:
                known[key] = estimate(prepare(kind, source))
            except UserError as error:
                refused[kind.name] = error
        if key in known:
            seconds += each.seconds_left(known[key])
            disk_bytes += known[key].disk_bytes
    return Cost(dict(Counter(each.standing for each in planned)), seconds, disk_bytes, refused)


def print_cost(console: Console, cost: Cost) -> None:
    told = ", ".join(f"{n} {standing}" for standing, n in cost.standings.items())
    console.print(f"{text.count(sum(cost.standings.values()), 'training')}: {told}", markup=False)
    if cost.elapsed_seconds:
        seconds = cost.elapsed_seconds
        console.print(
            f"expected: {text.duration(seconds)} on this machine as it is now: done at {text.clock_after(seconds)};"
            f" {text.size(cost.disk_bytes)} of disk\n",
            markup=False,
        )


def _costs_like(recipe: Recipe) -> Recipe:
    """`recipe` without what does not change the cost of its epochs; their number may, where pictures grow."""
    optimizer = recipe.optimizer.model_copy(update={"learning_rate": 1e-6})
    return recipe.model_copy(update={"seed": 0, "optimizer": optimizer})


def carry_out(console: Console, planned: Sequence[Planned], source: Source | None) -> Iterator[Planned]:
    """Train what is missing and resume what was cut off, in turn; gives each that is finished now.

    A training that diverges is kept as that, and the next one follows. `source` may be None where nothing is left.

    Raises:
        Interrupted: after a signal; everything is saved, and the same command goes on.
    """
    left = unfinished(planned)
    for number, each in enumerate(left, start=1):
        assert source is not None, "trainings are left, and no data source is open"
        resumed = ", resumed" if each.standing == "cut off" else ""
        console.print(f"\n[{number}/{len(left)}] {each.path}{resumed}", markup=False, style="bold")
        try:
            _train(console, each, source)
        except DivergedError as error:
            console.print(f"diverged: {error}", markup=False)
        except Interrupted as stop:
            raise Interrupted(
                f"stopped in {each.path}, saved; the same command goes on", stop.signal_number
            ) from None
        yield each


def _train(console: Console, planned: Planned, source: Source) -> None:
    from cifarlab.cli.train import say_stopping
    from cifarlab.group_training import fit_planned
    from cifarlab.interrupts import stop_on_signals
    from cifarlab.progress import follow

    with stop_on_signals(say_stopping) as stop:
        job, events = fit_planned(planned, source, stop)
        follow(events, job.recipe, console)
