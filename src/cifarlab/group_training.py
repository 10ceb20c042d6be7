"""Training a group: the seeds or the folds of one recipe, each in a run of its own; finished ones are kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cifarlab.cost import Estimate
from cifarlab.data import Source, open_source
from cifarlab.errors import Interrupted, UserError
from cifarlab.groups import differing_fields
from cifarlab.interrupts import stop_on_signals
from cifarlab.job import Job, prepare
from cifarlab.out_of_fold import write_out_of_fold
from cifarlab.progress import follow
from cifarlab.recipe import Recipe, override
from cifarlab.recipes import get_recipe
from cifarlab.run import Run, is_run
from cifarlab.training import Event, Stop, fit, reopen, start


@dataclass(frozen=True)
class Member:
    """One run of a group as it is planned. `run` is what there is of it already, or None."""

    path: Path
    recipe: Recipe
    run: Run | None

    @property
    def is_finished(self) -> bool:
        return self.run is not None and self.run.is_complete

    def seconds_left(self, expected: Estimate) -> float:
        """What its training will take, by the estimate of a whole one."""
        done = 0 if self.run is None else len(self.run.metrics)
        return 0.0 if self.is_finished else expected.seconds_per_epoch * (self.recipe.epochs - done)


def plan_group(
    recipe: Recipe,
    *,
    seeds: int | None = None,
    folds: int | None = None,
    data: str = "cifar10",
    out: str | Path | None = None,
) -> list[Member]:
    """The runs of a group: `DIR/seed-0` to `seed-N-1`, or `DIR/fold-0` to `fold-K-1`. Nothing is written.

    DIR is `out`, by default `runs/<recipe>`, with folds `runs/<recipe>-<K>-folds`.

    Raises:
        UserError: when `out` cannot be a group, or holds runs of another recipe or on other data.
    """
    if (seeds is None) == (folds is None):
        raise UserError("a group is of seeds or of folds: give one of the two")
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds should be 1 or more, {seeds} given")
    folder = Path(out) if out is not None else _default_folder(recipe, folds)
    if is_run(folder) or folder.is_file():
        raise UserError(
            f"--out {folder} is {'a run' if is_run(folder) else 'a file'}: a group needs a folder"
        )
    if seeds is not None:
        planned = {f"seed-{seed}": override(recipe, {"seed": seed}) for seed in range(seeds)}
    else:
        _check_base(recipe, data)
        planned = _fold_recipes(recipe, folds or 0)
    return [_member(folder / name, planned_recipe, data) for name, planned_recipe in planned.items()]


def fit_member(member: Member, source: Source, stop: Stop | None) -> tuple[Job, Iterator[Event]]:
    """Begin or go on with one run of a group, from where it stands: its job, and the events of `fit`."""
    if member.run is None:
        job = prepare(member.recipe, source)
        run = start(job, member.path)
    else:
        device = member.recipe.device.model_dump(mode="json")
        changes = {f"device.{name}": value for name, value in device.items()}
        job, run = reopen(member.path, overrides=changes, source=source)
    return job, fit(job, run, stop)


def train_members(members: Sequence[Member], source: Source, stop: Stop, console: Console) -> list[Run]:
    """Train what is not finished, one after the other, and show it on `console`.

    Raises:
        Interrupted: after `stop` was set and everything was saved; the same call goes on.
    """
    for number, member in enumerate(members):
        before = "\n" if number else ""
        console.print(
            f"{before}[bold]{member.path.name}[/bold], {number + 1} of {len(members)}: {_stand(member)}"
        )
        if member.is_finished:
            continue
        try:
            job, events = fit_member(member, source, stop)
            follow(events, job.recipe, console)
        except Interrupted as error:
            raise _stopped(member, members, error.signal_number) from None
        if stop.signal_number is not None and number + 1 < len(members):
            raise _stopped(member, members, stop.signal_number)
    return [Run(member.path) for member in members]


def train_group(
    recipe: str | Recipe,
    *,
    seeds: int | None = None,
    folds: int | None = None,
    data: str = "cifar10",
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
) -> list[Run]:
    """Train a recipe over seeds, or over the folds of a stratified cross-validation, and return the runs.

    Called again with the same arguments, it keeps what is finished and goes on with the rest. With `folds`, every
    training picture's out-of-fold logits are kept beside the runs (`cifarlab.out_of_fold`).

    Args:
        recipe: a name or a `Recipe`.
        seeds: how many; seeds 0, 1, 2 and so on.
        folds: how many; each run validates on one, and is judged on it.
        data, overrides, data_dir: as for `train`.
        out: the group's folder, by default `runs/<recipe>` or `runs/<recipe>-<folds>-folds`.

    Raises:
        UserError, DivergedError, Interrupted: as `train` does.
    """
    chosen = override(get_recipe(recipe) if isinstance(recipe, str) else recipe, overrides or {})
    members = plan_group(chosen, seeds=seeds, folds=folds, data=data, out=out)
    source = open_source(data, None if data_dir is None else Path(data_dir))
    with stop_on_signals() as stop:
        runs = train_members(members, source, stop, Console(highlight=False))
    if folds is not None:
        write_out_of_fold(runs, data_dir)
    return runs


def _default_folder(recipe: Recipe, folds: int | None) -> Path:
    return Path("runs") / (recipe.name if folds is None else f"{recipe.name}-{folds}-folds")


def _fold_recipes(recipe: Recipe, folds: int) -> dict[str, Recipe]:
    if folds < 2:
        raise UserError(f"--folds should be 2 or more, {folds} given")
    fields = {"data.validation": "fold", "data.folds": folds}
    return {f"fold-{fold}": override(recipe, {**fields, "data.fold": fold}) for fold in range(folds)}


def _check_base(recipe: Recipe, data: str) -> None:
    base = recipe.finetune.init_from
    if base is not None and Run(base).data["name"] == data:
        raise UserError(
            f"--folds cannot begin with {base}: it was trained on {data}, and with it on pictures that a fold holds out"
        )


def _member(path: Path, recipe: Recipe, data: str) -> Member:
    if not is_run(path):
        return Member(path, recipe, None)
    run = Run(path)
    if run.data["name"] != data:
        raise UserError(
            f"{path} was trained on {run.data['name']}, and {data} is asked for: give another --out"
        )
    others = differing_fields(run.recipe, recipe)
    if others:
        field, (there, asked) = next(iter(others.items()))
        raise UserError(
            f"{path} is of another recipe: {field} is {there} there, {asked} here: give another --out"
        )
    return Member(path, recipe, run)


def _stand(member: Member) -> str:
    if member.run is None:
        return "begins"
    done = f"{len(member.run.metrics)} of {member.recipe.epochs} epochs finished"
    return "finished, kept" if member.is_finished else f"goes on, {done}"


def _stopped(member: Member, members: Sequence[Member], signal_number: int) -> Interrupted:
    finished = sum(is_run(each.path) and Run(each.path).is_complete for each in members)
    message = f"stopped in {member.path.name}, saved, {finished} of {len(members)} finished; the same command goes on"
    return Interrupted(message, signal_number)
