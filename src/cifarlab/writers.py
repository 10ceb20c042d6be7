"""Where the metrics of a training go beside its run directory: TensorBoard, MLflow, Weights & Biases.

A writer has one duty: to bring its store up to the rows of all finished epochs, each once. So a resumed training, an
epoch that a kill kept from being sent, and a server that was away for a while are one and the same case.

MLflow and Weights & Biases take their settings from their own environment variables (MLFLOW_TRACKING_URI, WANDB_MODE
and so on), as in every other program.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from cifarlab import text
from cifarlab.errors import Interrupted, UserError, nearest, one_of
from cifarlab.recipe import flat
from cifarlab.run import METRICS, Row, Run

if TYPE_CHECKING:
    from mlflow import MlflowClient

Outcome = Literal["finished", "failed", "interrupted"]
LIBRARIES = {"mlflow": "mlflow", "wandb": "wandb"}  # the name of a writer, and what it needs installed
PROJECT = "cifarlab"
RETRY_SECONDS = 60.0  # after a failure, before the next attempt; twice as long after each further one
PARAMETERS_A_REQUEST = 100  # MLflow takes no more at once


class Writer(Protocol):
    def write(self, rows: Sequence[Row]) -> None:
        """Send those of `rows`, one for each finished epoch, that the store does not have."""
        ...

    def close(self, outcome: Outcome) -> None: ...


def check_writers(names: Sequence[str]) -> None:
    """See, before a training starts, that it can be logged where it shall be.

    Raises:
        UserError: for an unknown name, a library that is not installed, or Weights & Biases without a login.
    """
    for name in names:
        if name not in LIBRARIES:
            known = one_of(f"'{known}'" for known in LIBRARIES)
            hint = nearest(name, LIBRARIES) or "; TensorBoard and CSV are always written"
            raise UserError(f"--log takes {known}, '{name}' given{hint}")
        if importlib.util.find_spec(LIBRARIES[name]) is None:
            raise UserError(f"--log {name} needs a library: pip install 'cifarlab[{name}]'")
    if "wandb" in names:
        _check_wandb_login()


@contextlib.contextmanager
def open_writers(run: Run, names: Sequence[str], first_epoch: int) -> Iterator[Writers]:
    """The writers of a training: TensorBoard, and those of `names`. `first_epoch` is the one to write first there."""
    openers: dict[str, Callable[[], Writer]] = {"TensorBoard": lambda: TensorBoard(run, first_epoch)}
    if "mlflow" in names:
        openers["MLflow"] = lambda: MLflow(run)
    if "wandb" in names:
        openers["Weights & Biases"] = lambda: WandB(run)
    writers = Writers([_Careful(name, opener) for name, opener in openers.items()])
    outcome: Outcome = "failed"
    try:
        yield writers
        outcome = "finished"
    except (Interrupted, KeyboardInterrupt, GeneratorExit):
        outcome = "interrupted"
        raise
    finally:
        writers.close(outcome)


class Writers:
    """All writers of one training."""

    def __init__(self, writers: list[_Careful]) -> None:
        self.writers = writers
        self.rows: Sequence[Row] = ()

    def write(self, rows: Sequence[Row]) -> list[str]:
        """Bring every store up to `rows`. Returns what a person should know: which store fails, once."""
        self.rows = rows
        return [notice for writer in self.writers if (notice := writer.write(rows))]

    def close(self, outcome: Outcome) -> None:
        for writer in self.writers:
            writer.close(self.rows, outcome)


class _Careful:
    """A writer that may fail without stopping the training. It is opened when needed, after a failure again."""

    def __init__(self, name: str, open_writer: Callable[[], Writer]) -> None:
        self.name, self.open_writer = name, open_writer
        self.writer: Writer | None = None
        self.failures, self.next_attempt = 0, 0.0

    def write(self, rows: Sequence[Row]) -> str | None:
        if time.monotonic() < self.next_attempt:
            return None
        try:
            self._write(rows)
        except Exception as error:  # whatever a library or its server does: the training is worth more
            self.writer = None
            self.next_attempt = time.monotonic() + RETRY_SECONDS * 2**self.failures
            self.failures += 1
            return self._notice(error) if self.failures == 1 else None
        return None

    def close(self, rows: Sequence[Row], outcome: Outcome) -> None:
        with contextlib.suppress(Exception):
            self._write(rows)
            assert self.writer is not None
            self.writer.close(outcome)

    def _write(self, rows: Sequence[Row]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' own, of each other
            if self.writer is None:
                self.writer = self.open_writer()
            self.writer.write(rows)

    def _notice(self, error: Exception) -> str:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return (
            f"{self.name} does not take the metrics ({reason[:200]}); training goes on, and it is tried again"
        )


class TensorBoard:
    """Events in the run's own folder. Those from `first_epoch` on are written anew."""

    def __init__(self, run: Run, first_epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.events = SummaryWriter(str(run.tensorboard_path), purge_step=first_epoch)
        self.next_epoch = first_epoch

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows[self.next_epoch - 1 :]:
            for name, value in _figures(row).items():
                part, _, quantity = name.partition("_")
                tag = f"{quantity}/{part}" if part in ("train", "validation") else name
                self.events.add_scalar(tag, value, row["epoch"])
        self.events.flush()
        self.next_epoch = len(rows) + 1

    def close(self, outcome: Outcome) -> None:
        self.events.close()


class MLflow:
    """A run on the tracking server, or in the local store, that MLFLOW_TRACKING_URI names.

    The experiment is MLFLOW_EXPERIMENT_NAME, by default `cifarlab`. Which epochs are there is asked of the store.
    """

    def __init__(self, run: Run) -> None:
        # MLflow would try for minutes by default, and a training would wait for it
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        import mlflow

        kept = run.writer_record("mlflow")
        uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() or not kept else kept["tracking_uri"]
        self.client: MlflowClient = mlflow.MlflowClient(tracking_uri=uri)
        if kept:
            self.run_id = kept["run_id"]
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            self.run_id = self._create(run)
            run.set_writer_record(
                "mlflow", {"tracking_uri": text.without_password(uri), "run_id": self.run_id}
            )
        history = self.client.get_metric_history(self.run_id, "train_loss")
        self.epochs_there = {metric.step for metric in history}

    def _create(self, run: Run) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name)
        tags = {"cifarlab.run": str(run.path.resolve()), "cifarlab.recipe": run.recipe.name}
        created = self.client.create_run(number, run_name=_run_name(run), tags=tags).info.run_id
        parameters = [Param(name, str(value)) for name, value in _settings(run).items()]
        for first in range(0, len(parameters), PARAMETERS_A_REQUEST):
            self.client.log_batch(created, params=parameters[first : first + PARAMETERS_A_REQUEST])
        return created

    def write(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        for row in rows:
            if row["epoch"] not in self.epochs_there:
                now_ms, epoch = int(time.time() * 1000), row["epoch"]
                metrics = [Metric(name, value, now_ms, epoch) for name, value in _figures(row).items()]
                self.client.log_batch(self.run_id, metrics=metrics)
                self.epochs_there.add(epoch)

    def close(self, outcome: Outcome) -> None:
        status = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}[outcome]
        self.client.set_terminated(self.run_id, status)


class WandB:
    """A run of the project WANDB_PROJECT, by default `cifarlab`; with WANDB_MODE=offline in the run's own folder.

    An offline store cannot be asked what it has, so the run directory keeps which epoch was sent last.
    """

    def __init__(self, run: Run) -> None:
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "20")  # seconds, which a training waits at most
        os.environ.setdefault("WANDB_SILENT", "true")  # the screen is the training's own
        import wandb

        self.run = run
        kept = run.writer_record("wandb")
        self.kept = kept or {"id": secrets.token_hex(4), "epochs": 0}
        settings = wandb.Settings(console="off", disable_git=True, finish_timeout=60.0)
        self.wandb_run = wandb.init(
            id=self.kept["id"],
            name=_run_name(run),
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", str(run.path)),
            config=None if kept else _settings(run),
            resume="allow" if wandb.setup().settings.mode == "online" else None,
            reinit="create_new",
            settings=settings,
        )
        self.wandb_run.define_metric("*", step_metric="epoch")
        run.set_writer_record("wandb", self.kept)

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows[self.kept["epochs"] :]:
            self.wandb_run.log({"epoch": row["epoch"], **_figures(row)}, step=row["epoch"])
            self.kept = self.kept | {"epochs": row["epoch"]}
            self.run.set_writer_record("wandb", self.kept)

    def close(self, outcome: Outcome) -> None:
        self.wandb_run.finish(exit_code=0 if outcome == "finished" else 1)


def _check_wandb_login() -> None:
    """wandb itself would ask for a key in the middle of the training's screen."""
    import wandb
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    known = settings.mode != "online" or settings.api_key or settings.identity_token_file
    if not known and get_netrc_auth(settings.base_url) is None:
        raise UserError("--log wandb has no login: run `wandb login`, or set WANDB_MODE=offline")


def _figures(row: Row) -> dict[str, float]:
    """What is drawn against epochs: every metric that has a value, but the counters."""
    return {name: row[name] for name in METRICS[2:-1] if row[name] is not None}


def _settings(run: Run) -> dict[str, Any]:
    """The recipe's fields by dotted name, and the data."""
    words = {"notes", "network", "published"}
    data = {f"data.{name}": run.data[name] for name in ("name", "checksum", "n_train", "n_validation")}
    return flat(run.recipe.model_dump(mode="json", exclude=words)) | data


def _run_name(run: Run) -> str:
    """`vgg3-s0-1`; `vgg3/seed-0` where the folder's own name does not tell the recipe."""
    name, recipe = run.path.resolve().name, run.recipe.name
    return name if name.startswith(recipe) else f"{recipe}/{name}"
