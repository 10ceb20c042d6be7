"""Killed at any moment and resumed, a training ends with the same bytes as one that was never interrupted."""

import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cifarlab import Interrupted, Run, UserError, training
from cifarlab.recipe import Recipe, override
from cifarlab.training import EpochDone
from tests.tiny import RECIPE, tiny_source, use_source

KILLS = 20


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch, tiny_source)


def train_or_resume(out: Path, recipe: Recipe) -> None:
    """One life of a training: it starts, or goes on from wherever an earlier life was killed."""
    use_source(pytest.MonkeyPatch(), tiny_source)  # a process of its own knows nothing of the fixture
    if (out / "recipe.json").exists():
        job, run = training.reopen(out)
    else:
        job = training.prepare(recipe, "demo")
        run = training.start(job, out)
    for _ in training.fit(job, run):
        pass


def train_until_write(out: Path, recipe: Recipe, writes: int) -> None:
    """A life that is killed (`kill -9`) in the middle of its n-th write: the file half there, its name not yet."""
    whole_write, seen = os.write, 0

    def cut_off(descriptor: int, data: bytes) -> int:
        nonlocal seen
        seen += 1
        if seen == writes:
            whole_write(descriptor, bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return whole_write(descriptor, data)

    os.write = cut_off  # type: ignore[assignment]
    train_or_resume(out, recipe)


def exact(run: Run) -> dict[str, object]:
    """All that must be equal: the bytes of weights and state, the metrics but for their times."""
    timed = ("_seconds", "_per_second")
    files = sorted([*run.path.glob("weights-*.safetensors"), *run.path.glob("state-*.safetensors")])
    rows = [{name: value for name, value in row.items() if not name.endswith(timed)} for row in run.metrics]
    return {file.name: file.read_bytes() for file in files} | {"metrics": rows, "recipe": run.recipe}


def run_in(out: Path, recipe: Recipe) -> Run:
    train_or_resume(out, recipe)
    return Run(out)


def test_killed_twenty_times_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Twelve kills at random moments, eight in the middle of a write."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["cifarlab.training", "torch.utils.tensorboard", "tests.tiny", "cifarlab.figures"]
    )
    chance = random.Random(0)
    recipe = override(RECIPE, {"epochs": 24, "data.training_skips": [0.0, 0.3]})

    def life(target, *arguments) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=target, args=(tmp_path / "killed", recipe, *arguments))
        process.start()
        return process

    reference = context.Process(target=train_or_resume, args=(tmp_path / "whole", recipe))
    reference.start()
    reference.join()
    assert reference.exitcode == 0
    kills = 0
    while kills < KILLS:
        if kills % 5 in (1, 3):  # in the first two epochs of that life: each tensor is a write
            process = life(train_until_write, chance.randint(1, 300))
        else:
            process = life(train_or_resume)
            recipe_file = tmp_path / "killed" / "recipe.json"
            while process.is_alive() and not recipe_file.exists():
                time.sleep(0.01)
            process.join(chance.uniform(0.0, 1.2))
            process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        if process.exitcode == 0:
            break
        kills += 1
    assert kills == KILLS, "the training ended before it was killed often enough: give it more epochs"
    process = life(train_or_resume)
    process.join()
    assert process.exitcode == 0
    assert exact(Run(tmp_path / "killed")) == exact(Run(tmp_path / "whole"))
    assert not list((tmp_path / "killed").glob(".*.tmp"))


class Killed(BaseException):
    """Stands for a kill at one chosen place: nothing of ours catches it."""


@pytest.mark.parametrize("place", ["forget_other_states", "publish"])
def test_a_kill_right_after_a_commit_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = training.prepare(RECIPE, "demo")
    run = training.start(job, tmp_path / "killed")
    whole, calls = getattr(Run, place), 0

    def killed_the_second_time(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        whole(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Run, place, killed_the_second_time)
        with pytest.raises(Killed):
            list(training.fit(job, run))
    assert exact(run_in(run.path, RECIPE)) == exact(run_in(tmp_path / "whole", RECIPE))
    listed = {line.split("  ", 1)[1] for line in (run.path / "SHA256SUMS").read_text().splitlines()}
    assert {name for name in listed if not (run.path / name).exists()} == set()
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [1, 2, 3]


class StopAfter:
    """Asks to stop at the n-th time it is asked."""

    def __init__(self, steps: int) -> None:
        self.signal_number: int | None = None
        self.steps = steps

    def is_set(self) -> bool:
        self.steps -= 1
        if self.steps <= 0:
            self.signal_number = signal.SIGTERM
        return self.steps <= 0


@pytest.mark.parametrize("steps", [1, 5, 7, 8])
def test_a_signal_in_mid_epoch_saves_and_resumes_exactly(tmp_path: Path, steps: int) -> None:
    job = training.prepare(RECIPE, "demo")
    run = training.start(job, tmp_path / "stopped")
    with pytest.raises(Interrupted, match="cifarlab resume") as caught:
        list(training.fit(job, run, StopAfter(steps)))
    assert caught.value.exit_code == 143
    assert exact(run_in(run.path, RECIPE)) == exact(run_in(tmp_path / "whole", RECIPE))


@pytest.mark.parametrize(
    "schedule",
    [
        {"schedule.name": "constant"},
        {
            "schedule.name": "step",
            "schedule.epochs": [1],
            "schedule.factors": [0.1],
            "schedule.decay_per_step": 0.01,
        },
        {"schedule.name": "inverse-time", "schedule.decay_per_step": 0.01},
    ],
    ids=["constant", "step", "inverse-time"],
)
@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam", "adamw"])
def test_a_longer_plan_equals_one_made_at_the_start(tmp_path: Path, schedule: dict, optimizer: str) -> None:
    named = {} if optimizer == "sgd" else {"optimizer.name": optimizer}
    short = override(RECIPE, {**schedule, **named, "epochs": 1})
    run_in(tmp_path / "extended", short)
    list(training.fit(*training.reopen(tmp_path / "extended", epochs=2)))
    planned = run_in(tmp_path / "planned", override(short, {"epochs": 2}))
    assert exact(Run(tmp_path / "extended")) == exact(planned)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "linear"])
def test_schedules_tied_to_the_total_refuse_unless_set_again(tmp_path: Path, schedule: str) -> None:
    run = run_in(tmp_path / "run", override(RECIPE, {"schedule.name": schedule, "epochs": 1}))
    with pytest.raises(UserError, match=f"the schedule {schedule} is tied to the total of 1 epochs"):
        training.reopen(run.path, epochs=2)
    job, run = training.reopen(run.path, epochs=2, overrides={"schedule.name": "constant"})
    done = [event for event in training.fit(job, run) if isinstance(event, EpochDone)]
    assert [event.row["epoch"] for event in done] == [2]
    assert Run(run.path).recipe.schedule.name == "constant"


def test_resume_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", RECIPE)
    with pytest.raises(UserError, match="--epochs 2 is less than the 3 epochs"):
        training.reopen(run.path, epochs=2)
    with pytest.raises(UserError, match="batch_size cannot change on resume"):
        training.reopen(run.path, overrides={"batch_size": 8})
    with pytest.raises(UserError, match="there is no run at"):
        training.reopen(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a run"):
        training.reopen(tmp_path)


def test_resume_of_a_complete_run_changes_nothing(tmp_path: Path) -> None:
    before = exact(run_in(tmp_path / "run", RECIPE))
    assert list(training.fit(*training.reopen(tmp_path / "run"))) == []
    assert exact(Run(tmp_path / "run")) == before


def test_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(tmp_path / "run", RECIPE)
    use_source(monkeypatch, lambda *_, **__: tiny_source(images=290))
    with pytest.raises(UserError, match="was trained on other data"):
        training.reopen(run.path)


def test_two_trainings_in_one_run_are_refused(tmp_path: Path) -> None:
    job = training.prepare(RECIPE, "demo")
    run = training.start(job, tmp_path / "run")
    first = training.fit(job, run)
    next(first)
    with pytest.raises(UserError, match="another training is running in"):
        list(training.fit(*training.reopen(run.path)))
    first.close()
    assert run_in(run.path, RECIPE).is_complete


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    "damage", [flip_bit, cut_short, Path.unlink], ids=["bit-flipped", "cut-short", "missing"]
)
@pytest.mark.parametrize("pattern", ["state-*.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage, pattern: str) -> None:
    run = run_in(tmp_path / "run", RECIPE.model_copy(update={"epochs": 1}))
    (victim,) = run.path.glob(pattern)
    damage(victim)
    if victim.name == "state.json" and not victim.exists():
        with pytest.raises(UserError, match=r"state\.json is missing"):
            list(training.fit(*training.reopen(run.path)))
        return
    with pytest.raises(UserError, match=f"{victim.name}.* is (damaged|missing)"):
        list(training.fit(*training.reopen(run.path)))


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    one = run_in(tmp_path / "one", RECIPE.model_copy(update={"epochs": 1}))
    other = run_in(tmp_path / "other", override(RECIPE, {"epochs": 1, "optimizer.momentum": 0.5}))
    for file in [*other.path.glob("state*")]:
        (one.path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="belongs to another recipe"):
        list(training.fit(*training.reopen(one.path)))


def test_a_thread_may_train_too(tmp_path: Path) -> None:
    """Notebooks and services: signals are the main thread's alone, and training does without them."""
    thread = threading.Thread(target=run_in, args=(tmp_path / "run", RECIPE))
    thread.start()
    thread.join()
    assert Run(tmp_path / "run").is_complete


def test_looking_at_a_run_deletes_nothing_that_a_training_is_about_to_name(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", RECIPE.model_copy(update={"epochs": 1}))
    next_file = run.path / "state-000000999.safetensors"
    next_file.write_bytes(b"written, and not yet in state.json")
    assert run.load_state() is not None and next_file.exists()
    list(training.fit(*training.reopen(run.path)))  # under the lock: what a killed training left
    assert not next_file.exists()


def test_another_cut_of_the_same_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an earlier version took other pictures for near duplicates: nothing validated on is trained on."""
    run = run_in(tmp_path / "run", RECIPE)
    monkeypatch.setattr(
        "cifarlab.job.split_validation", lambda labels, *_, **__: (np.arange(9, len(labels)), np.arange(9))
    )
    with pytest.raises(UserError, match="validated on other pictures"):
        training.reopen(run.path)
