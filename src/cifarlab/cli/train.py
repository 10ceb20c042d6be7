"""`cifarlab train` and `cifarlab resume`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.data import fetch_weights, open_source, reopen_source
from cifarlab.cli.options import (
    Data,
    DataDir,
    Device,
    Epochs,
    JsonAndProgress,
    LabelsFrom,
    Seed,
    Settings,
    SkipUnreadable,
)
from cifarlab.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.cost import Estimate
    from cifarlab.data import Source
    from cifarlab.job import Job
    from cifarlab.recipe import Recipe
    from cifarlab.run import Run

Log = Annotated[
    list[str] | None,
    typer.Option("--log", metavar="mlflow|wandb", help="Send the metrics there too; may be given for each."),
]
RecipeOrDefault = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE]", help="A name that `cifarlab recipes` lists; without one, fast94 or what fits."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="The run's directory; default runs/<recipe>-s<seed>-<n>."),
]
Seeds = Annotated[
    int | None,
    typer.Option("--seeds", metavar="N", help="Train a group, seeds 0 to N-1: DIR/seed-0, DIR/seed-1 ..."),
]
Folds = Annotated[
    int | None,
    typer.Option("--folds", metavar="K", help="Stratified cross-validation: DIR/fold-0, DIR/fold-1 ..."),
]
InitFrom = Annotated[
    Path | None,
    typer.Option(
        "--init-from",
        metavar="RUN|shipped",
        help="Begin with the weights of a run, or with those that come with cifarlab.",
    ),
]
Freeze = Annotated[
    list[str] | None,
    typer.Option("--freeze", metavar="PATTERN", help="Layers that stay as they are, as block*; repeatable."),
]
PlanOnly = Annotated[
    bool, typer.Option("--plan", help="Measure a few steps, print what it would take, stop.")
]


def train(
    recipe: RecipeOrDefault = None,
    data: Data = "cifar10",
    data_dir: DataDir = None,
    labels_from: LabelsFrom = None,
    skip_unreadable: SkipUnreadable = False,
    out: Out = None,
    seed: Seed = None,
    seeds: Seeds = None,
    folds: Folds = None,
    epochs: Epochs = None,
    device: Device = None,
    init_from: InitFrom = None,
    freeze: Freeze = None,
    settings: Settings = None,
    log: Log = None,
    plan: PlanOnly = False,
    as_json: JsonAndProgress = False,
) -> None:
    """Train a recipe into a new run directory. Ctrl-C saves, and `cifarlab resume` goes on.

    What it will take is printed first.

    \b
    Examples:
      cifarlab train
      cifarlab train demo --data demo
      cifarlab train vgg3-bn --data ~/flowers --set input.size=64
      cifarlab train vgg3-bn --plan
      cifarlab train vgg3 --epochs 20 --set optimizer.learning_rate=0.01 --set augment.flip=0.5
      cifarlab train vgg3 --init-from runs/vgg3-s0-1 --freeze 'block*'
      cifarlab train fast94 --data ~/flowers --init-from shipped
      cifarlab train vgg3 --seeds 5 --out runs/vgg3
    """
    from cifarlab.recipe import for_own_pictures, override
    from cifarlab.recipes import get_recipe

    options = {
        "seed": seed,
        "epochs": epochs,
        "device.name": device,
        "finetune.init_from": None if init_from is None else json.dumps(str(init_from)),
        "finetune.freeze": json.dumps(freeze) if freeze else None,
    }
    given = overrides_of(options, settings or [])
    named = get_recipe(recipe or _default_recipe())
    from cifarlab.data.sources import are_own_pictures  # loads NumPy: a mistyped recipe need not wait for it

    suited = for_own_pictures(named, given) if are_own_pictures(data) else named
    chosen = override(suited, given)
    if seed is not None and seeds is not None:
        raise UserError(f"--seed {seed} and --seeds {seeds}: give one; --seeds trains seeds 0 to {seeds - 1}")
    in_group = seeds is not None or folds is not None
    _check_before_data(chosen, None if in_group else out, log or [], plan=plan)
    fetch_weights(chosen)
    source = open_source(
        data, data_dir, recipe=chosen, labels_from=labels_from, skip_unreadable=skip_unreadable
    )
    if suited != named:
        _note_suited(named)
    if not in_group:
        _train_one(chosen, source, out, log or [], plan=plan, as_json=as_json)
        return
    from cifarlab.cli.train_group import train_group

    train_group(
        chosen,
        source,
        seeds=seeds,
        folds=folds,
        data_dir=data_dir,
        out=out,
        log=log or [],
        plan=plan,
        as_json=as_json,
    )


def _check_before_data(recipe: Recipe, out: Path | None, log: list[str], *, plan: bool) -> None:
    """What can be told before any data are fetched: a base that does not fit, a folder in use, a library missing."""
    from cifarlab.run import check_out
    from cifarlab.writers import check_writers

    if recipe.finetune.init_from is not None:
        from cifarlab.transfer import open_base

        open_base(recipe)
    if not plan:
        check_out(out)
        check_writers(log)


def _train_one(
    recipe: Recipe, source: Source, out: Path | None, log: list[str], *, plan: bool, as_json: bool
) -> None:
    from cifarlab.cost import estimate
    from cifarlab.job import prepare
    from cifarlab.training import start

    job = prepare(recipe, source)
    expected = estimate(job)
    if plan and as_json:
        screen.write_json(plan_document(job, expected))
        return
    console = screen.open_console(as_json)
    print_lines(console, plan_lines(job, expected), recipe)
    if not plan:
        _follow(console, job, lambda: start(job, out), log, as_json)


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")],
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", help="The new total, to go beyond the planned end.")
    ] = None,
    settings: Settings = None,
    log: Annotated[
        list[str] | None,
        typer.Option(
            "--log",
            metavar="mlflow|wandb|none",
            help="Send the metrics there too; default: where they went before.",
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: JsonAndProgress = False,
) -> None:
    """Go on with a training that was interrupted, or beyond its planned end.

    \b
    Examples:
      cifarlab resume runs/vgg3-s0-1
      cifarlab resume runs/vgg3-s0-1 --epochs 200
    """
    from cifarlab.recipe import parse_assignments
    from cifarlab.run import Run
    from cifarlab.writers import check_writers

    opened = Run(run)
    overrides = parse_assignments(settings or [])
    names = list(opened.writer_records) if not log else [] if log == ["none"] else log
    check_writers(names)
    source = reopen_source(opened, data_dir)
    from cifarlab.training import reopen

    job, opened = reopen(run, epochs, overrides, source=source)
    console = screen.open_console(as_json)
    done = text.count(len(opened.metrics), "epoch")
    about = f"{opened.path}: {job.recipe.name} on {job.source.name}, {done} of {job.recipe.epochs:,} finished"
    console.print(f"{about}; {_device_text(job)}", markup=False)
    screen.note_import(opened)
    if job.recipe.data.validation == "test":
        console.print(f"note: {screen.VALIDATION_IS_TEST}")
    if job.recipe == opened.recipe and opened.is_complete:
        console.print("nothing is left to train: --epochs N, the new total, goes on beyond the planned end")
    _follow(console, job, lambda: opened, names, as_json)


def overrides_of(options: dict[str, str | None], settings: list[str]) -> dict[str, Any]:
    """Options and --set as one set of fields, so that every mistake in them is told at once."""
    from cifarlab.recipe import parse_assignments

    given = parse_assignments([f"{field}={text}" for field, text in options.items() if text is not None])
    assigned = parse_assignments(settings)
    twice = [field for field in given if field in assigned]
    if twice:
        option = twice[0].rpartition(".")[2].replace("_", "-").replace("name", "device")
        raise UserError(f"{twice[0]} is given twice: by --{option} and by --set {twice[0]}")
    return given | assigned


# Before: the plan


def _note_suited(recipe: Recipe) -> None:
    screen.note(
        f"{recipe.name} validated on the test set; with your own pictures it validates on training pictures, and"
        " the test pictures are left to evaluate (--set data.validation=test: as it did)"
    )


def _default_recipe() -> str:
    """The recipe that is trained where none is named, and a line that says so."""
    from cifarlab.environment import available_memory_bytes
    from cifarlab.recipes import DEFAULT, DEFAULT_MEMORY_BYTES, SMALL_DEFAULT

    free = available_memory_bytes()
    if free is None or free >= DEFAULT_MEMORY_BYTES:
        screen.note(f"no recipe named: {DEFAULT}; `cifarlab recipes` lists all")
        return DEFAULT
    needed = text.size(DEFAULT_MEMORY_BYTES)
    screen.note(
        f"no recipe named: {SMALL_DEFAULT}, as {text.size(free)} of memory are free, and {DEFAULT} may take {needed}"
    )
    return SMALL_DEFAULT


def plan_lines(job: Job, expected: Estimate) -> dict[str, str | None]:
    from cifarlab.recipes import RECIPES

    recipe = job.recipe
    changed = recipe.model != RECIPES[recipe.name].model
    frozen = sum(parameter.numel() for parameter in job.model.parameters()) - _parameters(job)
    network = (
        f"{recipe.network}{', changed by --set' if changed else ''}; {_parameters(job):,} parameters to train"
    )
    if frozen:
        network += f", {frozen:,} frozen"
    steps = f"{text.count(recipe.epochs, 'epoch')} of {text.count(job.steps_per_epoch, 'step')}"
    if recipe.published:
        published = f"{text.percent(recipe.published.accuracy, 2)} on the {recipe.published.split} set"
        published += f" after {text.count(recipe.published.epochs, 'epoch')}"
    else:
        published = None
    time = f"{text.duration(expected.elapsed_seconds)} at {expected.images_per_second:,.0f} images/s"
    return {
        "recipe": f"{recipe.name}, from {recipe.source}",
        "network": network,
        "published": published,
        "begins with": _beginning(job),
        "data": f"{job.source.name}: {job.source.location}",
        "pictures": f"{job.n_train:,} to train on, {_validation_text(job)}",
        "training": f"{steps}, {recipe.batch_size:,} pictures a step, seed {recipe.seed}",
        "device": _device_text(job),
        "expected": f"{time}: done at {text.clock_after(expected.elapsed_seconds)}",
        "needs": f"{text.size(expected.memory_bytes)} of memory, {text.size(expected.disk_bytes)} of disk",
    }


def print_lines(console: Console, lines: dict[str, str | None], recipe: Recipe) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, content in lines.items():
        if content is not None:
            table.add_row(name, Text(text.one_line(content)))
    console.print(table, soft_wrap=False)
    if recipe.data.validation == "test":
        console.print(f"note: {screen.VALIDATION_IS_TEST}")
    console.print()


def _validation_text(job: Job) -> str:
    settings = job.recipe.data
    how = settings.validation
    if how == "none":
        return "none to validate on"
    where = {
        "test": "the TEST SET",
        "stratified": "cut from the training set, class by class",
        "first": "the first of the training set",
        "last": "the last of the training set",
        "fold": f"fold-{settings.fold} of {settings.folds} folds",
    }[how]
    return f"{job.n_validation:,} to validate on: {where}"


def _device_text(job: Job) -> str:
    import torch

    from cifarlab.environment import choose_precision

    threads = f", {text.count(torch.get_num_threads(), 'thread')}" if job.device.type == "cpu" else ""
    return f"{job.device}{threads}, {choose_precision(job.recipe.device, job.device)}"


def _beginning(job: Job) -> str | None:
    if job.initial_weights is None:
        return None
    new = ", ".join(job.initial_weights["new_layers"])
    where = job.initial_weights.get("run") or job.initial_weights["path"]
    return f"the weights of {where}" + (f"; new: {new}" if new else "")


def _parameters(job: Job) -> int:
    return sum(parameter.numel() for parameter in job.model.parameters() if parameter.requires_grad)


def plan_document(job: Job, expected: Estimate) -> dict[str, Any]:
    import torch

    recipe = job.recipe
    return {
        "recipe": recipe.name,
        "trainable_parameters": _parameters(job),
        "data": job.source.name,
        "n_train": job.n_train,
        "n_validation": job.n_validation,
        "validation": recipe.data.validation,
        "epochs": recipe.epochs,
        "steps_per_epoch": job.steps_per_epoch,
        "device": str(job.device),
        "threads": torch.get_num_threads() if job.device.type == "cpu" else None,
        "elapsed_seconds": expected.elapsed_seconds,
        "images_per_second": expected.images_per_second,
        "memory_bytes": expected.memory_bytes,
        "disk_bytes": expected.disk_bytes,
    }


# While it trains


def _follow(console: Console, job: Job, get_run: Callable[[], Run], log: list[str], as_json: bool) -> None:
    from cifarlab.interrupts import stop_on_signals
    from cifarlab.progress import follow
    from cifarlab.run import Run
    from cifarlab.training import fit

    with stop_on_signals(say_stopping) as stop:
        run = get_run()
        console.print(f"run in {run.path}; Ctrl-C saves and stops", markup=False)
        follow(fit(job, run, stop, log), job.recipe, console)
    finished = Run(run.path)
    if as_json:
        screen.write_json(_result_document(finished))
    _print_result(console, finished, job)


def say_stopping(signal_number: int) -> None:
    """From within the signal's handler: straight to the terminal, past every buffer and lock."""
    os.write(2, b"\r\x1b[2K" * os.isatty(2) + b"finishing the step and saving; once more stops at once\n")


# After: what came out


def _result_document(run: Run) -> dict[str, Any]:
    last = run.metrics[-1]
    return {
        "run": str(run.path),
        "epochs": last["epoch"],
        "elapsed_seconds": last["elapsed_seconds"],
        "validation_accuracy": last["validation_accuracy"],
        "validation_loss": last["validation_loss"],
    }


def _print_result(console: Console, run: Run, job: Job) -> None:
    rows = run.metrics
    last, best = rows[-1], run.best_epoch
    took = text.duration(last["elapsed_seconds"])
    early = f", stopped early of {job.recipe.epochs:,}" if last["epoch"] < job.recipe.epochs else ""
    console.print(f"\n[bold]{run.recipe.name}: {text.count(last['epoch'], 'epoch')} in {took}{early}[/bold]")
    console.print(f"last epoch  {_validated(last, job.recipe)}")
    if best is not None:
        console.print(f"best epoch  {_validated(rows[best - 1], job.recipe)}, epoch {best} (lowest loss)")
    console.print(f"run         {run.path}", markup=False)
    for what, file in (("weights", run.weights_path(run.default_weights)), ("curves", run.curves_path)):
        console.print(f"{what:10}  {file}", markup=False)
    console.print("\nNext:")
    for command in _next_commands(run, job):
        console.print(f"  {command}", markup=False)


def _validated(row: dict[str, Any], recipe: Recipe) -> str:
    if row["validation_accuracy"] is None:
        train = f"training accuracy {text.percent(row['train_accuracy'], 2)}, loss {text.number(row['train_loss'])}"
        return f"{train}; nothing was kept to validate on"
    name = "TEST SET, used as validation:" if recipe.data.validation == "test" else "validation"
    accuracy = text.percent(row["validation_accuracy"], 2)
    return f"{name} accuracy {accuracy}, loss {text.number(row['validation_loss'])}"


def _next_commands(run: Run, job: Job) -> Iterator[str]:
    from cifarlab.recipe import tied_to_total

    yield text.command("evaluate", run.path)
    yield text.command("predict", run.path, "PICTURE")
    if job.source.name == "demo":
        yield "cifarlab train vgg3 --plan          # what the real CIFAR-10 would take"
    elif not tied_to_total(job.recipe.schedule):
        yield text.command("resume", run.path, "--epochs", 2 * len(run.metrics))
