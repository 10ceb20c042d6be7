"""Published beside ours: figures, verdicts and claims come from stored runs, and from what may be read of them."""

import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifarlab import Run, data, pretrained
from cifarlab import job as job_module
from cifarlab.claims import CLAIMS, Check, Claim, Side
from cifarlab.claims import test_claims as judge_claims
from cifarlab.cli import main
from cifarlab.plan import Planned
from cifarlab.recipe import Published, Recipe, override
from cifarlab.recipes import RECIPES
from cifarlab.reproduction import (
    accuracy_at,
    entry_cells,
    published_recipes,
    read_results,
    results_page,
    verdict,
)
from cifarlab.statistics import prediction_interval
from cifarlab.studies import STUDIES
from cifarlab.study import load_study, plan_study
from tests.tiny import RECIPE, tiny_source, use_source

ROOT = Path(__file__).parents[1]
TINY = override(RECIPE, {"epochs": 1}).model_copy(
    update={"published": Published(accuracy=0.2, split="validation", epochs=1), "weights": "last"}
)


def record(
    results: Path,
    name: str,
    seed: int,
    validation: Sequence[float],
    *,
    test: float | None = None,
    train: float = 0.9,
    folder: str | None = None,
    changes: Mapping[str, Any] | None = None,
    on: str = "cifar10",
) -> Run:
    """A made-up record of a run: a line of metrics for each validation accuracy."""
    recipe = override(RECIPES[name], {"seed": seed, "epochs": len(validation), **(changes or {})})
    environment = {"device": "cpu", "device_name": "a processor", "threads": 1}
    about = {"name": on, "checksum": "sha256:0", "classes": ["cat", "dog", "ship"]}
    run = Run.create(results / (folder or name) / f"seed-{seed}", recipe, environment, about)
    rows = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "train_loss": 1.0,
            "train_accuracy": train,
            "validation_loss": 1 - accuracy,
            "validation_accuracy": accuracy,
            "learning_rate": 0.1,
            "images_per_second": 1.0,
            "elapsed_seconds": 2.0 * epoch,
        }
        for epoch, accuracy in enumerate(validation, start=1)
    ]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if test is not None:
        confusion = [[8, 2, 0], [1, 9, 0], [0, 0, 10]]
        judged = {"accuracy": test, "tta": False, "confusion": confusion}
        run.update_evaluations(lambda content: content.update({"test": {run.default_weights: judged}}))
    return Run(run.path)


@pytest.fixture
def wave() -> Callable[[int, float], list[float]]:
    """Accuracies that end in a given one."""
    return lambda epochs, last: [0.3] * (epochs - 1) + [last]


# Verdicts


@given(st.lists(st.floats(0.01, 0.99), min_size=3, max_size=6), st.floats(0, 1))
def test_with_three_seeds_the_prediction_interval_decides(accuracies: list[float], published: float) -> None:
    mean = sum(accuracies) / len(accuracies)
    low, high = prediction_interval(accuracies) or (mean, mean)
    expected = "reproduced" if low <= published <= high else "better" if mean > published else "worse"
    assert verdict(accuracies, published) == expected


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.6663], "reproduced (one seed)"),
        ([0.68], "reproduced (one seed)"),
        ([0.69], "better (one seed)"),
        ([0.65], "worse (one seed)"),
        ([0.66, 0.67], "reproduced (two seeds)"),
        ([], "not evaluated"),
    ],
)
def test_with_fewer_a_point_decides(accuracies: list[float], expected: str) -> None:
    assert verdict(accuracies, 0.6707) == expected


# What is read of stored runs


def test_an_entry_has_the_runs_of_one_length(tmp_path: Path, wave: Callable[..., list[float]]) -> None:
    for seed, last in enumerate((0.66, 0.67, 0.69)):
        record(tmp_path, "vgg1", seed, wave(100, last), test=last)
    record(tmp_path, "vgg1", 3, wave(18, 0.5), test=0.5)
    full, short = read_results(tmp_path, [RECIPES["vgg1"]])[0]
    assert (full.epochs, full.accuracies, full.verdict) == (100, (0.66, 0.67, 0.69), "reproduced")
    assert (short.epochs, short.accuracies, short.verdict) == (18, (0.5,), "not run at full length")
    cells = entry_cells(full)
    assert cells[:4] == ["test †", "67.07", "67.33 ± 1.53", "66.00 to 69.00"]
    assert cells[4:] == [
        "3 (0, 1, 2)",
        "reproduced",
        "100 of 100",
        "67.33 ± 1.53",
        "no",
        "a processor, 1 thread",
        "3 min 20 s",
    ]


def test_the_published_split_and_the_recipes_weights_decide_what_is_read(
    tmp_path: Path, wave: Callable[..., list[float]]
) -> None:
    t5 = record(tmp_path, "cnn4", 0, [0.7, *wave(9, 0.64)], test=0.61)
    assert accuracy_at(t5, "validation", 10) == 0.64  # the last epoch's, not the best
    t4 = record(tmp_path, "cnn-small", 0, wave(20, 0.66), test=0.65)
    assert accuracy_at(t4, "test", 20) == 0.65  # judged by evaluate; validation is another split
    assert accuracy_at(t4, "test", 10) is None
    unjudged = record(tmp_path, "cnn-small", 1, wave(20, 0.66))
    assert accuracy_at(unjudged, "test", 20) is None
    (entry,), _ = read_results(tmp_path, [RECIPES["cnn4"]])
    assert (entry.accuracies, entry.test_accuracies) == ((0.64,), (0.61,))


def test_a_figure_published_with_views_is_compared_with_ours_with_views(
    tmp_path: Path, wave: Callable[..., list[float]]
) -> None:
    run = record(tmp_path, "airbench94", 0, wave(8, 0.9), test=0.93)
    assert accuracy_at(run, "test", 8) is None, "not judged with views"
    tta = {"tta": True, "accuracy_with_tta": 0.941, "tta_views": 6}
    run.update_evaluations(lambda content: content["test"]["last"].update(tta))
    (entry,), _ = read_results(tmp_path, [RECIPES["airbench94"]])
    assert (entry.accuracies, entry.test_accuracies) == ((0.941,), (0.93,))
    cells = entry_cells(entry)
    assert cells[2] == "94.10" and cells[7:9] == ["93.00", "6 views"]


def test_a_run_that_went_on_is_read_where_the_source_stopped_if_it_can_be(
    tmp_path: Path, wave: Callable[..., list[float]]
) -> None:
    record(tmp_path, "cnn4", 0, [*wave(10, 0.64), 0.9, 0.9], test=0.9)
    record(tmp_path, "conv3-sgd", 0, [*wave(100, 0.77), 0.78], test=0.78)
    cnn4, conv3 = read_results(tmp_path, [RECIPES["cnn4"], RECIPES["conv3-sgd"]])[0]
    assert (cnn4.epochs, cnn4.accuracies, cnn4.test_accuracies) == (10, (0.64,), ())
    assert (conv3.epochs, conv3.verdict) == (101, "run longer than published")


def test_what_is_no_reproduction_is_left_out_and_told(
    tmp_path: Path, wave: Callable[..., list[float]]
) -> None:
    record(tmp_path, "cnn4", 0, wave(10, 0.64), changes={"optimizer.learning_rate": 0.02})
    record(tmp_path, "cnn4", 1, wave(10, 0.64), on="demo")
    (tmp_path / "cnn4" / "seed-2").mkdir()
    cut_off = record(tmp_path, "cnn4", 3, wave(4, 0.5))
    cut_off.replan(RECIPES["cnn4"])
    (cut_off.path / "state.json").write_text("{}")
    other_machine = record(tmp_path, "cnn4", 4, wave(10, 0.63), changes={"device.threads": 4})
    (entry,), left_out = read_results(tmp_path, [RECIPES["cnn4"]])
    assert [run.path for run in entry.runs] == [other_machine.path]
    assert [line.partition(": ")[2] for line in left_out] == [
        "other settings (optimizer.learning_rate)",
        "trained on demo",
        "4 of 10 epochs, to be resumed",
    ]


def test_far_below_is_a_mistake_until_shown_otherwise(
    tmp_path: Path, wave: Callable[..., list[float]]
) -> None:
    record(tmp_path, "cnn4", 0, wave(10, 0.61))
    record(tmp_path, "cnn4-bn", 0, wave(10, 0.62))
    entries, _ = read_results(tmp_path, [RECIPES["cnn4"], RECIPES["cnn4-bn"]])
    assert [entry.far_below for entry in entries] == [True, False]


def test_the_page_has_every_published_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    page = results_page(read_results(tmp_path, published_recipes())[0])
    for recipe in RECIPES.values():
        assert (f"`{recipe.name}`" in page) == (recipe.published is not None)
    assert page.count("| not run |") == len(published_recipes()) - 1
    assert page.count("| weights not available |") == 1

    weights = pretrained.FILES["imagenet"].name
    (tmp_path / "cifarlab" / "weights").mkdir(parents=True)
    (tmp_path / "cifarlab" / "weights" / weights).touch()
    (entry,) = read_results(tmp_path, [RECIPES["vgg16-frozen"]])[0]
    assert entry.verdict == "not run"


def test_the_repositorys_record_says_the_same_twice() -> None:
    run = Run(
        ROOT / "results" / "vgg1" / "seed-0"
    )  # validation was the test set: metrics and evaluation agree
    assert accuracy_at(run, "test", 100) == run.evaluations["test"]["last"]["accuracy"]


# Claims


def test_the_claims_are_the_twelve_and_name_what_there_is(tmp_path: Path) -> None:
    assert [claim.number for claim in CLAIMS] == list(range(1, 13))
    folders = {f"study-{name}" for name in STUDIES}
    paths = {
        str(each.path.parent)
        for name in STUDIES
        for _, (each,) in plan_study(load_study(name), Path(f"study-{name}"), seeds=1)
    }
    sides = [
        side
        for claim in CLAIMS
        for check in claim.checks
        for side in (check.a, check.b)
        if isinstance(side, Side)
    ]
    for side in sides:
        if side.folder.split("/")[0] in folders:
            assert side.folder in paths
        else:
            assert side.folder in RECIPES
    assert {side.folder for side in sides if "batch" in side.folder} == {
        path for path in paths if "batch" in path
    }


def checked(tmp_path: Path, *checks: Check) -> Any:
    (tested,) = judge_claims(tmp_path, [Claim(1, "a claim", checks)])
    return tested


def test_a_claim_is_judged_by_the_interval_of_the_paired_difference(
    tmp_path: Path, wave: Callable[..., list[float]]
) -> None:
    # The seeds differ much, the pairs little: only pairing shows the difference.
    for seed, base in enumerate((0.60, 0.65, 0.70)):
        record(tmp_path, "cnn4", seed, wave(10, base))
        record(tmp_path, "cnn4-dropout", seed, wave(10, base + 0.02 + 0.001 * seed))
    sides = Side("cnn4"), Side("cnn4-dropout")
    tested = checked(
        tmp_path,
        Check("more", *sides, 0.0, 1.0),
        Check("less", *sides, -1.0, 0.0),
        Check("about 2.1", *sides, 0.021, 0.05),
    )
    assert [result.verdict for result in tested.results] == ["holds", "does not hold", "not decided"]
    assert tested.verdict == "holds in part"
    assert tested.sentences[0] == "more: +2.10 points (95 % interval +1.85 to +2.35, 3 seeds): holds."
    assert tested.to_dict()["checks"][1]["interval"] == pytest.approx([0.01852, 0.02348], abs=1e-5)


def test_a_claim_needs_three_seeds_that_both_sides_have(
    tmp_path: Path, wave: Callable[..., list[float]]
) -> None:
    for seed in (0, 1, 2):
        record(tmp_path, "cnn4", seed, wave(10, 0.6))
    for seed in (1, 2, 3):
        record(tmp_path, "cnn4-dropout", seed, wave(10, 0.7))
    record(tmp_path, "cnn4-dropout", 0, wave(9, 0.7))  # too short
    more = Check("more", Side("cnn4"), Side("cnn4-dropout"), 0.0, 1.0)
    tested = checked(tmp_path, more)
    assert tested.verdict == "not tested"
    assert tested.sentences == [
        "more: not tested (runs at full length: cnn4 3, cnn4-dropout 3, with the same seed 2)."
    ]
    record(tmp_path, "cnn4", 3, wave(10, 0.6))
    assert checked(tmp_path, more).verdict == "holds"  # every pair differs by as much


def test_the_claim_about_transfer_is_tested_where_its_runs_are(
    tmp_path: Path, wave: Callable[..., list[float]]
) -> None:
    def claim_12() -> Any:
        return next(each for each in judge_claims(tmp_path) if each.claim.number == 12)

    for seed in range(3):
        record(tmp_path, "cnn4", seed, wave(10, 0.6 + 0.001 * seed))
    assert claim_12().verdict == "not tested"
    for seed in range(3):
        record(tmp_path, "vgg16-frozen", seed, wave(10, 0.5))
        record(tmp_path, "vgg16-finetune", seed, wave(10, 0.8))  # nothing is published of it
    assert [result.verdict for result in claim_12().results] == ["holds", "holds"]


def test_different_lengths_are_tested_as_published_and_at_equal_epochs(
    tmp_path: Path, wave: Callable[..., list[float]]
) -> None:
    for seed in range(3):
        record(tmp_path, "vgg3-dropout", seed, wave(100, 0.80 + 0.001 * seed))
        record(tmp_path, "vgg3-dropout-rising", seed, [*wave(100, 0.79), *wave(100, 0.85)])
    tested = next(each for each in judge_claims(tmp_path) if each.claim.number == 5)
    published, equal = tested.results
    assert "as published (200 and 100 epochs)" in published.check.text and published.verdict == "holds"
    assert "both after 100 epochs" in equal.check.text and equal.verdict == "does not hold"


def test_quantities_of_a_run(tmp_path: Path) -> None:
    curve = [0.1, 0.5, 0.6, 0.55, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4]
    for seed in range(3):
        record(tmp_path, "cnn4", seed, curve, train=0.9)
    quantities = {
        "accuracy": 0.4,
        "best validation accuracy": 0.6,
        "epoch of the lowest validation loss": 3,
        "epoch of the best validation accuracy": 3,
        "overfitting": 0.5,
        "validation loss": 0.6,
    }
    for quantity, value in quantities.items():
        (result,) = checked(tmp_path, Check("", 0.0, Side("cnn4", quantity), -1, 9)).results  # type: ignore[arg-type]
        assert result.found.mean == pytest.approx(value), quantity
    early = Side("cnn4", "validation accuracy", epoch=4, window_epochs=2)
    (result,) = checked(tmp_path, Check("", 0.0, early, -1, 9)).results
    assert result.found.mean == pytest.approx(0.575)


# The command


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe with a published figure, trained in a moment on tiny data that says it is CIFAR-10."""
    source = replace(tiny_source(), name="cifar10")
    use_source(monkeypatch, lambda *_, **__: source)
    monkeypatch.setattr(data, "open_source", lambda *_, **__: source)
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    return TINY


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_reproduce_trains_evaluates_and_writes_and_does_nothing_twice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    command = ("reproduce", "tiny", "--seeds", 2, "--results", results)
    code, printed, _ = ask(capsys, *command, "--plan")
    assert code == 0 and "2 trainings: 2 missing" in printed and "expected: " in printed
    assert not results.exists()
    code, printed, _ = ask(capsys, *command)
    assert code == 0 and "expected: " in printed
    page = (results / "reproduction.md").read_text()
    runs = [Run(results / "tiny" / f"seed-{seed}") for seed in (0, 1)]
    for run in runs:
        last = run.metrics[-1]["validation_accuracy"]
        assert run.evaluations["validation"]["last"]["accuracy"] == last
        assert [use["weights"] for use in run.evaluations["test_set_uses"]] == ["last"]
    mean = sum(run.metrics[-1]["validation_accuracy"] for run in runs) / 2
    assert (
        f"| validation | 20.00 | {100 * mean:.2f} ± " in page and "| 2 (0, 1) |" in page and "1 of 1" in page
    )
    before = {path: path.read_bytes() for path in sorted(results.rglob("*.json"))}
    monkeypatch.setattr(job_module, "prepare", None)
    code, printed, _ = ask(capsys, *command, "--json")
    (entry,) = json.loads(printed)["recipes"]
    assert code == 0 and (entry["accuracy"]["n"], entry["accuracy"]["mean"]) == (2, pytest.approx(mean))
    assert before == {path: path.read_bytes() for path in sorted(results.rglob("*.json"))}


def test_no_train_evaluates_what_is_finished_and_leaves_the_rest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifarlab.training import fit, start

    run = start(job_module.prepare(tiny), tmp_path / "tiny" / "seed-0")
    code, printed, _ = ask(capsys, "reproduce", "--no-train", "--results", tmp_path)
    assert code == 0 and "left out: " in printed and "0 of 1 epochs, to be resumed" in printed
    for _ in fit(job_module.prepare(tiny), run):
        pass
    monkeypatch.setattr(job_module, "prepare", None)
    code, printed, _ = ask(capsys, "reproduce", "--no-train", "--claims", "--results", tmp_path)
    assert code == 0 and "left out" not in printed
    assert "test" in Run(run.path).evaluations
    assert "for want of runs: claims 1, 2" in printed and "not tested" in (tmp_path / "claims.md").read_text()
    assert "cnn4" in (tmp_path / "reproduction.md").read_text()


def test_other_lengths_are_resumed_and_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Recipe
) -> None:
    longer = tiny.model_copy(update={"published": Published(accuracy=0.2, split="validation", epochs=2)})
    RECIPES["tiny"] = longer.model_copy(update={"epochs": 2})
    code, printed, _ = ask(capsys, "reproduce", "tiny", "--epochs", 1, "--results", tmp_path)
    assert code == 0 and "not run at full length" in printed
    code, printed, _ = ask(capsys, "reproduce", "tiny", "--results", tmp_path)
    assert code == 0 and "1 cut off" in printed and "not run at full length" not in printed
    assert len(Run(tmp_path / "tiny" / "seed-0").metrics) == 2


def test_a_recipe_that_cannot_be_trained_here_is_left_out_and_the_others_are_not(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Recipe
) -> None:
    RECIPES["tiny-lacking"] = override(tiny, {"data.validation_images": 300}).model_copy(
        update={"name": "tiny-lacking"}
    )
    try:
        code, printed, _ = ask(capsys, "reproduce", "tiny", "tiny-lacking", "--results", tmp_path)
    finally:
        del RECIPES["tiny-lacking"]
    assert code == 0 and "left out: tiny-lacking: validation of 300 pictures" in printed
    assert [path.parent.name for path in tmp_path.rglob("seed-0")] == ["tiny"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["vgg33"], "unknown recipe 'vgg33'; did you mean 'vgg3'?"),
        (["demo"], "demo has no published figure"),
        (["vgg1", "--set", "epochs=3"], "would be another recipe"),
        (["vgg1", "--set", "device.threds=3"], "did you mean 'device.threads'?"),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str, in_empty_folder: Path
) -> None:
    code, _, err = ask(capsys, "reproduce", *arguments)
    assert code == 2 and expected in err and err.count("\n") == 1
    assert not list(in_empty_folder.iterdir())


def test_every_pair_of_published_recipes_differs() -> None:
    from cifarlab.plan import differing_settings

    for a, b in itertools.combinations(published_recipes(), 2):
        assert differing_settings(a, b), (a.name, b.name)


def test_a_record_is_the_run_without_weights_and_state(
    demo_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import keep_record

    runs, records = tmp_path / "runs", tmp_path / "results"
    shutil.copytree(demo_run.path, runs / "base" / "seed-0")
    (runs / "study.md").write_text("a table")
    keep_record.main(runs, records)
    keep_record.main(runs, records)  # once more writes it anew
    kept = Run(records / "base" / "seed-0")
    assert kept.is_record and not demo_run.is_record
    assert (kept.recipe, kept.metrics, kept.data) == (demo_run.recipe, demo_run.metrics, demo_run.data)
    assert not list(kept.path.rglob("*.safetensors")) and (kept.path / "figures/learning-curves.png").exists()
    listed = {line.split("  ")[1] for line in (kept.path / "SHA256SUMS").read_text().splitlines()}
    assert listed <= {str(path.relative_to(kept.path)) for path in kept.path.rglob("*")}
    assert (records / "study.md").read_text() == "a table"
    planned = Planned(kept.path, demo_run.recipe.model_copy(update={"epochs": 9}), "demo")
    assert planned.standing == "kept as a record only"


def test_the_cost_of_a_training_is_measured_for_its_own_number_of_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pictures that grow from epoch to epoch the first epoch is not like the others."""
    from cifarlab.cli.queue import cost_of
    from cifarlab.cost import Estimate

    measured = []

    def estimate(recipe: Recipe) -> Estimate:
        measured.append(recipe.epochs)
        return Estimate(9.0, 3.0, 1.0, 1, 1)

    monkeypatch.setattr("cifarlab.job.prepare", lambda recipe, source: recipe)
    monkeypatch.setattr("cifarlab.cost.estimate", estimate)
    recipe = RECIPES["airbench94"].model_copy(update={"epochs": 3})
    cost_of([Planned(tmp_path / "run", recipe, "demo")], tiny_source())
    assert measured == [3]
