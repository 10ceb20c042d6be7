"""Training a group: the seeds or the folds of one recipe, each in a run of its own; finished ones are kept."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cifarlab.data import Source, open_source
from cifarlab.data.sources import source_name
from cifarlab.errors import Interrupted, UserError
from cifarlab.interrupts import stop_on_signals
from cifarlab.job import Job, prepare
from cifarlab.out_of_fold import write_out_of_fold
from cifarlab.plan import Planned
from cifarlab.progress import follow
from cifarlab.recipe import Recipe, override
from cifarlab.run import Run, is_run
from cifarlab.shipped_run import base_run
from cifarlab.training import Event, Stop, fit, recipe_for, reopen, start
from cifarlab.writers import check_writers


def plan_group(
    recipe: Recipe,
    *,
    seeds: int | None = None,
    folds: int | None = None,
    data: str = "cifar10",
    out: str | Path | None = None,
) -> list[Planned]:
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
    members = [Planned(folder / name, planned_recipe, data) for name, planned_recipe in planned.items()]
    for member in members:
        _ = member.run  # says what is wrong with it
    return members


def fit_planned(
    planned: Planned, source: Source, stop: Stop | None, log: Sequence[str] = ()
) -> tuple[Job, Iterator[Event]]:
    """Begin or go on with a planned run, from where it stands: its job, and the events of `fit`.

    `log` as for `fit`; without any, a run that goes on is logged where it was before.
    """
    if planned.run is None:
        job = prepare(planned.recipe, source)
        run = start(job, planned.path)
    else:
        device = planned.recipe.device.model_dump(mode="json")
        changes = {f"device.{name}": value for name, value in device.items()}
        job, run = reopen(planned.path, planned.recipe.epochs, changes, source=source)
    return job, fit(job, run, stop, log or None)


def train_members(
    members: Sequence[Planned], source: Source, stop: Stop, console: Console, log: Sequence[str] = ()
) -> list[Run]:
    """Train what is not finished, one after the other, and show it on `console`.

    Raises:
        Interrupted: after `stop` was set and everything was saved; the same call goes on.
    """
    for number, member in enumerate(members):
        before = "\n" if number else ""
        console.print(
            f"{before}[bold]{member.path.name}[/bold], {number + 1} of {len(members)}: {_stand(member)}"
        )
        if member.standing == "finished":
            continue
        try:
            job, events = fit_planned(member, source, stop, log)
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
    log: Sequence[str] = (),
) -> list[Run]:
    """Train a recipe over seeds, or over the folds of a stratified cross-validation, and return the runs.

    Called again with the same arguments, it keeps what is finished and goes on with the rest. With `folds`, every
    training picture's out-of-fold logits are kept beside the runs (`cifarlab.out_of_fold`).

    Args:
        recipe: a name or a `Recipe`.
        seeds: how many; seeds 0, 1, 2 and so on.
        folds: how many; each run validates on one, and is judged on it.
        data, overrides, data_dir, log: as for `train`.
        out: the group's folder, by default `runs/<recipe>` or `runs/<recipe>-<folds>-folds`.

    Raises:
        UserError, DivergedError, Interrupted: as `train` does.
    """
    chosen = recipe_for(recipe, data, overrides or {})
    check_writers(log)
    members = plan_group(chosen, seeds=seeds, folds=folds, data=source_name(data), out=out)
    size = chosen.input
    source = open_source(
        data, None if data_dir is None else Path(data_dir), size_pixels=size.size, fit=size.fit
    )
    with stop_on_signals() as stop:
        runs = train_members(members, source, stop, Console(highlight=False), log)
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
    if base is not None and base_run(base).data["name"] == data:
        raise UserError(
            f"--folds cannot begin with {base}: it was trained on {data}, and with it on pictures that a fold holds out"
        )


def _stand(member: Planned) -> str:
    if member.run is None:
        return "begins"
    done = f"{len(member.run.metrics)} of {member.recipe.epochs} epochs finished"
    return "finished, kept" if member.standing == "finished" else f"goes on, {done}"


def _stopped(member: Planned, members: Sequence[Planned], signal_number: int) -> Interrupted:
    finished = sum(each.standing == "finished" for each in members)
    message = f"stopped in {member.path.name}, saved, {finished} of {len(members)} finished; the same command goes on"
    return Interrupted(message, signal_number)
