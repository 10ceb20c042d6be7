"""A search for good settings: Optuna chooses, trains and prunes; the best are trained again with other seeds.

A trial is an ordinary run in `DIR/trials/`, kept as a record without weights; finalists are whole runs in
`DIR/finalists/trial-<n>/seed-<s>`. What decides is the cross-entropy on the validation pictures, never the test set.
The study itself, with all that the report needs, lies in Optuna's storage, so that several processes, on one machine or
on many, work on it together and any of them can be killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import statistics
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

from cifarlab import text
from cifarlab.data import Source
from cifarlab.data.loader import derived_seed
from cifarlab.errors import DivergedError, Interrupted, UserError
from cifarlab.files import opened_for_update
from cifarlab.job import Job, prepare
from cifarlab.optim import l2_penalty
from cifarlab.recipe import Recipe, override
from cifarlab.run import Row, Run, is_run
from cifarlab.space import Choices, Dimension, Space, choose_values
from cifarlab.training import EpochDone, Event, StepDone, Stop, fit, reopen, start

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial
    from sqlalchemy import Engine

Stage = Literal["trial", "finalist"]
Pruner = Literal["median", "hyperband", "none"]
HEARTBEAT_SECONDS = 60  # a trial without a sign of life for three of them is taken over by another process
WAIT_SECONDS = 2.0  # between two looks whether the trials of other processes are done
SIGNIFICANT_DIGITS = 4  # of values drawn from a range: what a person can read and type
ATTEMPTS = 5  # to make the tables of a new storage
RETRIES = 5  # of a trial whose process died
POSTGRESQL = re.compile(r"^postgres(ql)?://")  # without a driver's name: ours is psycopg


@dataclass(frozen=True)
class Search:
    """What is searched, and how."""

    recipe: Recipe
    space: Space
    source: Source
    folder: Path
    trials: int
    finalists: int = 3
    seeds: int = 3
    pruner: Pruner = "median"
    storage: str | None = None
    name: str = ""

    @property
    def url(self) -> str:
        """What SQLAlchemy opens. It may hold a password: neither printed nor written anywhere."""
        if self.storage is None:
            return f"sqlite:///{self.folder.resolve() / 'study.sqlite'}"
        return POSTGRESQL.sub("postgresql+psycopg://", self.storage)

    @property
    def finalist_seeds(self) -> range:
        """That the trials have not used."""
        return range(self.recipe.seed + 1, self.recipe.seed + 1 + self.seeds)

    @property
    def digest(self) -> str:
        """Of all that trials must share to be compared."""
        content = {
            "recipe": self.recipe.model_dump(mode="json", exclude={"device", "source", "notes", "published"}),
            "space": {name: repr(dimension) for name, dimension in sorted(self.space.items())},
            "data": self.source.checksum,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Progress:
    """A training of the search as it goes: trial `number`; `done` of `of` trials (or finalists' trainings) are done."""

    stage: Stage
    number: int
    of: int
    done: int
    values: Mapping[str, Any]
    epoch: int
    seconds_left: float


@dataclass(frozen=True)
class Done:
    """A trial or a finalist's training that ended here. `loss` is None where it diverged or failed."""

    stage: Stage
    number: int
    of: int
    state: str
    values: Mapping[str, Any]
    seed: int
    loss: float | None
    epochs: int
    elapsed_seconds: float
    error: str | None


Show = Callable[[Progress | Done | str], None]


@dataclass
class Worker:
    """This process at work on a search."""

    search: Search
    study: optuna.Study
    finals: optuna.Study
    engine: Engine  # of the storage
    stop: Stop
    show: Show
    expected_seconds: float
    identity: str


def check_search(search: Search) -> None:
    """See, before anything is written, that the search makes sense.

    Raises:
        UserError: without Optuna, without validation pictures of its own, or with numbers out of range.
    """
    if find_spec("optuna") is None:
        raise UserError("tune needs a library: pip install 'cifarlab[tune]'")
    if search.url.startswith("postgresql+psycopg:") and find_spec("psycopg") is None:
        raise UserError("a PostgreSQL storage needs a library: pip install 'cifarlab[postgresql]'")
    validation = search.recipe.data.validation
    if not search.recipe.data.may_choose:
        reasons = {"none": "has no validation pictures", "test": "validates on the test set"}
        reason = reasons.get(validation, f"is judged on its {validation}")
        raise UserError(
            f"{search.recipe.name} {reason}, and nothing is chosen by that: add --set data.validation=stratified"
        )
    for name, number, least in (
        ("--trials", search.trials, 1), ("--finalists", search.finalists, 1), ("--seeds", search.seeds, 1),
    ):  # fmt: skip
        if number < least:
            raise UserError(f"{name} should be {least} or more, {number} given")


def run_search(search: Search, stop: Stop, show: Show, expected_seconds: float) -> dict[str, Any]:
    """Search to the end, from wherever the study stands, and return the report (`cifarlab.tuning_report`).

    `expected_seconds` is what one whole training of the recipe takes, for the time left.

    Raises:
        Interrupted: after `stop` was set; the trial in hand is saved, and the same call goes on.
        UserError: when the folder or storage holds another search, or cannot be used.
    """
    from cifarlab.tuning_report import report_of

    search.folder.mkdir(parents=True, exist_ok=True)
    with _registered(search.folder) as identity, _quiet_optuna():
        study, finals, engine = _open_studies(search)
        worker = Worker(search, study, finals, engine, stop, show, expected_seconds, identity)
        try:
            _work(worker, study, lambda trial: _search_trial(worker, trial), lambda: _trials_missing(worker))
            _plan_finalists(worker)
            _work(worker, finals, lambda trial: _finalist(worker, trial), lambda: 0)
            return report_of(search, study, finals)
        finally:
            engine.dispose()


# Studies and processes


def _open_studies(search: Search) -> tuple[optuna.Study, optuna.Study, Engine]:
    """The study of the trials and that of the finalists, made where they are not there, and their database."""
    import optuna
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        storage = _open_storage(search)
        study, finals = (
            optuna.create_study(
                storage=storage,
                study_name=name,
                sampler=_by_number(search.recipe.seed),
                pruner=_pruner(search) if name == search.name else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            for name in (search.name, f"{search.name}-finalists")
        )
    except (ArgumentError, SQLAlchemyError, ImportError) as error:
        raise UserError(f"the storage cannot be used: {_reason(error)}") from None
    there = study.user_attrs.get("digest")
    if there is None:
        study.set_user_attr("digest", search.digest)
    elif there != search.digest:
        raise UserError(
            f"the study '{search.name}' there is of another recipe, space or data: give another"
            f" {'--study' if search.storage else '--out'}"
        )
    return study, finals, storage.engine


def _open_storage(search: Search) -> optuna.storages.RDBStorage:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    is_sqlite = search.url.startswith("sqlite")
    engine = {"connect_args": {"timeout": 60}} if is_sqlite else {"pool_pre_ping": True}
    if search.url.startswith("postgresql+psycopg:"):
        engine |= {"connect_args": {"connect_timeout": 10}}  # seconds
    for attempt in range(1, ATTEMPTS + 1):
        try:
            storage = optuna.storages.RDBStorage(
                search.url,
                engine_kwargs=engine,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=3 * HEARTBEAT_SECONDS,
            )
            break
        except SQLAlchemyError as error:
            same_moment = any(word in str(error) for word in ("already exists", "duplicate key", "UNIQUE"))
            if not same_moment or attempt == ATTEMPTS:
                raise
            time.sleep(1.0)  # another process makes the same tables
    if is_sqlite:
        _one_writer_at_a_time(storage.engine)
    return storage


def _reason(error: Exception) -> str:
    """The first line of what the database says, without its wrapping, and never with a password."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.without_password(re.sub(r"^\(\S+\) ", "", line.strip()))


def _one_writer_at_a_time(engine: Engine) -> None:
    """Let every transaction of SQLite begin with its lock: else two processes could take the same waiting trial.

    As SQLAlchemy's documentation has it ("Serializable isolation / Savepoints / Transactional DDL" of pysqlite).
    """
    from sqlalchemy import event

    def without_own_begin(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", without_own_begin)
    event.listen(engine, "begin", begin)
    engine.dispose()  # connections from before


@contextlib.contextmanager
def _alone(worker: Worker) -> Iterator[None]:
    """One process at a time, of all that share the storage: by a lock file beside SQLite's, else by a row of the
    database that nothing else locks. Either is given back when the process dies."""
    from sqlalchemy import text as sql

    if worker.engine.dialect.name == "sqlite":
        with opened_for_update(Path(f"{worker.engine.url.database}.lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    row = sql("SELECT study_direction_id FROM study_directions WHERE study_id = :study FOR UPDATE")
    with worker.engine.begin() as connection:
        connection.execute(row, {"study": worker.study._study_id})
        yield


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    import optuna

    epochs = search.recipe.epochs
    if search.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, epochs // 9), max_resource=epochs)
    if search.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, epochs // 10))


def _by_number(seed: int) -> optuna.samplers.BaseSampler:
    """TPE (Optuna's default), its random state set by how many trials came before: the same search again after a kill,
    and other draws in every process."""
    import optuna

    class ByNumber(optuna.samplers.BaseSampler):
        def __init__(self) -> None:
            self.tpe = optuna.samplers.TPESampler()

        def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
            before = sum(other.number < trial.number for other in counted(study))
            self.tpe = optuna.samplers.TPESampler(seed=derived_seed(seed, 0, before) % 2**32)

        def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
            return self.tpe.infer_relative_search_space(study, trial)

        def sample_relative(
            self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]
        ) -> dict[str, Any]:
            return self.tpe.sample_relative(study, trial, search_space)

        def sample_independent(
            self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
        ) -> Any:
            return self.tpe.sample_independent(study, trial, param_name, param_distribution)

    return ByNumber()


@contextlib.contextmanager
def _registered(folder: Path) -> Iterator[str]:
    """This process's name, with a lock that is held as long as it lives: so others see at once that it was killed."""
    locks = folder / "workers"
    locks.mkdir(exist_ok=True)
    identity = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    with (locks / identity).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield identity
        finally:
            (locks / identity).unlink(missing_ok=True)


def _is_dead(folder: Path, identity: str | None) -> bool:
    """True for a process that was at work in this folder and ended without saying so."""
    path = folder / "workers" / (identity or "?")
    try:
        with path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _origin(trial: FrozenTrial | Trial) -> int:
    """The number that a trial had when it was first begun: its folder's."""
    return trial.user_attrs.get("origin", trial.number)


def _take_over(worker: Worker, study: optuna.Study) -> None:
    """Put back into the queue what was cut off: by a stop, or because its process died. Processes of this folder are
    known to be dead at once, others after their heartbeat stopped or where it never came. A run directory that is here
    is gone on with.

    What is missing is seen from the trials themselves, so that a process killed in the middle of this loses nothing.
    """
    import optuna
    from optuna.trial import TrialState

    optuna.storages.fail_stale_trials(study)
    with _alone(worker):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _is_dead(worker.search.folder, trial.user_attrs.get("worker")) or _never_began(trial):
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
                    study.tell(trial.number, state=TrialState.FAIL)
        latest = {_origin(trial): trial for trial in study.get_trials(deepcopy=False)}
        for origin, trial in latest.items():
            retries = trial.user_attrs.get("retries", 0) + (not trial.user_attrs.get("stopped", False))
            if _is_cut_off(trial) and retries <= RETRIES:
                kept = {
                    name: trial.user_attrs[name] for name in ("task", "losses") if name in trial.user_attrs
                }
                again = {**kept, "origin": origin, "retries": retries}
                study.enqueue_trial(trial.params, user_attrs=again)


def _never_began(trial: FrozenTrial) -> bool:
    """True for a trial whose process died between taking it and its first heartbeat."""
    taken = trial.datetime_start
    late = taken is not None and (datetime.now() - taken).total_seconds() > 3 * HEARTBEAT_SECONDS
    return late and "worker" not in trial.user_attrs


def _is_cut_off(trial: FrozenTrial) -> bool:
    """True for a trial that neither ended nor failed by its own fault."""
    return trial.state.name == "FAIL" and not {"error", "not needed"} & trial.user_attrs.keys()


def _work(
    worker: Worker, study: optuna.Study, train: Callable[[Trial], float], missing: Callable[[], int]
) -> None:
    """Train until nothing is missing or waiting, and no other process is at it any more."""
    from optuna.trial import TrialState

    told = False
    while True:
        if worker.stop.is_set():
            raise _stopped(worker)
        _take_over(worker, study)
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
        if TrialState.WAITING in states or missing() > 0:
            _train_one(worker, study, train)
        elif TrialState.RUNNING not in states:
            return
        else:
            if not told:
                worker.show("waiting for the trainings of other processes")
            told = True
            time.sleep(WAIT_SECONDS)


def _train_one(worker: Worker, study: optuna.Study, train: Callable[[Trial], float]) -> None:
    number, of_training = -1, None

    def objective(trial: Trial) -> float:
        nonlocal number, of_training
        number = trial.number
        trial.set_user_attr("worker", worker.identity)
        try:
            return train(trial)
        except (Interrupted, UserError):
            trial.set_user_attr("stopped", True)
            raise
        except ValueError as error:
            of_training = error
            raise

    try:
        study.optimize(objective, n_trials=1, catch=(_CannotTrain, _NotNeeded))
    except Interrupted:
        _take_over(worker, study)
        raise _stopped(worker) from None
    except ValueError as error:  # Optuna's, of a trial that ended meanwhile
        if error is of_training or number < 0 or not _is_cut_off(study.get_trials(deepcopy=False)[number]):
            raise
        worker.show("this process was held up for so long that another has taken over its training")


def _stopped(worker: Worker) -> Interrupted:
    number = worker.stop.signal_number or 2
    return Interrupted(f"the search in {worker.search.folder} is saved; the same command goes on", number)


# Trials


class _CannotTrain(Exception):
    """A combination that cannot be trained here (too little memory, a batch of one): the search goes on."""


class _NotNeeded(Exception):
    """Another process was faster: there are enough trials, or nothing waits any more."""


def _refuse(trial: Trial) -> NoReturn:
    trial.set_user_attr("not needed", True)
    raise _NotNeeded


def _trials_missing(worker: Worker) -> int:
    return worker.search.trials - len(counted(worker.study))


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were finished, failed for good, or are at work: not those that a later one goes on with."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state.name != "FAIL" or "error" in trial.user_attrs]


def _search_trial(worker: Worker, trial: Trial) -> float:
    import optuna

    search = worker.search
    before = sum(other.number < trial.number for other in counted(worker.study))
    if "origin" not in trial.user_attrs and before >= search.trials:
        _refuse(trial)
    values = choose_values(
        search.space, search.recipe, lambda name, dimension: _suggest(trial, name, dimension)
    )
    trial.set_user_attr("values", values)
    recipe = override(search.recipe, values)
    path = search.folder / "trials" / f"{_origin(trial):04d}"

    def after_epoch(losses: list[float]) -> None:
        trial.report(losses[-1], len(losses))
        if len(losses) < recipe.epochs and trial.should_prune():
            raise optuna.TrialPruned

    for epoch, loss in enumerate(trial.user_attrs.get("losses", []), start=1):
        trial.report(loss, epoch)
    return _train(worker, trial, "trial", _origin(trial), recipe, path, values, after_epoch)


def _suggest(trial: Trial, name: str, dimension: Dimension) -> Any:
    if isinstance(dimension, Choices):
        by_label = {_label(value): value for value in dimension.values}
        return by_label[trial.suggest_categorical(name, list(by_label))]
    if dimension.is_integer:
        return trial.suggest_int(name, int(dimension.low), int(dimension.high), log=dimension.log)
    drawn = trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
    return min(max(float(f"{drawn:.{SIGNIFICANT_DIGITS}g}"), dimension.low), dimension.high)


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _train(
    worker: Worker,
    trial: Trial,
    stage: Stage,
    number: int,
    recipe: Recipe,
    path: Path,
    values: Mapping[str, Any],
    after_epoch: Callable[[list[float]], None],
) -> float:
    """Train one run to its end, or until `after_epoch` prunes it; its loss is that of the weights `evaluate` takes."""
    import optuna

    state, error, loss = "cut off", None, None  # until it is known how it ended
    losses: list[float] = []
    try:
        job, run, losses = _begin(recipe, path, worker.search.source, trial.user_attrs.get("losses", []))
        events = fit(job, run, worker.stop, log=())
        with contextlib.closing(cast("Generator[Event]", events)):
            for event in events:
                if isinstance(event, EpochDone):
                    losses.append(_cross_entropy(job, event.row))
                    trial.set_user_attr("losses", losses)
                    after_epoch(losses)
                if isinstance(event, EpochDone | StepDone):
                    worker.show(_progress(worker, stage, number, values, len(losses)))
        state, loss = "complete", min(losses) if recipe.weights == "best" else losses[-1]
        return loss
    except optuna.TrialPruned:
        state, loss = "pruned", min(losses)
        raise
    except DivergedError as diverged:
        state, error = "diverged", str(diverged)
        trial.set_user_attr("diverged", True)
        raise optuna.TrialPruned from None
    except (RuntimeError, MemoryError, _CannotTrain) as failed:
        state, error = "failed", (str(failed) or type(failed).__name__).splitlines()[0]
        trial.set_user_attr("error", error)
        raise _CannotTrain from None
    finally:
        rows = Run(path).metrics if is_run(path) else []
        seconds = rows[-1]["elapsed_seconds"] if rows else 0.0
        trial.set_user_attr("elapsed_seconds", seconds)
        trial.set_user_attr("images", _images(rows, recipe, path))
        if state != "cut off":
            if stage == "trial" and is_run(path):
                Run(path).keep_record_only()
            of = worker.search.trials if stage == "trial" else _n_finals(worker)
            worker.show(
                Done(stage, number, of, state, values, recipe.seed, loss, len(losses), seconds, error)
            )


def _begin(
    recipe: Recipe, path: Path, source: Source, losses: Sequence[float]
) -> tuple[Job, Run, list[float]]:
    """Go on with the run that a killed process left at `path`, or begin anew where it cannot be gone on with."""
    if is_run(path) and Run(path).recipe == recipe and not Run(path).is_record:
        committed = Run(path).load_state()
        rows = committed[0].rows if committed else []
        if recipe.regularization.l2 == 0.0:  # else the term is known only of the epochs that were reported
            losses = [row["validation_loss"] for row in rows]
        if len(rows) == len(losses):
            return *reopen(path, source=source), list(losses)
    if path.exists():
        shutil.rmtree(path)  # our own: DIR/trials or DIR/finalists
    try:
        job = prepare(recipe, source)
    except UserError as error:
        raise _CannotTrain(str(error)) from None
    return job, start(job, path), []


def _cross_entropy(job: Job, row: Row) -> float:
    """The validation loss without the L2 term, so that trials with different L2 can be compared."""
    penalty = 0.0
    if job.recipe.regularization.l2 > 0.0:
        penalty = float(l2_penalty(job.weights, job.recipe.regularization).item())
    return row["validation_loss"] - penalty


def _images(rows: Sequence[Row], recipe: Recipe, path: Path) -> int:
    """Training pictures that went through the network."""
    if not rows:
        return 0
    return min(rows[-1]["step"] * recipe.batch_size, rows[-1]["epoch"] * Run(path).data["n_train"])


def _progress(worker: Worker, stage: Stage, number: int, values: Mapping[str, Any], epoch: int) -> Progress:
    search = worker.search
    finished = [each for each in counted(worker.study) if each.state.is_finished()]
    seconds = [each.user_attrs.get("elapsed_seconds", 0.0) for each in finished]
    mean = statistics.fmean(seconds) if seconds else worker.expected_seconds
    finals = [each for each in worker.finals.get_trials(deepcopy=False) if each.state.is_finished()]
    left = max(0, _n_finals(worker) - len(finals)) * worker.expected_seconds
    done = len(finals)
    if stage == "trial":
        done = len(finished)
        left += max(0, search.trials - done) * mean
    of = search.trials if stage == "trial" else _n_finals(worker)
    return Progress(stage, number, of, done, values, epoch, left)


# Finalists


def best_trials(study: optuna.Study, n: int) -> list[FrozenTrial]:
    """The `n` finished trials of the lowest loss, each of other values."""
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    chosen: dict[str, FrozenTrial] = {}
    for trial in sorted(finished, key=lambda trial: (trial.value, trial.number)):
        chosen.setdefault(json.dumps(trial.user_attrs["values"], sort_keys=True), trial)
    return list(chosen.values())[:n]


def _n_finals(worker: Worker) -> int:
    return worker.search.finalists * worker.search.seeds


def _plan_finalists(worker: Worker) -> None:
    """Queue the trainings of the finalists with seeds that the search has not used: once for each size of search."""
    search = worker.search
    size = [search.trials, search.finalists, search.seeds]
    with _alone(worker):
        if worker.finals.user_attrs.get("planned_for") == size:
            return  # by another process, which may have seen one trial fewer
        candidates = best_trials(worker.study, search.finalists)
        if not candidates:
            raise UserError(
                "no trial was finished: there is nothing to choose from; try a space of smaller rates"
            )
        trials = worker.finals.get_trials(deepcopy=False)
        planned = {tuple(trial.user_attrs.get("task", ())) for trial in trials}
        for seed in search.finalist_seeds:
            for trial in candidates:
                task = (trial.number, seed)
                if task not in planned:
                    worker.finals.enqueue_trial({}, user_attrs={"task": task})
        worker.finals.set_user_attr("planned_for", size)


def _finalist(worker: Worker, trial: Trial) -> float:
    search = worker.search
    if "task" not in trial.user_attrs:
        _refuse(trial)
    number, seed = trial.user_attrs["task"]
    candidate = worker.study.get_trials(deepcopy=False)[number]
    values = candidate.user_attrs["values"]
    recipe = override(search.recipe, {**values, "seed": seed})
    path = search.folder / "finalists" / f"trial-{_origin(candidate):04d}" / f"seed-{seed}"
    return _train(worker, trial, "finalist", _origin(candidate), recipe, path, values, lambda losses: None)
