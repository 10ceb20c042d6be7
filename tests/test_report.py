"""The page as a file: what it says, and that it says it of anything that can be trained."""

import dataclasses
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifarlab import UserError, evaluate, train, tta
from cifarlab.calibration import fit_temperature
from cifarlab.cli import main
from cifarlab.data import Source, Split, open_source
from cifarlab.group_training import train_group
from cifarlab.models.specs import MLP, VGG, Airbench
from cifarlab.recipe import EMA, Data
from cifarlab.report import charts, write_report
from cifarlab.report.stress import sample
from cifarlab.run import Run
from cifarlab.statistics import proportion_interval
from tests.report_pages import FEW, HOSTILE, Page, copied, page_of
from tests.tiny import RECIPE, use_source


@pytest.fixture
def run(demo_run: Run, tmp_path: Path) -> Run:
    return copied(demo_run, tmp_path / "run")


def drawn_source(classes: int, height: int, width: int, n: int = 120) -> Source:
    """Noise of any size, in any number of classes."""

    def read(split: str) -> Split:
        draws = np.random.default_rng(len(split))
        images = draws.integers(0, 256, (n, height, width, 3), dtype=np.uint8)
        return Split(images, np.arange(n) % classes)

    names = tuple(f"class {k}" for k in range(classes))
    return Source("noise", "a test", names, "sha256:0", read)  # type: ignore[arg-type]


def test_it_says_what_evaluate_says(single_report: Page) -> None:
    result = evaluate(single_report.run)
    right = sum(result.confusion[k][k] for k in range(10))
    low, high = proportion_interval(right, result.n)
    assert f"{100 * result.accuracy:.2f} % of the 2,000 test pictures of demo right" in single_report.text
    assert f"{100 * low:.1f} to {100 * high:.1f} %" in single_report.text
    for cell, (n, rate, indices) in single_report.data["cells"].items():
        true, predicted = map(int, cell.split(","))
        assert n == result.confusion[true][predicted] and rate == pytest.approx(n / 200, abs=1e-4)
        for index in set(indices) & set(map(int, single_report.data["pictures"])):
            picture = single_report.data["pictures"][str(index)]
            assert (picture["t"], picture["r"][0]["p"][0][0]) == (true, predicted)
    assert sum(n for n, _, _ in single_report.data["cells"].values()) == 2000
    assert single_report.document["runs"][0]["accuracy"] == result.accuracy
    assert single_report.document["n_changed_pictures"] == FEW


def test_heat_maps_are_of_the_surest_hits_each_of_another_class(single_report: Page) -> None:
    stored = single_report.run.load_logits("test")
    assert stored is not None
    logits, labels = stored[0]["logits-best"].double(), stored[0]["labels"]
    sureness, answers = logits.softmax(1).max(1)
    hit_of_class: dict[int, int] = {}
    for index in sureness.argsort(descending=True, stable=True).tolist():
        if answers[index] == labels[index]:
            hit_of_class.setdefault(int(labels[index]), index)
    (shown,) = re.findall(r"<h3>Surest hits, each of another class</h3>(.*?)<h3>", single_report.text, re.S)
    assert [int(index) for index in re.findall(r'data-picture="(\d+)"', shown)] == list(
        hit_of_class.values()
    )[:6]


def test_one_file_that_asks_for_nothing_and_is_small(single_report: Page) -> None:
    assert single_report.document["size_bytes"] == single_report.path.stat().st_size < 3_000_000
    before_scripts = single_report.text.split('<script type="application/json"')[0]
    assert not re.findall(
        r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:|#)[\w/]""",
        html.unescape(before_scripts).replace(HOSTILE[1], ""),
    )
    assert "default-src 'none'" in single_report.text
    assert single_report.text.count("<script") == 2


def test_a_report_is_a_recorded_use_of_the_test_set_but_not_of_validation(
    single_report: Page, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifarlab.report.answers.fit_temperature", lambda *_: 1.5)
    assert [use["command"] for use in single_report.run.evaluations["test_set_uses"]] == [
        "evaluate",
        "report",
    ]
    page = page_of(run, options=("--sample", "0", "--split", "validation"))
    assert run.evaluations["test_set_uses"] == []
    assert "The test pictures were never opened" in page.text
    assert "the figure after it is flattering" in page.text


def test_the_temperature_is_of_the_validation_pictures(single_report: Page) -> None:
    stored = single_report.run.load_logits("validation")
    assert stored is not None
    temperature = fit_temperature(stored[0]["logits-best"].numpy(), stored[0]["labels"].numpy())
    said = (
        "No temperature is fitted: none is best on the validation pictures"
        if temperature is None
        else f"a temperature of {temperature:.2f}, fitted on the validation pictures"
    )
    assert said in single_report.text


@pytest.mark.parametrize(
    ("validation", "said"),
    [
        ("none", "this recipe kept no validation pictures to fit it on"),
        ("test", "validation was the test set in this recipe, and nothing may be fitted on that"),
    ],
)
def test_without_validation_or_convolutions(tmp_path: Path, validation, said) -> None:
    recipe = RECIPE.model_copy(
        update={
            "model": MLP(widths=(8,)),
            "data": Data(validation=validation),
            "epochs": 1,
            "batch_size": 500,
        }
    )
    run = train(recipe, data="demo", out=tmp_path / "run")
    page = page_of(run)
    assert said in page.text
    assert "No temperature is fitted" in page.text
    assert "no Grad-CAM" in page.text and page.data["maps"] == [None]
    assert "32×32 pixels" in page.text  # the first dense layer, as pictures


def test_a_network_that_begins_with_a_whitening_layer(tmp_path: Path) -> None:
    changes = {"model": Airbench(widths=(4,)), "epochs": 1, "batch_size": 500}
    page = page_of(train(RECIPE.model_copy(update=changes), data="demo", out=tmp_path / "run"))
    assert "24 filters of the convolution whiten, 2×2 pixels" in page.text


@pytest.mark.parametrize(("classes", "height", "width"), [(2, 16, 20), (30, 50, 44)])
def test_any_number_of_classes_and_size_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int, height: int, width: int
) -> None:
    source = drawn_source(classes, height, width)
    use_source(monkeypatch, lambda *_, **__: source)
    changes = {"model": VGG(widths=(4,), dense=8), "epochs": 1, "data": Data(validation="none")}
    run = train(RECIPE.model_copy(update=changes), data="demo", out=tmp_path / "run")
    page = page_of(run, options=("--sample", "6"))
    assert ('id="matrix"' in page.text) == (classes <= 20)
    assert page.text.count("<option") == 2 * classes
    assert sum(n for n, _, _ in page.data["cells"].values()) == 120
    assert max(page.data["maps"][0]) <= 16


def test_of_several_runs_it_shows_pictures_that_only_one_has_right(several_report: Page) -> None:
    runs = [Run(several_report.run.path.parent / name) for name in several_report.data["runs"]]
    assert several_report.data["runs"] == ["run", "other", "third"]
    answers = []
    for run in runs:
        tensors = run.load_logits("test")[0]  # type: ignore[index]
        answers.append(tensors["logits-best"].numpy().argmax(1))
    labels = open_source("demo").load("test").labels
    right = [each == labels for each in answers]
    for a, b in ((0, 1), (1, 0), (0, 2), (2, 1)):
        only = int((right[a] & ~right[b]).sum())
        assert (
            f"{several_report.data['runs'][a]} right, {several_report.data['runs'][b]} wrong: {only:,}"
            in several_report.text
        )
    for index, picture in several_report.data["pictures"].items():
        shown = [each["p"][0][0] for each in picture["r"]]
        assert shown == [each[int(index)] for each in answers]
        assert len({each[int(index)] for each in right}) == 2


def test_more_runs_than_can_be_told_apart(run: Run) -> None:
    with pytest.raises(UserError, match="1 to 8 runs, 9 given"):
        write_report([run] * 9, run.path.parent / "report.html")


def test_different_validation_pictures_are_not_compared(run: Run, tmp_path: Path) -> None:
    copied(run, tmp_path / "other")
    for changed, message in (
        ({"validation_indices": [1]}, "validate on different pictures"),
        ({"checksum": "x"}, "different data"),
    ):
        path = tmp_path / "other" / "data.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
        (tmp_path / "other" / "SHA256SUMS").unlink(missing_ok=True)
        with pytest.raises(UserError, match=message):
            write_report([run, Run(tmp_path / "other")], tmp_path / "report.html", split="validation")
    assert not (tmp_path / "report.html").exists()


def test_a_network_whose_answers_are_not_numbers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    look = tta.predict_logits
    monkeypatch.setattr(tta, "predict_logits", lambda *given: look(*given) * float("nan"))
    evaluate(run)
    with pytest.raises(UserError, match="not numbers"):
        write_report([run], run.path.parent / "report.html")


def test_the_page_cannot_be_written(
    run: Run, capsys: pytest.CaptureFixture[str], in_empty_folder: Path
) -> None:
    for out, message in (("no/report.html", "there is no folder no"), (".", "is a folder")):
        assert main(["report", str(run.path), "--out", out]) == 2
        assert message in capsys.readouterr().err
    assert not run.evaluations


@given(st.integers(1, 20_000), st.integers(0, 3_000))
def test_the_sample_is_spread_evenly(n: int, wanted: int) -> None:
    chosen = sample(n, wanted)
    assert len(chosen) == len(set(chosen.tolist())) == min(n, wanted)
    assert all(0 <= index < n for index in chosen)
    if len(chosen) > 1:
        assert np.ptp(np.diff(chosen)) <= 1


values = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3))


@given(st.lists(values, min_size=1, max_size=60), st.booleans())
def test_every_point_is_inside_its_chart(y: list[float], with_gap: bool) -> None:
    given_y: list[float | None] = [None, *y] if with_gap else list(y)
    series = charts.Series("a", list(range(len(given_y))), given_y)
    chart = charts.line_chart("a chart", [series], x_label="x", y_label="y")
    numbers = [float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", chart.lines[0].path)]
    xs, ys = numbers[::2], numbers[1::2]
    assert len(xs) == len(y)
    assert all(chart.left <= x <= chart.right for x in xs)
    assert all(chart.top <= value <= chart.bottom for value in ys)
    assert all(chart.left <= x <= chart.right for x, _ in chart.x_ticks)
    assert all(chart.top <= value <= chart.bottom for value, _ in chart.y_ticks)
    order = np.argsort(y, kind="stable")
    assert (np.diff(np.array(ys)[order]) <= 0.2).all()  # larger is higher, but for rounding


def test_many_points_are_thinned_to_a_drawing_of_the_same_ends() -> None:
    series = charts.Series("a", list(range(10_000)), [x / 10_000 for x in range(10_000)])
    chart = charts.line_chart("a chart", [series], x_label="x", y_label="y")
    assert len(chart.lines[0].path) < 8_000
    assert chart.lines[0].path.endswith(f"L{chart.right:g} {chart.lines[0].path.rsplit(' ', 1)[1]}")
    assert len(chart.table) <= 28 and chart.table[-1][0] == "9999"


def test_labels_are_judged_out_of_fold_where_folds_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every label of the training set is right but three, and the network sees through them."""
    source = drawn_source(2, 8, 8)
    wrong = [10, 51, 90]

    def read(split: str) -> Split:
        content = source.load(split)  # type: ignore[arg-type]
        content.images[content.labels == 1] = 255 - content.images[content.labels == 1] // 4
        content.images[content.labels == 0] //= 4
        if split == "train":
            content.labels[wrong] = 1 - content.labels[wrong]
        return content

    drawn = dataclasses.replace(source, read=read)
    use_source(monkeypatch, lambda *_, **__: drawn)
    changes = {"model": MLP(widths=(8,)), "epochs": 8, "data": Data(), "ema": EMA()}
    runs = train_group(RECIPE.model_copy(update=changes), folds=3, data="demo", out=tmp_path / "folds")
    for page in (page_of(runs[0]), page_of(*runs)):
        part = page.text.split('id="labels-title"')[1].split("</section>")[0]
        assert "(3 folds) which was not trained on it" in part
        for index in wrong:  # it opens with the answer and the heat maps of its own fold
            told = page.data["pictures"][f"train-{index}"]
            held_out = [run for run in runs if index in run.data["validation_indices"]]
            assert [told["by"]] == [run.path.name for run in held_out]
            assert told["r"][0]["p"][0][0] != told["t"] and f'data-picture="train-{index}"' in part
        assert sorted(map(int, re.findall(r'alt="picture (\d+), labelled', part))) == wrong


@pytest.mark.parametrize("value", [0.0, 0.2, 7.5])
def test_the_same_value_throughout_has_no_axis_below_zero(value: float) -> None:
    series = charts.Series("a", (1.0, 2.0), (value, value))
    chart = charts.line_chart("a chart", [series], x_label="x", y_label="y")
    assert not any(word.startswith(("-", "\N{MINUS SIGN}")) for _, word in chart.y_ticks)
