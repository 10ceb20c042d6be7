"""The training loop, through its public surface: what it learns, records, refuses and stops at."""

import csv
import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from cifarlab import DivergedError, Run, UserError, training
from cifarlab import job as job_module
from cifarlab.cost import estimate
from cifarlab.data import open_source
from cifarlab.data.loader import DROPOUT, derived_seed
from cifarlab.recipe import Data, override
from cifarlab.recipes import get_recipe
from cifarlab.run import METRICS, best_epoch, stopped_early
from cifarlab.training import EpochDone, StepDone
from tests.tiny import RECIPE, tiny_source, use_source


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch, tiny_source)


def trained(out: Path, overrides: dict[str, Any] | None = None) -> Run:
    return training.train(RECIPE, data="demo", out=out, overrides=overrides or {})


PLAIN = {
    "optimizer.name": "adam", "optimizer.learning_rate": 0.003, "model.batch_norm": False,
    "model.pool_dropout": [], "model.dense_dropout": 0.0, "augment.shift": 0, "augment.rotation": 0, "augment.flip": 0,
    "ema.decay": None, "data.validation": "none", "data.steps_per_epoch": "ceil",
}  # fmt: skip


def test_it_learns_its_pictures_by_heart(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {**PLAIN, "epochs": 30})
    assert run.metrics[0]["train_accuracy"] < 0.3
    assert run.metrics[-1]["train_accuracy"] > 0.9
    assert run.metrics[-1]["validation_loss"] is None


def test_a_run_explains_itself(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    files = {str(file.relative_to(run.path)) for file in run.path.rglob("*") if file.is_file()}
    assert {
        "recipe.json", "environment.json", "data.json", "metrics.jsonl", "metrics.csv", "weights-last.safetensors",
        "weights-best.safetensors", "state.json", "state-000000021.safetensors", "SHA256SUMS",
        "figures/learning-curves.png",
    } <= files  # fmt: skip
    assert any(file.startswith("tensorboard/events") for file in files)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [tuple(row) for row in rows] == [METRICS] * 3
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 7), (2, 14), (3, 21)]
    with (run.path / "metrics.csv").open() as file:
        assert [float(row["train_loss"]) for row in csv.DictReader(file)] == [
            row["train_loss"] for row in rows
        ]
    checked = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"], cwd=run.path, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
    with safe_open(run.weights_path("best"), "pt") as weights:
        header = json.loads(weights.metadata()["cifarlab"])
    assert header["classes"] == list(run.classes)
    assert header["preparation"]["std"] == [255.0] * 3
    assert header["epoch"] == run.best_epoch == best_epoch(rows, RECIPE)
    assert run.data["checksum"] == tiny_source().checksum
    assert (run.data["n_train"], run.data["n_validation"]) == (240, 60)
    assert {"torch", "cifarlab", "numpy"} <= set(run.environment["versions"])


def test_the_saved_weights_are_those_that_were_validated(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    train = tiny_source().load("train")
    held_out = np.array(run.data["validation_indices"])
    for weights, row in (("last", run.metrics[-1]), ("best", run.metrics[run.best_epoch - 1])):
        preparation = run.load_preparation(weights)
        logits = training.predict_logits(
            run.load_model(weights), preparation, torch.from_numpy(train.images[held_out])
        )
        right = (logits.argmax(1).numpy() == train.labels[held_out]).mean()
        assert right == pytest.approx(row["validation_accuracy"])


def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    one, again = trained(tmp_path / "one"), trained(tmp_path / "again")
    other = training.train(RECIPE, data="demo", out=tmp_path / "other", seed=1)
    content = [run.weights_path("last").read_bytes() for run in (one, again, other)]
    assert content[0] == content[1] != content[2]
    assert one.data["validation_indices"] == other.data["validation_indices"]


def test_training_figures_are_running_means_with_dropout_on(tmp_path: Path) -> None:
    """With a rate too small to learn anything, the mean over the epoch is that of the first weights."""
    job = training.prepare(override(RECIPE, {**PLAIN, "epochs": 1, "optimizer.learning_rate": 1e-12}), "demo")
    images, labels = zip(*itertools.islice(job.stream.from_step(0), job.steps_per_epoch), strict=True)
    with torch.no_grad():
        logits = job.model(torch.cat(images))
    expected = torch.nn.functional.cross_entropy(logits, torch.cat(labels)).item()
    run = training.start(job, tmp_path / "run")
    list(training.fit(job, run))
    assert run.metrics[0]["train_loss"] == pytest.approx(expected, rel=1e-5)
    hits = (logits.argmax(1) == torch.cat(labels)).double().mean().item()
    assert run.metrics[0]["train_accuracy"] == pytest.approx(hits)


def test_l2_is_in_the_loss_that_is_trained_and_shown(tmp_path: Path) -> None:
    small = {**PLAIN, "epochs": 1, "optimizer.learning_rate": 1e-12, "data.validation": "last"}
    plain = trained(tmp_path / "plain", small).metrics[0]
    l2 = trained(tmp_path / "l2", {**small, "regularization.l2": 0.01}).metrics[0]
    job = training.prepare(override(RECIPE, small), "demo")
    kernels = [weight for weight in job.model.parameters() if weight.ndim > 1][
        :-1
    ]  # hidden: all but the output's
    penalty = 0.01 * sum(weight.square().sum().item() for weight in kernels)
    assert l2["train_loss"] - plain["train_loss"] == pytest.approx(penalty, rel=1e-4)
    assert l2["validation_loss"] - plain["validation_loss"] == pytest.approx(penalty, rel=1e-4)


@pytest.mark.parametrize(("rounding", "steps"), [("ceil", 8), ("floor", 7)])
def test_steps_of_an_epoch(rounding: str, steps: int) -> None:
    assert (
        training.prepare(override(RECIPE, {"data.steps_per_epoch": rounding}), "demo").steps_per_epoch
        == steps
    )


def test_t1_has_782_steps_an_epoch_or_781_with_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, steps in (("vgg1", 782), ("vgg3-aug", 781)):
        job = training.prepare(get_recipe(name), "demo")
        monkeypatch.setattr(type(job), "n_train", 50_000)
        assert job.steps_per_epoch == steps
        monkeypatch.undo()
        use_source(monkeypatch, tiny_source)


def test_validation_on_the_test_set_keeps_no_best_weights(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"data.validation": "test", "epochs": 1})
    assert (run.data["n_train"], run.data["n_validation"]) == (300, 300)
    assert run.best_epoch is None and run.default_weights == "last"
    assert not run.weights_path("best").exists()
    with pytest.raises(UserError, match="keeps no best weights"):
        run.load_weights("best")


def test_the_test_set_is_not_read_by_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def open_without_test(*_: object, **__: object) -> Any:
        source = tiny_source()

        def read(split: str) -> Any:
            assert split == "train", "training opened the test set"
            return source.read(split)

        return type(source)(source.name, source.location, source.classes, source.checksum, read)

    use_source(monkeypatch, open_without_test)
    trained(tmp_path / "run", {"epochs": 1})


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    explosive = {**PLAIN, "optimizer.name": "sgd", "optimizer.learning_rate": 1e12, "epochs": 5}
    with pytest.raises(DivergedError) as caught:
        trained(tmp_path / "run", explosive)
    assert caught.value.exit_code == 3
    for part in (
        "step ",
        "epoch 1",
        "learning rate 1e+12",
        "no epoch was finished",
        "optimizer.learning_rate=1e+11",
    ):
        assert part in str(caught.value)


def test_the_last_good_weights_are_kept_when_it_diverges_later(tmp_path: Path) -> None:
    schedule = {"schedule.name": "step", "schedule.epochs": [1], "schedule.factors": [1e12]}
    late = {**PLAIN, **schedule, "optimizer.name": "sgd", "optimizer.learning_rate": 0.001, "epochs": 3}
    with pytest.raises(DivergedError, match=r"epoch 2.*the weights of epoch 1 are kept"):
        trained(tmp_path / "run", late)
    tensors, header = Run(tmp_path / "run").load_weights("last")
    assert header["epoch"] == 1
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())


def test_early_stopping() -> None:
    recipe = override(RECIPE, {"early_stopping.patience_epochs": 2, "early_stopping.min_delta": 0.1})
    rows = [{"epoch": n, "validation_loss": loss} for n, loss in enumerate([2.0, 1.0, 0.95, 1.2], start=1)]
    assert [stopped_early(rows[:n], recipe) for n in range(5)] == [False, False, False, False, True]
    assert best_epoch(rows, recipe) == 3
    assert not stopped_early(rows, RECIPE)


def test_early_stopping_ends_a_run(tmp_path: Path) -> None:
    still = {
        "optimizer.learning_rate": 1e-12,
        "early_stopping.patience_epochs": 2,
        "early_stopping.min_delta": 0.5,
    }
    run = trained(tmp_path / "run", {**still, "epochs": 9})
    assert len(run.metrics) == 3 and run.is_complete


def test_events_tell_progress_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    job = training.prepare(override(RECIPE, {"epochs": 2}), "demo")
    events = list(training.fit(job, training.start(job, tmp_path / "run")))
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [(event.epoch, event.step_in_epoch) for event in steps] == [
        (e, s) for e in (1, 2) for s in range(1, 8)
    ]
    assert all(event.steps_in_epoch == 7 and event.seconds_left >= 0 for event in steps)
    assert [event.row["epoch"] for event in events if isinstance(event, EpochDone)] == [1, 2]
    assert events[-1].seconds_left == 0.0


def test_an_estimate_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = training.prepare(RECIPE, "demo")
    before = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    state = torch.random.get_rng_state()
    expected = estimate(job)
    assert all(torch.equal(before[name], tensor) for name, tensor in job.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not list(tmp_path.iterdir())
    assert expected.elapsed_seconds == pytest.approx(expected.seconds_per_epoch * 3)
    assert expected.memory_bytes > 10**7
    run = training.start(job, tmp_path / "run")
    list(training.fit(job, run))
    written = sum(file.stat().st_size for file in run.path.glob("*.*") if file.name != "environment.json")
    assert expected.disk_bytes == pytest.approx(written, rel=0.25)


def test_default_names_count_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = training.prepare(RECIPE, "demo")
    assert [str(training.start(job).path) for _ in range(2)] == ["runs/tiny-s0-1", "runs/tiny-s0-2"]


def test_out_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    job = training.prepare(RECIPE, "demo")
    run = training.start(job, tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for out, expected in (
        (run.path, "already holds a run"),
        (tmp_path / "full", "is not empty"),
        (tmp_path / "full" / "thesis.txt", "is a file"),
        (tmp_path / "full" / "thesis.txt" / "run", "cannot be written"),
        (Path("/proc/run"), "cannot be written"),
    ):
        with pytest.raises(UserError, match=expected):
            training.start(job, out)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("header", [b"__metadata__", b'"optimizer.'], ids=["weights", "state"])
def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: bytes
) -> None:
    """Full once, behind the header of a file, where its first tensor should be."""
    import os

    job = training.prepare(override(RECIPE, {"epochs": 2}), "demo")
    run = training.start(job, tmp_path / "run")
    events = training.fit(job, run)
    next(event for event in events if isinstance(event, EpochDone))
    before = run.weights_path("last").read_bytes()

    whole_write, last_written = os.write, b""

    def no_space_behind_the_header(descriptor: int, data: memoryview) -> int:
        nonlocal last_written
        if header in last_written:
            last_written = b""
            raise OSError(28, "No space left on device")
        last_written = bytes(data)
        return whole_write(descriptor, data)

    with monkeypatch.context() as full:
        full.setattr(os, "write", no_space_behind_the_header)
        with pytest.raises(UserError, match="cannot write .*No space left on device"):
            list(events)
    assert run.weights_path("last").read_bytes() == before
    assert not list(run.path.glob(".*.tmp"))
    run.weights_path("last").write_bytes(before[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged"):
        run.load_weights("last")
    list(training.fit(*training.reopen(run.path)))
    assert run.is_complete


@pytest.mark.parametrize("batch_size", [1, 239])
def test_a_batch_of_one_with_batch_norm_is_refused(batch_size: int) -> None:
    with pytest.raises(UserError, match="makes a batch of one of 240 training pictures"):
        training.prepare(override(RECIPE, {"batch_size": batch_size}), "demo")


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UserError, match="device.name is cuda, and this machine"):
        training.prepare(override(RECIPE, {"device.name": "cuda"}), "demo")


@pytest.mark.parametrize(
    "overrides",
    [
        {"device.precision": "bfloat16"},
        {"device.channels_last": False},
        {"optimizer.clip_norm": 0.5},
        {"loss.label_smoothing": 0.1},
        {"schedule.name": "plateau"},
        {"schedule.name": "cyclical"},
        {"data.validation": "first", "data.validation_images": 50},
        {"data.preparation": "standardize"},
    ],
    ids=str,
)
def test_every_setting_trains(tmp_path: Path, overrides: dict[str, Any]) -> None:
    run = trained(tmp_path / "run", {**overrides, "epochs": 1})
    assert np.isfinite(run.metrics[0]["validation_loss"])


@pytest.mark.parametrize(
    ("has", "precision"), [(("avx512_bf16",), "bfloat16"), (("amx_bf16",), "bfloat16"), ((), "float32")]
)
def test_automatic_precision_is_what_the_processor_multiplies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: tuple[str, ...], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(has, True), raising=False)
    settings = {"device.name": "cpu", "epochs": 1, "data.validation": "none"}
    auto = trained(tmp_path / "auto", {**settings, "device.precision": "auto"})
    named = trained(tmp_path / "named", {**settings, "device.precision": precision})
    assert auto.environment["precision"] == named.environment["precision"] == precision
    expected = named.load_weights("last")[0]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in auto.load_weights("last")[0].items())


def test_the_layout_in_memory_changes_no_result_but_rounding(tmp_path: Path) -> None:
    one_step = {**PLAIN, "epochs": 1, "batch_size": 300}
    last = [trained(tmp_path / str(on), {**one_step, "device.channels_last": on}) for on in (True, False)]
    first, second = (run.load_weights("last")[0] for run in last)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-4)


def test_the_real_data_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of vgg1 on CIFAR-10; skipped where it is not."""
    import os

    if not os.environ.get("CIFARLAB_DATA"):
        pytest.skip("CIFARLAB_DATA does not say where the real CIFAR-10 is")
    use_source(monkeypatch, open_source)
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    job = training.prepare(get_recipe("vgg1"))
    assert (job.n_train, job.n_validation, job.steps_per_epoch) == (50_000, 10_000, 782)
    losses = [
        event.loss for event in itertools.islice(training.fit(job, training.start(job, tmp_path / "run")), 40)
    ]
    assert losses[-1] < 2.4


def test_a_network_that_cannot_take_smaller_pictures_is_told() -> None:
    recipe = RECIPE.model_copy(update={"data": Data(training_scales=(0.5, 1.0))})
    with pytest.raises(
        UserError,
        match="^0.5 in data.training_scales makes pictures of 16x16 pixels, which this network cannot take",
    ):
        job_module.prepare(recipe, "demo")


def test_every_step_has_its_own_dropout() -> None:
    job = job_module.prepare(
        override(RECIPE, {"model.dense_dropout": 0.5, "seed": 3, "device.name": "cpu"}), "demo"
    )
    for step in (0, 1, 255, 256, 257, 1000):
        training._seed_dropout(job, step)
        assert torch.initial_seed() == derived_seed(3, DROPOUT, step)
