"""A study is data: what it says is trained, once, and its table and figure are what the stored runs say."""

import json
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from cifarlab import Run, UserError, cost, data, progress
from cifarlab import job as job_module
from cifarlab.cli import main
from cifarlab.figures import values_against
from cifarlab.job import prepare
from cifarlab.plan import Planned
from cifarlab.recipe import override
from cifarlab.studies import STUDIES
from cifarlab.study import load_study, plan_study, points_of, read_study
from tests.tiny import RECIPE, tiny_source, use_source

TINY = """
title = "Batches of the tiny one"
recipe = "demo"
seeds = 2
set.model.widths = [4, 8]
set.model.dense = 8
set.data.validation_fraction = 0.2
set.schedule.name = "constant"
set.device.threads = 1
set.epochs = 1
"""


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch, tiny_source)
    monkeypatch.setattr(data, "open_source", lambda *_, **__: tiny_source())


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def write(content: str) -> str:
        (tmp_path / "mine.toml").write_text(TINY + content)
        return str(tmp_path / "mine.toml")

    return write


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_that_comes_with_it_can_be_planned(name: str, tmp_path: Path) -> None:
    planned = plan_study(load_study(name), tmp_path)
    assert all(each.standing == "missing" for _, some in planned for each in some)


def test_the_batch_size_study_is_the_notebooks_and_its_three_controls(tmp_path: Path) -> None:
    study = load_study("batch-size")
    points = points_of(study)
    published, linear, root, equal = (points[4 * i : 4 * i + 4] for i in range(4))
    assert [point.published for point in published] == [0.4922, 0.3130, 0.2075, 0.1170]
    for point, control in zip(published, equal, strict=True):
        assert point.recipe.optimizer.learning_rate == control.recipe.optimizer.learning_rate == 0.01
        assert control.recipe.data.steps_per_epoch == 1172
    for series, power in ((linear, 1.0), (root, 0.5)):
        for point in series:
            rate = 0.01 * (point.recipe.batch_size / 32) ** power
            assert point.recipe.optimizer.learning_rate == pytest.approx(rate, rel=1e-4)
    for series in (published, linear, root, equal):
        assert [point.recipe.batch_size for point in series] == [1, 32, 100, 1000]
        assert {point.recipe.epochs for point in series} == {1}
    paths = {each.path for _, some in plan_study(study, tmp_path, seeds=1) for each in some}
    assert len(paths) == 14  # a batch of 32 at 0.01 is trained once for three of the series


def test_a_number_of_steps_is_that_many_of_the_endless_stream() -> None:
    recipe = override(RECIPE, {"data.steps_per_epoch": 20})  # a pass over 240 pictures has 8 batches of 32
    job = prepare(recipe, "demo")
    assert job.steps_per_epoch == 20
    for wrong in (0, -1, 2.5, True, "some"):
        with pytest.raises(UserError, match="ceil, floor or a whole number"):
            override(RECIPE, {"data.steps_per_epoch": wrong})


def test_numbers_of_epochs_share_one_training_unless_the_schedule_is_tied(
    tmp_path: Path, write: Callable[[str], str]
) -> None:
    study = load_study(write("vary.epochs = [1, 3, 2]"))
    shared = [each for _, (each, _) in plan_study(study, tmp_path)]
    assert {each.path for each in shared} == {tmp_path / "base" / "seed-0"}
    assert {each.recipe.epochs for each in shared} == {3}
    tied = [each for _, (each, _) in plan_study(study, tmp_path, settings={"schedule.name": "cosine"})]
    assert [each.recipe.epochs for each in tied] == [1, 3, 2] and len({each.path for each in tied}) == 3


def test_a_training_read_early_is_the_training_planned_so_short(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, write: Callable[[str], str]
) -> None:
    def accuracies(epochs: list[int], out: Path) -> dict[int, list[float]]:
        file = write(f"vary.epochs = {epochs}")
        code, printed, _ = ask(capsys, "study", file, "--data", "demo", "--out", out, "--seeds", 1, "--json")
        assert code == 0
        points = json.loads(printed)["points"]
        return {
            point["values"]["epochs"]: [run["validation_loss"] for run in point["runs"]] for point in points
        }

    continued = accuracies([1, 2], tmp_path / "continued")
    assert len(list((tmp_path / "continued").rglob("recipe.json"))) == 1
    alone = accuracies([1], tmp_path / "alone") | accuracies([2], tmp_path / "alone-2")
    assert continued == alone
    assert (
        accuracies([1], tmp_path / "later") | accuracies([1, 2], tmp_path / "later") == continued
    )  # resumed


def test_combinations_and_pairs(write: Callable[[str], str]) -> None:
    lists = "vary.batch_size = [8, 16]\nvary.optimizer.learning_rate = [0.1, 0.2]\n"
    every = [point.values for point in points_of(load_study(write(lists)))]
    assert len(every) == 4 and every[1] == {"batch_size": 8, "optimizer.learning_rate": 0.2}
    paired = [point.values for point in points_of(load_study(write(lists + "paired = true")))]
    assert paired == [
        {"batch_size": 8, "optimizer.learning_rate": 0.1},
        {"batch_size": 16, "optimizer.learning_rate": 0.2},
    ]


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        ("vary.batch_siz = [1]", {}, "unknown field 'batch_siz'; did you mean 'batch_size'?"),
        ("vary.batch_size = [0]", {}, "batch_size should be greater"),
        ("vary.batch_size = []", {}, "at least one value"),
        ("vary.batch_size = 4", {}, "not a study: series.0.vary.batch_size should be a list, 4 given"),
        ("", {}, "it varies nothing"),
        ("varry.batch_size = [4]", {}, "unknown field 'varry"),
        ("vary.batch_size = [4]\nvary.epochs = [1, 2]\npaired = true", {}, "batch_size 1, epochs 2"),
        ("vary.batch_size = [4, 8]\npublished = [0.5]", {}, "each of 2 points, 1 given"),
        ("vary.batch_size = [4]\n[[series]]\nname = 'a'", {}, "vary stands beside [[series]]"),
        ("vary.batch_size = [4]", {"batch_size": 8}, "batch_size is what the study varies"),
        ("vary.batch_size = [4]", {"data.validation": "none"}, "data.validation=none"),
        ("vary = [", {}, "is not TOML"),
    ],
)
def test_mistakes_in_a_study(
    content: str, settings: dict[str, object], expected: str, write: Callable[[str], str]
) -> None:
    with pytest.raises(UserError) as told:
        points_of(load_study(write(content)), settings)
    assert expected in str(told.value) and "\n" not in str(told.value)


def test_a_mistyped_study_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ask(capsys, "study", "batch-sizes")
    assert (code, err) == (2, "error: unknown study 'batch-sizes'; did you mean 'batch-size'?\n")
    assert ask(capsys, "study", "none.toml")[2] == "error: there is no file none.toml\n"


def test_table_and_figure_say_what_the_runs_say_and_nothing_runs_twice(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    write: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, out = write("vary.batch_size = [32, 80]"), tmp_path / "out"
    code, printed, _ = ask(capsys, "study", file, "--data", "demo", "--out", out)
    assert code == 0 and "4 trainings: 4 missing" in printed and "expected: " in printed
    runs = {path.name: Run(path / "seed-0").metrics[-1] for path in out.iterdir() if path.is_dir()}
    assert {name: row["step"] for name, row in runs.items()} == {"batch_size=32": 8, "batch_size=80": 3}
    page = (out / "study.md").read_text()
    for folder in ("batch_size=32", "batch_size=80"):
        found = [Run(out / folder / f"seed-{seed}").metrics[-1]["validation_accuracy"] for seed in (0, 1)]
        assert (
            f"{50 * sum(found):.2f} ±" in page and f"{100 * min(found):.2f} to {100 * max(found):.2f}" in page
        )
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")

    def fail(*_: object) -> None:
        raise AssertionError("it was trained already")

    monkeypatch.setattr(job_module, "prepare", fail)
    (out / "study.md").unlink()
    code, printed, _ = ask(capsys, "study", file, "--data", "demo", "--out", out)
    assert code == 0 and "4 trainings: 4 finished" in printed and "2 of 2" in printed
    assert (out / "study.md").read_text() == page
    for line in printed.splitlines():
        assert len(line) <= 120
    other = ["--set", "model.dense=9", "--no-train"]
    code, _, err = ask(capsys, "study", file, "--data", "demo", "--out", out, *other)
    assert code == 2 and "is of another recipe: model.dense is 8 there, 9 here" in err


def test_ctrl_c_and_once_more(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    write: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, out = write("set.augment.shift = 0.1\nvary.batch_size = [24, 48]"), tmp_path / "out"
    command = ["study", file, "--data", "demo", "--out", out, "--seeds", 1]
    followed, trainings = progress.follow, 0

    def interrupted(*arguments: object) -> None:
        nonlocal trainings
        trainings += 1
        if trainings == 2:
            os.kill(os.getpid(), signal.SIGINT)
        followed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(progress, "follow", interrupted)
    code, _, err = ask(capsys, *command)
    assert code == 130 and "the same command goes on" in err
    code, printed, _ = ask(capsys, *command)
    assert code == 0 and "1 finished, 1 cut off" in printed and "batch_size=48/seed-0, resumed" in printed
    assert trainings == 3 and printed.count("1 of 1") == 2


def test_a_point_that_diverges_is_told_and_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, write: Callable[[str], str]
) -> None:
    file, out = (
        write("set.optimizer.name = 'sgd'\nvary.optimizer.learning_rate = [1e30, 0.01]"),
        tmp_path / "out",
    )
    code, printed, _ = ask(capsys, "study", file, "--data", "demo", "--out", out, "--seeds", 1)
    assert code == 0 and "diverged: the loss is not finite" in printed
    assert "0 of 1, 1 diverged" in printed and "1 of 1" in printed
    code, printed, _ = ask(capsys, "study", file, "--data", "demo", "--out", out, "--seeds", 1)
    assert code == 0 and "1 diverged, 1 finished" in printed and "0 of 1, 1 diverged" in printed


def test_plan_tells_the_cost_and_leaves_no_trace(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    write: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = []
    estimate = cost.estimate
    monkeypatch.setattr(cost, "estimate", lambda job: measured.append(job.recipe) or estimate(job, 1))
    file = write("vary.optimizer.learning_rate = [0.1, 0.2, 0.3]")
    code, printed, _ = ask(capsys, "study", file, "--data", "demo", "--out", tmp_path / "out", "--plan")
    assert code == 0 and "6 trainings: 6 missing" in printed and "expected: " in printed
    assert len(measured) == 1  # a rate changes no cost
    code, document, _ = ask(
        capsys, "study", file, "--data", "demo", "--out", tmp_path / "out", "--plan", "--json"
    )
    planned = json.loads(document)
    assert code == 0 and planned["standings"] == {"missing": 6} and planned["refused"] == {}
    assert planned["elapsed_seconds"] > 0 and planned["disk_bytes"] > 0
    assert not (tmp_path / "out").exists()


def test_seeds_are_trained_one_after_the_other(write: Callable[[str], str], tmp_path: Path) -> None:
    planned = plan_study(load_study(write("vary.batch_size = [4, 8]")), tmp_path, seeds=3)
    assert all([each.recipe.seed for each in some] == [0, 1, 2] for _, some in planned)
    assert isinstance(planned[0][1][0], Planned)
    assert not [outcome for outcome in read_study(planned) if outcome.readings]


def test_the_figure_places_settings_by_their_size() -> None:
    lines = {"one": [(1, [0.5, 0.6]), (32, [0.4]), (1000, [])], "other": [(1, [0.2]), (32, [0.3])]}
    figure = values_against(lines, x_name="batch size", y_name="accuracy", title="t", published=[(32, 0.31)])
    (axes,) = figure.axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert [y for _, y in drawn["one"]] == pytest.approx([0.55, 0.4])
    assert [y for _, y in drawn["published"]] == [0.31]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "32", "1,000"]
    places = axes.get_xticks().tolist()
    assert all(a < b for a, b in pairwise(places)) and places[1] == pytest.approx(1.505, abs=0.01)
    words = values_against({"a": [("sgd", [0.1]), ("adam", [0.2])]}, x_name="x", y_name="y", title="t")
    assert [label.get_text() for label in words.axes[0].get_xticklabels()] == ["sgd", "adam"]
