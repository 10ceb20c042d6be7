"""Training: `start` or `reopen` the run of a job, `fit` it; or all in one, `train` and `resume`.

All randomness is a pure function of (seed, step), so that a resumed training needs no random state: initial weights,
data order, augmentation and dropout each have a stream of seeds of their own (`cifarlab.data.loader.derived_seed`).
Where passes leave out easy pictures, the losses that say which are saved with the weights.
"""

import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from cifarlab.data import Source
from cifarlab.data.loader import DROPOUT, Images, derived_seed
from cifarlab.data.sources import are_own_pictures, check_same_data, reopen_source
from cifarlab.environment import describe_environment
from cifarlab.errors import DivergedError, Interrupted, UserError, one_of
from cifarlab.features import FeaturesDone, cacheable_layers, with_features
from cifarlab.interrupts import stop_on_signals
from cifarlab.job import Job, autocast, prepare
from cifarlab.kernels import own_kernels
from cifarlab.kernels.memory import return_free_memory
from cifarlab.models.airbench import freeze_whitening_bias
from cifarlab.optim import clip_gradients, l2_penalty, load_state_tensors, set_learning_rate, state_tensors
from cifarlab.progress import follow, in_notebook, show_curves
from cifarlab.recipe import Recipe, for_own_pictures, override, tied_to_total
from cifarlab.recipes import get_recipe
from cifarlab.run import Partial, Row, Run, State, best_epoch, check_out, stopped_early
from cifarlab.schedule import learning_rate_factor
from cifarlab.text import command
from cifarlab.transfer import freeze_for_epoch
from cifarlab.writers import Writers, check_writers, open_writers

REPORT_SECONDS = 0.2  # between two reports of steps; also how often the loss is looked at
SAVE_SECONDS = 300.0  # between two saves within an epoch
CURVES_SECONDS = 30.0  # between two drawings of the learning curves
JUDGED_AT_ONCE = 500  # pictures of validation and tests
JUDGED_AT_ONCE_BY_CPU = 100  # where more would be no faster, and take memory
STEPS_JUDGED_TOGETHER = 64
SEEDS_AT_ONCE = 256  # steps whose dropout's seeds are derived together


class Stop(Protocol):
    """What asks a training to stop after the step in hand."""

    signal_number: int | None

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class StepDone:
    """Progress within an epoch. `loss` and `accuracy` are running means over the epoch so far."""

    epoch: int
    step_in_epoch: int
    steps_in_epoch: int
    loss: float
    accuracy: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class EpochDone:
    """A finished, saved epoch. `row` is its line of metrics."""

    row: Row
    epochs: int
    is_best: bool
    seconds_left: float


@dataclass(frozen=True)
class Notice:
    """What a person should know while the training goes on: one line."""

    text: str


Event = StepDone | EpochDone | FeaturesDone | Notice


def start(job: Job, out: str | Path | None = None) -> Run:
    """Make the run directory, by default `runs/<recipe>-s<seed>-<n>`.

    Raises:
        UserError: when `out` is already used or cannot be written.
    """
    data: dict[str, Any] = {
        "name": job.source.name,
        "location": job.source.location,
        "checksum": job.source.checksum,
        "in_memory": job.source.in_memory,
        "classes": list(job.source.classes),
        "input_shape": list(job.input_shape),
        "n_train": job.n_train,
        "n_validation": job.n_validation,
        "validation": job.recipe.data.validation,
        "validation_indices": job.validation_indices,
    }
    if job.source.reading is not None:
        data["reading"] = dict(job.source.reading)
    if job.initial_weights is not None:
        data["initial_weights"] = job.initial_weights
    environment = describe_environment(job.recipe.device, job.device)
    run = Run.create(None if out is None else Path(out), job.recipe, environment, data)
    if job.initial_weights is not None:
        run.commit(State(), training_tensors(job))  # from here on a resume does not need what they came from
    return run


def start_imported(job: Job, out: str | Path | None = None) -> Run:
    """A run that stands before its first step and gives the weights that `job` begins with, to be used as they are.

    Raises:
        UserError: as `start` does.
    """
    run = start(job, out)
    with run.locked():
        _publish(job, run, [])
    return run


def reopen(
    path: str | Path,
    epochs: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    source: Source | None = None,
) -> tuple[Job, Run]:
    """The job of an existing run, to go on with.

    `epochs` is the new total; `overrides` may set schedule, early_stopping, device and test_time_views; `source` is
    the run's data where that is open already.

    Raises:
        UserError: when the run or its data are damaged, or the plan cannot be changed in this way.
    """
    run = Run(path)
    recipe = _replanned(run, epochs, dict(overrides or {}))
    if "initial_weights" in run.data and run.load_state() is None:
        raise UserError(f"{run.path} was killed before it kept the weights it began with: train it again")
    if source is None:
        place = None if data_dir is None else Path(data_dir)
        source = reopen_source(run.data, place, size_pixels=recipe.input.size, fit=recipe.input.fit)
    job = prepare(recipe, source, resumed=run)
    check_same_data(run.path, run.data, job.source)
    if job.validation_indices != run.data["validation_indices"]:
        raise UserError(
            f"{run.path} validated on other pictures of the same data, as an earlier version of cifarlab cut them: to"
            " go on would train on some of them; train it again"
        )
    return job, run


def _replanned(run: Run, epochs: int | None, overrides: dict[str, Any]) -> Recipe:
    recipe = run.recipe
    free = ("schedule", "early_stopping", "device", "test_time_views")
    fixed = [name for name in overrides if name.split(".")[0] not in free]
    if "epochs" in overrides:
        raise UserError(f"epochs is not set by --set on resume: give --epochs {overrides['epochs']}")
    override(recipe, overrides)  # says which names and values are wrong
    if fixed:
        raise UserError(f"{', '.join(fixed)} cannot change on resume: only epochs, {one_of(free, 'and')} can")
    if epochs is not None:
        finished = len(run.metrics)
        if epochs < finished:
            raise UserError(
                f"--epochs {epochs} is less than the {finished} epochs that {run.path} has finished"
            )
        schedule_set = any(name.startswith("schedule.") for name in overrides)
        if epochs != recipe.epochs and tied_to_total(recipe.schedule) and not schedule_set:
            raise UserError(
                f"the schedule {recipe.schedule.name} is tied to the total of {recipe.epochs} epochs: another total"
                " would have had other rates from the start; set the schedule again, for example"
                f" --set schedule.name=constant, which goes on at the full rate {recipe.optimizer.learning_rate:g}"
            )
        overrides["epochs"] = epochs
    return override(recipe, overrides) if overrides else recipe


def fit(job: Job, run: Run, stop: Stop | None = None, log: Sequence[str] | None = None) -> Iterator[Event]:
    """Train `job` in `run` to the end of its recipe, from where the run stands.

    `log` names the writers beside TensorBoard (`mlflow`, `wandb`); None: those that the run has had before.

    Raises:
        DivergedError: at the first loss seen that is not finite; the last good epoch's weights are kept.
        Interrupted: after `stop` was set and everything was saved.
        UserError: when the run is in use or damaged, its disk is full, or a writer's library is missing.
    """
    names = list(run.writer_records) if log is None else log
    check_writers(names)
    with run.locked():
        state = _restore(job, run)
        if job.recipe != run.recipe:
            run.replan(job.recipe)
        run.set_divergence(None)
        finished = len(state.rows) >= job.recipe.epochs or stopped_early(state.rows, job.recipe)
        if not finished and (layers := cacheable_layers(job)):
            began = time.perf_counter()
            job = yield from _through_frozen_layers(job, run, layers, state, stop)
            state = replace(state, elapsed_seconds=state.elapsed_seconds + time.perf_counter() - began)
        # the last epoch again: a kill may have come before it was written
        with open_writers(run, names, first_epoch=max(1, len(state.rows))) as writers:
            yield from map(Notice, writers.write(state.rows))
            try:
                yield from _epochs(job, run, state, writers, stop)
            except DivergedError as error:
                run.set_divergence(str(error))
                raise
            finally:
                return_free_memory()
        if run.metrics:
            run.publish_curves()


def _through_frozen_layers(
    job: Job, run: Run, layers: int, state: State, stop: Stop | None
) -> Generator[Event, None, Job]:
    """The job that goes on from the outputs of the layers that never change."""
    events = with_features(job, layers)
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value
        if stop is not None and stop.is_set():
            raise _interrupted(run, state, job, stop.signal_number or signal.SIGINT)
        yield event


def _epochs(job: Job, run: Run, state: State, writers: Writers, stop: Stop | None) -> Iterator[Event]:
    recipe, pace = job.recipe, Pace(state.elapsed_seconds)
    batches = job.stream.from_step(state.step)
    drawn_at = -math.inf
    while len(state.rows) < recipe.epochs and not stopped_early(state.rows, recipe):
        freeze_for_epoch(recipe.finetune, job.model, len(state.rows))
        freeze_whitening_bias(job.model, len(state.rows))
        sums = Sums(state.partial)
        end = (len(state.rows) + 1) * job.steps_per_epoch
        for step in range(state.step, end):
            images, labels = next(batches)
            rate = learning_rate_at(job, state.rows, step)
            loss, logits = train_step(job, images, labels, step, rate)
            sums.add(loss, logits, labels)
            pace.step_done()
            stopping = stop is not None and stop.is_set()
            if stopping or pace.due_for_report():
                partial = sums.read(pace)
                _check_finite(job, run, partial.loss_sum, step, state.rows)
                now = State(step + 1, state.rows, partial, pace.elapsed_seconds)
                if stopping or pace.due_for_save():
                    run.commit(now, training_tensors(job))
                if stopping:
                    assert stop is not None
                    raise _interrupted(run, now, job, stop.signal_number or signal.SIGINT)
                yield _step_done(job, now, pace)
        row = _finished_row(job, run, sums.read(pace), state.rows, end, pace)
        state = State(step=end, rows=[*state.rows, row], elapsed_seconds=row["elapsed_seconds"])
        run.commit(state, training_tensors(job))
        _publish(job, run, state.rows)
        yield from map(Notice, writers.write(state.rows))
        if pace.elapsed_seconds - drawn_at > CURVES_SECONDS:
            run.publish_curves()
            drawn_at = pace.elapsed_seconds
        pace.epoch_done()
        is_best = best_epoch(state.rows, recipe) == row["epoch"]
        yield EpochDone(row, recipe.epochs, is_best, pace.seconds_left(job, end))


def train_step(job: Job, images: Tensor, labels: Tensor, step: int, rate: float) -> tuple[Tensor, Tensor]:
    """One step of the optimiser on prepared pictures float32 (B, 3, H, W): the mean loss, and the logits."""
    recipe = job.recipe
    _seed_dropout(job, step)
    set_learning_rate(job.optimizer, recipe.optimizer, rate, step)
    with autocast(job), own_kernels(job.device, wanted=recipe.device.winograd):
        logits = job.network(images)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # up from bfloat16, never down
    if job.class_weights is None:
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.loss.label_smoothing)
    else:  # over the number of pictures, not the sum of their weights, so that every picture counts as its class does
        each = F.cross_entropy(logits, labels, label_smoothing=recipe.loss.label_smoothing, reduction="none")
        loss = (each * job.class_weights[labels]).mean()
    if (difficulty := job.stream.difficulty) is not None:
        difficulty.note(F.cross_entropy(logits.detach(), labels, reduction="none"))
    if recipe.regularization.l2 > 0.0:
        loss = loss + l2_penalty(job.model, recipe.regularization)
    job.optimizer.zero_grad(set_to_none=True)
    (loss * len(labels) if recipe.loss.reduction == "sum" else loss).backward()
    clip_gradients(job.model, recipe.optimizer.clip_norm)
    job.optimizer.step()
    if job.average is not None:
        job.average.update_parameters(job.model)
    return loss.detach(), logits.detach()


def _seed_dropout(job: Job, step: int) -> None:
    if not job.has_dropout:
        return
    seed = _dropout_seeds(job.recipe.seed, step // SEEDS_AT_ONCE)[step % SEEDS_AT_ONCE]
    if job.device.type == "cpu":  # without a word to each kind of GPU, which takes a third of a millisecond
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@lru_cache(maxsize=2)
def _dropout_seeds(seed: int, block: int) -> list[int]:
    """Of SEEDS_AT_ONCE steps: one by one each takes ten times as long, with nothing of NumPy in the caches any more."""
    steps = range(block * SEEDS_AT_ONCE, (block + 1) * SEEDS_AT_ONCE)
    return [derived_seed(seed, DROPOUT, step) for step in steps]


def learning_rate_at(job: Job, rows: list[Row], step: int) -> float:
    """The learning rate of global step `step`, given the rows of the epochs finished before it."""
    recipe = job.recipe
    return recipe.optimizer.learning_rate * learning_rate_factor(
        recipe.schedule,
        step=step,
        steps_per_epoch=job.steps_per_epoch,
        epochs=recipe.epochs,
        validation_losses=[row["validation_loss"] for row in rows],
    )


def _finished_row(job: Job, run: Run, sums: Partial, rows: list[Row], step: int, pace: "Pace") -> Row:
    """Validate, and make the epoch's line of metrics."""
    _check_finite(job, run, sums.loss_sum, step - 1, rows)
    loss, accuracy = validate(job)
    weights = sum(weight.sum().item() for weight in job.weights.parameters())
    _check_finite(job, run, weights if loss is None else loss, step - 1, rows)
    return {
        "epoch": len(rows) + 1,
        "step": step,
        "train_loss": sums.loss_sum / sums.images,
        "train_accuracy": sums.correct / sums.images,
        "validation_loss": loss,
        "validation_accuracy": accuracy,
        "learning_rate": learning_rate_at(job, rows, step - 1),
        "images_per_second": round(sums.images / sums.seconds, 1),
        "elapsed_seconds": round(pace.elapsed_seconds, 3),
    }


def validate(job: Job) -> tuple[float | None, float | None]:
    """Mean loss and accuracy over the validation pictures; None without any.

    The loss has the L2 term, as Keras shows it, and no label smoothing: it is the cross-entropy with the true labels.
    """
    if job.validation is None:
        return None, None
    images, labels = job.validation
    logits = predict_logits(job.judged_network, job.stream.prepare, images)
    loss = F.cross_entropy(logits, labels)
    with torch.no_grad():
        loss = loss + l2_penalty(job.weights, job.recipe.regularization)
    return loss.item(), (logits.argmax(1) == labels).sum().item() / len(labels)


def predict_logits(model: nn.Module, prepare: Callable[[Tensor], Tensor], images: Images) -> Tensor:
    """float32 logits (N, classes) for uint8 (N, H, W, 3), or whatever `prepare` makes inputs of.

    In evaluation mode; each layer's own mode is put back.
    """
    training = [layer for layer in model.modules() if layer.training]
    model.eval()
    try:
        with torch.inference_mode():
            batches = images.split(judged_at_once(images.device))
            return torch.cat([model(prepare(batch.permute(0, 3, 1, 2))) for batch in batches])
    finally:
        for layer in training:
            layer.training = True


def judged_at_once(device: torch.device) -> int:
    """Pictures."""
    return JUDGED_AT_ONCE_BY_CPU if device.type == "cpu" else JUDGED_AT_ONCE


def _check_finite(job: Job, run: Run, loss: float, step: int, rows: list[Row]) -> None:
    if math.isfinite(loss):
        return
    rate, finished_epochs = learning_rate_at(job, rows, step), len(rows)
    kept = f"the weights of epoch {finished_epochs} are kept" if finished_epochs else "no epoch was finished"
    raise DivergedError(
        f"the loss is not finite by step {step + 1} (epoch {finished_epochs + 1}, learning rate {rate:.3g}); {kept} in"
        f" {run.path}; try --set optimizer.learning_rate={job.recipe.optimizer.learning_rate / 10:.3g}"
        " or --set optimizer.clip_norm=1"
    )


def _interrupted(run: Run, state: State, job: Job, signal_number: int) -> Interrupted:
    done = state.step / job.steps_per_epoch
    stopped = f"stopped after {done:.2f} of {job.recipe.epochs} epochs, saved"
    return Interrupted(f"{stopped}; go on with: {command('resume', run.path)}", signal_number)


def _step_done(job: Job, state: State, pace: "Pace") -> StepDone:
    partial = state.partial
    return StepDone(
        epoch=len(state.rows) + 1,
        step_in_epoch=state.step - len(state.rows) * job.steps_per_epoch,
        steps_in_epoch=job.steps_per_epoch,
        loss=partial.loss_sum / partial.images,
        accuracy=partial.correct / partial.images,
        images_per_second=partial.images / partial.seconds,
        seconds_left=pace.seconds_left(job, state.step),
    )


# What is saved, and how a training comes back


def training_tensors(job: Job) -> dict[str, Tensor]:
    parts = {"model": job.model.state_dict(), "optimizer": state_tensors(job.optimizer)}
    if job.average is not None:
        parts["average"] = job.average.state_dict()
    if job.stream.difficulty is not None:
        parts["difficulty"] = job.stream.difficulty.state()
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _restore(job: Job, run: Run) -> State:
    """Bring the job to where the run stands, and write again whatever a kill kept from being written."""
    stored = run.load_state()
    if stored is None:
        return State()
    state, tensors = stored
    run.forget_other_states(state)
    job.model.load_state_dict(_part(tensors, "model"))
    if job.average is not None:
        job.average.load_state_dict(_part(tensors, "average"))
    if job.stream.difficulty is not None:
        job.stream.difficulty.load_state(_part(tensors, "difficulty"))
    load_state_tensors(job.optimizer, _part(tensors, "optimizer"))
    if state.rows and state.partial.images == 0:
        _publish(job, run, state.rows)
    return state


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{part}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{part}.")
    }


def _publish(job: Job, run: Run, rows: list[Row]) -> None:
    header = {
        "recipe": job.recipe.name,
        "model": job.recipe.model.model_dump(mode="json"),
        "classes": list(job.source.classes),
        "input_shape": list(job.input_shape),
        "preparation": asdict(job.stream.preparation),
        "epoch": len(rows),
        "step": rows[-1]["step"] if rows else 0,
    }
    run.publish(rows, job.weights.state_dict(), header)


class Sums:
    """Loss and hits over an epoch's images. They stay on the device until they are read, so that no step waits for
    them, and those of many steps are judged together: one by one it is 0.1 ms of each (of `cnn-small`'s 5)."""

    def __init__(self, partial: Partial) -> None:
        self.partial, self.seconds_before = partial, partial.seconds
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []  # loss, logits and labels of each step
        self.judged: list[tuple[Tensor, Tensor, list[int]]] = []  # losses of steps, hits, images of each step

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.pending.append((loss, logits, labels))
        if len(self.pending) == STEPS_JUDGED_TOGETHER:
            self._judge()

    def _judge(self) -> None:
        losses, logits, labels = zip(*self.pending, strict=True)
        hits = (torch.cat(logits).argmax(1) == torch.cat(labels)).sum()
        self.judged.append((torch.stack(losses), hits, [len(part) for part in labels]))
        self.pending.clear()

    def read(self, pace: "Pace") -> Partial:
        """The sums so far. Reading waits for the device, and that is time of the steps."""
        if self.pending:
            self._judge()
        images, loss_sum, correct = self.partial.images, self.partial.loss_sum, self.partial.correct
        for losses, hits, sizes in self.judged:
            for loss, size in zip(losses.tolist(), sizes, strict=True):  # in this order, whenever it is read
                loss_sum += loss * size
            images, correct = images + sum(sizes), correct + int(hits.item())
        self.judged.clear()
        pace.stamp()
        self.partial = Partial(images, loss_sum, correct, self.seconds_before + pace.epoch_seconds)
        return self.partial


class Pace:
    """Clocks of one process's training."""

    def __init__(self, seconds_before: float) -> None:
        self.began = self.epoch_began = self.reported = self.saved = time.perf_counter()
        self.seconds_before = seconds_before
        self.steps, self.step_seconds, self.between_epochs_seconds = 0, 0.0, 0.0
        self.trained_until = self.began

    @property
    def elapsed_seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began

    @property
    def epoch_seconds(self) -> float:
        """Seconds of training, without validation and saving, in this epoch."""
        return self.trained_until - self.epoch_began

    def stamp(self) -> None:
        self.trained_until = time.perf_counter()

    def step_done(self) -> None:
        self.stamp()
        self.steps += 1

    def due_for_report(self) -> bool:
        due = self.trained_until - self.reported > REPORT_SECONDS
        if due:
            self.reported = self.trained_until
        return due

    def due_for_save(self) -> bool:
        due = self.trained_until - self.saved > SAVE_SECONDS
        if due:
            self.saved = self.trained_until
        return due

    def epoch_done(self) -> None:
        now = time.perf_counter()
        self.step_seconds += self.epoch_seconds
        self.between_epochs_seconds = now - self.trained_until
        self.epoch_began = self.trained_until = self.saved = now

    def seconds_left(self, job: Job, step: int) -> float:
        total_steps = job.recipe.epochs * job.steps_per_epoch
        per_step = (self.step_seconds + self.epoch_seconds) / max(self.steps, 1)
        epochs_left = job.recipe.epochs - step // job.steps_per_epoch
        return (total_steps - step) * per_step + epochs_left * self.between_epochs_seconds


# The public functions


def recipe_for(recipe: str | Recipe, data: str | Path | Source, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe that is meant, with `overrides`; by name, suited to the data as `for_own_pictures` says.

    Raises UserError for unknown names and unsuitable values.
    """
    chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if isinstance(recipe, str) and are_own_pictures(data):
        chosen = for_own_pictures(chosen, overrides)
    return override(chosen, overrides)


def train(
    recipe: str | Recipe,
    *,
    data: str | Path | Source = "cifar10",
    out: str | Path | None = None,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    init_from: str | Path | Run | None = None,
    freeze: str | Sequence[str] | None = None,
    log: Sequence[str] = (),
) -> Run:
    """Train a recipe, by name or as data, and return its run. Shows progress on a terminal and in a notebook.

    Args:
        recipe: a name (`cifarlab recipes` lists them) or a `Recipe`.
        data: a name such as `cifar10` or `demo`, the path of your own pictures, or an opened source.
        out: the run directory to make; by default `runs/<recipe>-s<seed>-<n>`.
        seed: of weights, data order, augmentation and dropout; the recipe's own `seed` is not used.
        overrides: recipe fields by dotted name, for example `{"optimizer.learning_rate": 0.01}`. With own pictures, a
            recipe by name whose source validated on the test set validates on training pictures, unless
            `data.validation` is among these.
        data_dir: the folder of CIFAR-10's batches, or its parent; beats `CIFARLAB_DATA` and the user's cache.
        init_from: a run to begin with the weights of, or `shipped`: those that come with the package; short for the
            field `finetune.init_from`.
        freeze: names or patterns of layers that stay as they are; short for the field `finetune.freeze`.
        log: where metrics go beside the run directory and TensorBoard: `mlflow`, `wandb`.

    Raises:
        UserError: for any mistake in these, before anything is written.
        DivergedError, Interrupted: as `fit` does.
    """
    fields: dict[str, Any] = {"seed": seed, **(overrides or {})}
    if init_from is not None:
        fields["finetune.init_from"] = str(init_from.path if isinstance(init_from, Run) else init_from)
    if freeze is not None:
        fields["finetune.freeze"] = freeze if isinstance(freeze, str) else list(freeze)
    chosen = recipe_for(recipe, data, fields)
    check_out(None if out is None else Path(out))
    check_writers(log)
    job = prepare(chosen, data, data_dir)
    return _follow(job, start(job, out), log)


def resume(
    run: str | Path | Run,
    *,
    epochs: int | None = None,
    data: Source | None = None,
    data_dir: str | Path | None = None,
    log: Sequence[str] | None = None,
) -> Run:
    """Go on with a run after any interruption, or beyond its planned end. `epochs` is the new total.

    `data` is the run's source again, which it needs where that was given in Python. `log` as for `train`; by default
    where the run was logged before.

    Raises:
        UserError, DivergedError, Interrupted: as `reopen` and `fit` do.
    """
    path = run.path if isinstance(run, Run) else run
    return _follow(*reopen(path, epochs, data_dir=data_dir, source=data), log)


def _follow(job: Job, run: Run, log: Sequence[str] | None) -> Run:
    console = Console(highlight=False)
    with stop_on_signals() as stop:
        follow(fit(job, run, stop, log), job.recipe, console)
    if in_notebook():
        show_curves(run.curves_path)
    return Run(run.path)
