"""A search for settings: what a space may say, and that a search ends the same whatever stops it meanwhile."""

import dataclasses
import json
import multiprocessing
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cifarlab import Run, UserError, text, training, tuning
from cifarlab.cli import main
from cifarlab.errors import Interrupted
from cifarlab.recipe import override, parse_assignments
from cifarlab.recipes import get_recipe
from cifarlab.space import Choices, Range, choose_values, parse_space
from cifarlab.training import EpochDone
from cifarlab.tuning import Done, Search, check_search, run_search
from cifarlab.tuning_report import report_of, train_command
from tests.tiny import RECIPE, tiny_source, use_source

SMALL = override(
    RECIPE, {"epochs": 2, "model.widths": [4], "model.pool_dropout": [0.1], "augment.rotation": 0}
)
PASSWORD = "not-to-be-seen"
SPACE = {"optimizer": {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}, "nesterov": [True, False]}}


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch, tiny_source)


# The space


def mistakes(content: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse_space(content, RECIPE, "space.toml")
    return str(caught.value)


def test_every_mistake_in_a_space_is_told_at_once() -> None:
    told = mistakes(
        {
            "optimizer": {"learning_rat": [0.1], "momentum": {"low": 0.5, "high": 1.5}, "nesterov": []},
            "batch_size": {"low": 8, "high": 4},
            "augment": {"flip": {"low": 0.0, "high": 1.0, "log": True}},
            "model.name": ["vgg", "vg"],
            "seed": [1, 2],
            "epochs": [3],
        }
    )
    for part in (
        "did you mean 'optimizer.learning_rate'?", "optimizer.momentum should be less than 1", "1.5 given",
        "optimizer.nesterov has no choices", "batch_size: low should be below high",
        "augment.flip: low should be above 0", "did you mean 'vgg'?", "seed cannot be searched", "epochs cannot",
    ):  # fmt: skip
        assert part in told


def test_what_cannot_be_trained_together_is_refused() -> None:
    told = mistakes({"optimizer.nesterov": [True, False], "optimizer.momentum": [0.0, 0.9]})
    assert "optimizer.nesterov=true, optimizer.momentum=0.0 cannot be trained together" in told
    assert "nesterov needs a momentum above 0" in told


def test_ranges_know_whole_numbers_and_kinds_have_their_own_fields() -> None:
    content = {
        "optimizer": {"name": ["sgd", "adam"], "momentum": [0.5, 0.9], "beta_1": {"low": 0.8, "high": 0.95}},
        "batch_size": {"low": 16, "high": 64, "log": True},
        "augment.rotation": {"low": 1, "high": 20},
    }
    space = parse_space(content, RECIPE, "space.toml")
    assert space["batch_size"] == Range(16, 64, log=True, is_integer=True)
    assert space["augment.rotation"] == Range(1, 20)
    assert space["optimizer.momentum"] == Choices((0.5, 0.9))
    for kind, own, other in (("sgd", "momentum", "beta_1"), ("adam", "beta_1", "momentum")):
        values = choose_values(
            space,
            RECIPE,
            lambda name, dimension, kind=kind: kind if name == "optimizer.name" else dimension.ends[0],
        )
        assert f"optimizer.{own}" in values and f"optimizer.{other}" not in values


# The search


class Stop:
    signal_number: int | None = None

    def is_set(self) -> bool:
        return self.signal_number is not None


def searched(folder: Path, **settings: Any) -> Search:
    space = parse_space(SPACE, SMALL, "space.toml")
    chosen = {"trials": 6, "finalists": 2, "seeds": 2, "name": "tiny", "recipe": SMALL, **settings}
    return Search(space=space, source=tiny_source(), folder=folder, **chosen)


FEW = {"trials": 3, "finalists": 1, "seeds": 1}


def carry_out(folder: Path) -> dict[str, Any]:
    return run_search(searched(folder, **FEW), Stop(), lambda event: None, 1.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, dict[str, Any], list[Done]]:
    search, done = searched(tmp_path_factory.mktemp("tune") / "whole"), []
    report = run_search(search, Stop(), done.append, 1.0)
    return search, report, [event for event in done if isinstance(event, Done)]


def test_the_finalist_of_the_lowest_median_wins(whole: Any) -> None:
    search, report, done = whole
    assert [event.stage for event in done] == ["trial"] * 6 + ["finalist"] * 4
    complete = sorted(t["loss"] for t in report["trials"] if t["state"] == "complete")
    assert report["cost"]["pruned"] >= 1
    by_trial = {trial["number"]: trial for trial in report["trials"]}
    assert {by_trial[each["trial"]]["loss"] for each in report["finalists"]} == set(complete[:2])
    for each in report["finalists"]:
        for seed, loss in each["losses"].items():
            run = Run(search.folder / "finalists" / f"trial-{each['trial']:04d}" / f"seed-{seed}")
            assert run.recipe == override(SMALL, {**each["values"], "seed": seed})
            assert loss == pytest.approx(min(row["validation_loss"] for row in run.metrics))
        assert each["median_loss"] == pytest.approx(sum(each["losses"].values()) / 2)
    assert report["winner"]["median_loss"] == min(each["median_loss"] for each in report["finalists"])
    assert report["cost"]["images"] == 7 * 32 * (sum(t["epochs"] for t in report["trials"]) + 8)
    assert not list(search.folder.rglob("evaluation.json"))


def test_a_diverged_training_of_a_finalist_is_the_worst_in_accuracy_too(whole: Any) -> None:
    import optuna

    search, report, _ = whole
    winner = report["winner"]
    study, finals = optuna.create_study(), optuna.create_study()
    study.add_trial(
        optuna.trial.create_trial(
            value=1.0, user_attrs={"values": winner["values"], "origin": winner["trial"]}
        )
    )
    good, bad = winner["losses"]
    for seed in (good, 3):
        finals.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"task": (0, seed)}))
    diverged = {"task": (0, bad), "diverged": True}
    finals.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, user_attrs=diverged))
    (found,) = report_of(dataclasses.replace(search, seeds=3), study, finals)["finalists"]
    assert winner["accuracies"][bad] is not None
    assert found["losses"][bad] is None and found["accuracies"][bad] is None


def test_a_finalist_of_an_earlier_search_with_fewer_seeds_does_not_win_by_luck(whole: Any) -> None:
    import optuna

    study, finals = optuna.create_study(), optuna.create_study()
    for number in range(2):
        study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"values": {"batch_size": number}}))
    for task, loss in (((0, 1), 0.1), ((1, 1), 0.5), ((1, 2), 0.6)):
        finals.add_trial(optuna.trial.create_trial(value=loss, user_attrs={"task": task}))
    report = report_of(dataclasses.replace(whole[0], seeds=2), study, finals)
    assert [each["trial"] for each in report["finalists"]] == [1]
    assert report["cost"]["finalist_trainings"] == 3
    one = report_of(dataclasses.replace(whole[0], seeds=1), study, finals)["finalists"]
    assert [(each["trial"], each["losses"]) for each in one] == [(0, {1: 0.1}), (1, {1: 0.5})]


def test_trials_are_kept_as_records(whole: Any) -> None:
    search, report, _ = whole
    run = Run(search.folder / "trials" / "0000")
    assert run.is_record and run.recipe == override(SMALL, report["trials"][0]["values"])
    assert not list(run.path.glob("*.safetensors"))


def test_killed_and_started_again_it_ends_the_same(tmp_path: Path, whole: Any) -> None:
    """`kill -9` in the middle of a training; the trial in hand is gone on with at once."""
    process = multiprocessing.get_context("fork").Process(target=carry_out, args=(tmp_path / "killed",))
    process.start()
    state = tmp_path / "killed" / "trials" / "0001" / "state.json"
    while not state.exists():
        assert process.is_alive()
        time.sleep(0.005)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    report = carry_out(tmp_path / "killed")
    facts = [
        [(trial["state"], trial["loss"], trial["values"]) for trial in found["trials"]]
        for found in (report, whole[1])
    ]
    assert sorted(facts[0], key=str) == sorted(facts[1][:3], key=str)
    assert len(report["finalists"]) == 1 and len(report["winner"]["losses"]) == 1


def test_stopped_it_says_that_the_same_command_goes_on(tmp_path: Path) -> None:
    stop, seen = Stop(), []

    def show(event: Any) -> None:
        seen.append(event)
        stop.signal_number = signal.SIGINT

    with pytest.raises(Interrupted, match="the same command goes on") as caught:
        run_search(searched(tmp_path / "x", **{**FEW, "trials": 1}), stop, show, 1.0)
    assert caught.value.exit_code == 130
    report = run_search(searched(tmp_path / "x", **{**FEW, "trials": 1}), Stop(), seen.append, 1.0)
    assert report["cost"]["trials"] == 1


@pytest.mark.parametrize(
    "failure", [UserError("the disk is full"), KeyError("a mistake")], ids=["disk", "mistake"]
)
def test_what_ends_the_search_leaves_the_trial_to_be_gone_on_with(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = tuning.fit

    def fails_after_an_epoch(*arguments: Any, **options: Any) -> Iterator[Any]:
        for event in fit(*arguments, **options):
            yield event
            if isinstance(event, EpochDone):
                raise failure

    monkeypatch.setattr(tuning, "fit", fails_after_an_epoch)
    seen: list[Any] = []
    with pytest.raises(type(failure)):
        run_search(searched(tmp_path / "x", **FEW), Stop(), seen.append, 1.0)
    left = Run(tmp_path / "x" / "trials" / "0000").load_state()
    assert left is not None and len(left[0].rows) == 1
    assert not [event for event in seen if isinstance(event, Done)]


def test_a_mistake_of_ours_is_not_taken_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_args: Any, **_options: Any) -> None:
        raise ValueError("a mistake")

    monkeypatch.setattr(tuning, "fit", fails)
    with pytest.raises(ValueError, match="a mistake"):
        carry_out(tmp_path / "x")


def test_two_processes_share_one_search(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=carry_out, args=(tmp_path / "shared",)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    report = carry_out(tmp_path / "shared")
    assert len(report["trials"]) == 3
    rates = [trial["values"]["optimizer.learning_rate"] for trial in report["trials"]]
    assert len(set(rates)) == len(rates)
    assert [len(each["losses"]) for each in report["finalists"]] == [1]


# Several machines: a folder each, and one storage


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of our own on a free port, with one user and a password; its address."""
    where = shutil.which("initdb") or max(glob("/usr/lib/postgresql/*/bin/initdb"), default=None)
    if where is None or find_spec("psycopg") is None:
        pytest.skip("PostgreSQL is not there: apt install postgresql, pip install 'cifarlab[postgresql]'")
    programs = Path(where).parent
    folder = Path(tempfile.mkdtemp(prefix="cifarlab-pg-"))  # short: a socket's path may have 107 characters
    user: dict[str, Any] = (
        {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    )  # it refuses root
    if user:
        shutil.chown(folder, "nobody")
    (folder / "password").write_text(PASSWORD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet: dict[str, Any] = {
        "check": True,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        **user,
    }
    made = [
        "-D",
        folder / "data",
        "-U",
        "lab",
        "-A",
        "scram-sha-256",
        f"--pwfile={folder / 'password'}",
        "-N",
    ]
    subprocess.run([programs / "initdb", *made, "--locale=C", "-E", "UTF8"], cwd=folder, **quiet)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    control = [programs / "pg_ctl", "-D", folder / "data", "-w"]
    subprocess.run([*control, "-o", options, "-l", folder / "log", "start"], cwd=folder, **quiet)
    yield f"postgresql://lab:{PASSWORD}@127.0.0.1:{port}/postgres"
    subprocess.run([*control, "-m", "immediate", "stop"], cwd=folder, **quiet)
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared.sqlite'}"
    import psycopg

    server = request.getfixturevalue("postgresql")
    name = f"studies_{secrets.token_hex(4)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("/postgres", f"/{name}")


def machine(folder: Path, storage: str, **settings: Any) -> multiprocessing.Process:
    """A process at work on the study `shared`, in a folder of its own."""
    search = searched(folder, **{**FEW, "storage": storage, "name": "shared", **settings})
    work = (search, Stop(), lambda event: None, 1.0)
    process = multiprocessing.get_context("fork").Process(target=run_search, args=work)
    process.start()
    return process


def test_a_lost_machine_loses_and_doubles_nothing(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kill -9` of one of three in mid-training: the others take its trial over when its heartbeat has stopped."""
    import optuna

    monkeypatch.setattr(tuning, "HEARTBEAT_SECONDS", 1)
    many = {"trials": 4, "finalists": 2, "seeds": 2}
    lost = machine(tmp_path / "lost", storage, **many)
    while not (begun := list((tmp_path / "lost").glob("trials/*/state.json"))):
        assert lost.is_alive()
        time.sleep(0.005)
    os.kill(lost.pid or 0, signal.SIGKILL)
    lost.join()
    others = [machine(tmp_path / name, storage, **many) for name in ("one", "two")]
    for other in others:
        other.join(120)
        assert other.exitcode == 0
    opened = optuna.storages.RDBStorage(storage.replace("postgresql:", "postgresql+psycopg:"))
    trials, finals = (
        optuna.load_study(study_name=name, storage=opened).get_trials()
        for name in ("shared", "shared-finalists")
    )
    opened.engine.dispose()
    ended = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert len(ended) == 4 and len({tuning._origin(trial) for trial in ended}) == 4
    taken_over = [trial for trial in trials if "origin" in trial.user_attrs]
    assert {tuning._origin(trial) for trial in taken_over} == {int(path.parent.name) for path in begun}
    assert not any(trial.state.name in ("RUNNING", "WAITING") for trial in (*trials, *finals))
    tasks = [tuple(final.user_attrs["task"]) for final in finals if final.state.name == "COMPLETE"]
    assert len(tasks) == len(set(tasks)) == 4
    documents = [path.read_text(errors="replace") for path in tmp_path.rglob("*.json")]
    assert documents and not any(PASSWORD in document for document in documents)


def test_two_that_begin_at_once_make_the_tables_once(tmp_path: Path, storage: str) -> None:
    both = [machine(tmp_path / name, storage, trials=1) for name in ("one", "two")]
    for each in both:
        each.join(120)
        assert each.exitcode == 0


def test_a_storage_that_cannot_be_used_is_told_in_a_line_without_its_password(
    tmp_path: Path, postgresql: str
) -> None:
    at, nobody = postgresql.rpartition("@")[2], PASSWORD[::-1]
    for url, reason in (
        (postgresql.replace(PASSWORD, nobody), 'password authentication failed for user "lab"'),
        (f"postgresql://lab:{nobody}@127.0.0.1:1/postgres", "Connection refused"),
        (f"postgres://lab:{PASSWORD}@{at.replace('/postgres', '/none')}", 'database "none" does not exist'),
    ):
        with pytest.raises(UserError, match=f"the storage cannot be used: .*{reason}") as caught:
            run_search(searched(tmp_path / "x", storage=url), Stop(), lambda event: None, 1.0)
        told = str(caught.value)
        assert "\n" not in told and PASSWORD not in told and nobody not in told


def test_a_missing_driver_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "find_spec", lambda name: None if name == "psycopg" else object())
    with pytest.raises(UserError, match=r"pip install 'cifarlab\[postgresql\]'"):
        check_search(searched(tmp_path, storage="postgresql://lab@db/studies"))


def test_a_password_is_kept_out_of_what_a_run_keeps() -> None:
    for given, kept in (
        ("postgresql+psycopg://lab:x:y@db:5432/s", "postgresql+psycopg://lab@db:5432/s"),
        ("--storage=postgresql://lab:s3@db/s", "--storage=postgresql://lab@db/s"),
        ("postgresql://db/s?user=lab&password=s3&a=1", "postgresql://db/s?user=lab&password=&a=1"),
        ("https://example.org/a:b@c", "https://example.org/a:b@c"),
    ):
        assert text.without_password(given) == kept


def test_a_folder_of_another_search_is_refused(whole: Any) -> None:
    search, _, _ = whole
    other = searched(search.folder, recipe=override(SMALL, {"optimizer.momentum": 0.5}))
    with pytest.raises(UserError, match="is of another recipe, space or data: give another --out"):
        run_search(other, Stop(), lambda event: None, 1.0)


@pytest.mark.parametrize("validation", ["test", "none"])
def test_nothing_is_chosen_on_the_test_set(tmp_path: Path, validation: str) -> None:
    with pytest.raises(UserError, match="add --set data.validation=stratified"):
        check_search(searched(tmp_path, recipe=override(SMALL, {"data.validation": validation})))


def test_the_command_of_the_winner_gives_its_recipe() -> None:
    settings = {
        "model.widths": [4, 8],
        "optimizer.name": "adam",
        "optimizer.learning_rate": 0.0123,
        "ema.decay": None,
    }
    words = shlex.split(train_command("demo", settings, ["--data", "demo"]))
    assignments = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert override(get_recipe("demo"), parse_assignments(assignments)) == override(
        get_recipe("demo"), settings
    )


def test_tune_prints_and_writes_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cifarlab.cli.tune as command

    monkeypatch.setattr(command, "open_source", lambda *_, **__: tiny_source())
    monkeypatch.chdir(tmp_path)
    Path("space.toml").write_text("batch_size = [32, 48]\n")
    small = ["--set", "model.widths=[4]", "--set", "data.validation_images=50", "--set", "device.threads=1"]
    options = [
        "--space",
        "space.toml",
        "--trials",
        "2",
        "--finalists",
        "1",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--json",
    ]
    assert main(["tune", "demo", "--data", "demo", *small, *options]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["cost"]["trials"] == 2 and report["command"].startswith(
        "cifarlab train demo --data demo --set "
    )
    assert json.loads(Path("runs/tune-demo/tune.json").read_text()) == report
    assert {"tune.md", "tune.png", "study.sqlite"} <= {path.name for path in Path("runs/tune-demo").iterdir()}
    assert "expected: at most" in printed.err and "The test set was not opened." in printed.err


# The range test


def test_a_range_test_leaves_no_trace_on_the_training_after_it(tmp_path: Path) -> None:
    import torch

    from cifarlab.range_test import range_test

    plain = training.prepare(SMALL, "demo")
    list(training.fit(plain, training.start(plain, tmp_path / "plain")))
    job = training.prepare(SMALL, "demo")
    state = torch.random.get_rng_state()
    test = range_test(job, steps=60)
    assert torch.equal(torch.random.get_rng_state(), state)
    list(training.fit(job, training.start(job, tmp_path / "after")))
    weights = [Run(tmp_path / name).weights_path("last").read_bytes() for name in ("plain", "after")]
    assert weights[0] == weights[1]
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "after"}
    assert test.rates[0] == pytest.approx(1e-6) and test.rates == sorted(test.rates)
    assert test.diverged or len(test.rates) == 60


def test_the_suggestion_lies_a_tenth_below_the_lowest_loss() -> None:
    from cifarlab.range_test import RangeTest

    rates = [10 ** (-6 + step / 10) for step in range(61)]
    losses = [2.3 if rate < 1e-4 else 2.3 - (step - 20) / 20 for step, rate in enumerate(rates)]
    losses[50:] = [losses[49] + step for step in range(11)]
    test = RangeTest(rates, losses, losses, diverged=True)
    assert test.suggestion == pytest.approx(rates[49] / 10, rel=0.05)
    assert "blows up at 1" in test.reasoning and "is lowest at 0.079" in test.reasoning
    noisy = [2.6, 2.2, *losses[2:]]  # of single batches, before anything is learned
    assert RangeTest(rates, noisy, noisy, diverged=True).steepest > 15
    few = RangeTest(rates[:20], [2.6, 2.0] + [2.3] * 18, [2.6, 2.0] + [2.3] * 18, diverged=False)
    assert few.suggestion is None
    flat = RangeTest(rates, [2.3] * 61, [2.3] * 61, diverged=False)
    assert flat.suggestion is None and "does not fall" in flat.reasoning


def test_lr_find_draws_and_suggests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cifarlab.cli.tune as command

    monkeypatch.setattr(command, "open_source", lambda *_, **__: tiny_source())
    monkeypatch.chdir(tmp_path)
    small = ["--set", "model.widths=[4]", "--set", "data.validation_images=50", "--set", "device.threads=1"]
    assert main(["lr-find", "demo", "--data", "demo", *small, "--steps", "80", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["figure"] == "lr-find-demo.png"
    assert [path.name for path in tmp_path.iterdir()] == ["lr-find-demo.png"]
    assert content["suggestion"] is None or 1e-6 < content["suggestion"] < 1.0
    assert main(["lr-find", "demo", "--data", "demo", "--figure", "x.gif"]) == 2
