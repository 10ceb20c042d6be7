"""MLflow and Weights & Biases, the real libraries with a local store: every epoch once, whatever happens meanwhile."""

import importlib.util
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cifarlab import Run, UserError, training
from cifarlab.cli import main
from cifarlab.progress import follow
from cifarlab.training import EpochDone, Notice
from cifarlab.writers import check_writers
from tests.tiny import RECIPE, tiny_source, use_source


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch, tiny_source)


def stopped_after_one_epoch(out: Path, log: list[str]) -> Run:
    job = training.prepare(RECIPE, "demo")
    events = training.fit(job, training.start(job, out), log=log)
    next(event for event in events if isinstance(event, EpochDone))
    events.close()
    return Run(out)


def test_a_message_of_a_library_is_shown_as_it_is() -> None:
    shown = io.StringIO()
    follow([Notice("pip install mlflow[extras]")], RECIPE, Console(file=shown, width=80))
    assert shown.getvalue() == "note: pip install mlflow[extras]\n"


@pytest.mark.parametrize("kind", ["sqlite", "files"])
def test_mlflow_has_every_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}" if kind == "sqlite" else (tmp_path / "store").as_uri()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    run = stopped_after_one_epoch(tmp_path / "run", ["mlflow"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the run knows where its other half is
    resumed = training.resume(run.path)
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("cifarlab")
    assert experiment is not None
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "tiny/run"
    assert stored.data.params["optimizer.learning_rate"] == "0.02"
    assert stored.data.params["model.widths"] == "[8, 8]"
    for name in ("train_loss", "validation_accuracy", "learning_rate"):
        history = client.get_metric_history(stored.info.run_id, name)
        assert [(point.step, point.value) for point in history] == [
            (row["epoch"], row[name]) for row in resumed.metrics
        ]


def records(path: Path) -> Iterator[bytes]:
    """The records of a W&B file: LevelDB's log format (https://github.com/google/leveldb/blob/main/doc/log_format.md)."""
    content, position, whole = path.read_bytes(), 7, b""
    while position < len(content):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def test_wandb_has_every_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    run = stopped_after_one_epoch(tmp_path / "run", ["wandb"])
    resumed = training.resume(run.path)
    from wandb.proto import wandb_internal_pb2

    points: list[dict[str, Any]] = []
    names, settings = set(), {}
    for file in sorted((run.path / "wandb").glob("offline-run-*/*.wandb")):
        for content in records(file):
            record = wandb_internal_pb2.Record.FromString(content)
            if record.WhichOneof("record_type") == "run":
                names.add((record.run.run_id, record.run.project, record.run.display_name))
                settings |= {item.key: item.value_json for item in record.run.config.update}
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                points.append({item.key or item.nested_key[0]: float(item.value_json) for item in items})
    assert names == {(run.writer_record("wandb")["id"], "cifarlab", "tiny/run")}
    assert settings["optimizer.learning_rate"] == "0.02"
    points.sort(key=lambda point: point["epoch"])
    for name in ("epoch", "train_loss", "validation_accuracy", "learning_rate"):
        assert [point[name] for point in points] == [row[name] for row in resumed.metrics]


class Absent:
    """A store that is away for its first calls."""

    def __init__(self, calls: int) -> None:
        self.calls, self.epochs, self.outcome = calls, [], None

    def write(self, rows: list[dict[str, Any]]) -> None:
        self.calls -= 1
        if self.calls >= 0:
            raise ConnectionError("no route to host\nsecond line")
        self.epochs += [row["epoch"] for row in rows if row["epoch"] not in self.epochs]

    def close(self, outcome: str) -> None:
        self.outcome = outcome


def test_a_store_that_is_away_is_told_once_and_gets_all_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the weights are those of a training without it."""
    import cifarlab.writers as writers

    store = Absent(2)
    monkeypatch.setattr(writers, "MLflow", lambda run: store)
    monkeypatch.setattr(writers, "RETRY_SECONDS", 0.0)
    job = training.prepare(RECIPE, "demo")
    run = training.start(job, tmp_path / "run")
    events = list(training.fit(job, run, log=["mlflow"]))
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert notices == [
        "MLflow does not take the metrics (no route to host); training goes on, and it is tried again"
    ]
    assert store.epochs == [1, 2, 3]
    assert store.outcome == "finished"
    plain = training.train(RECIPE, data="demo", out=tmp_path / "plain")
    assert run.weights_path("last").read_bytes() == plain.weights_path("last").read_bytes()


def test_what_cannot_be_logged_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "demo", "--data", "demo", "--log", "mlfow"]) == 2
    assert "did you mean 'mlflow'?" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--log wandb needs a library: pip install 'cifarlab\[wandb\]'"):
        training.train("demo", data="demo", log=["wandb"])
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_wandb_without_a_login_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import wandb

    settings = wandb.Settings(mode="online", base_url="https://nowhere.test")
    monkeypatch.setattr(wandb, "setup", lambda: type("Session", (), {"settings": settings}))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="run `wandb login`, or set WANDB_MODE=offline"):
        check_writers(["wandb"])
