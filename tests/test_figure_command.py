"""`cifarlab figure`: every name draws, from the data, a recipe or runs; and what it says when it cannot."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifarlab import evaluate
from cifarlab.cli import main
from cifarlab.cli.figure import FIGURES
from cifarlab.data import open_source
from cifarlab.figures import named
from cifarlab.recipes import get_recipe
from cifarlab.run import Run


@pytest.fixture
def run(demo_run: Run, tmp_path: Path) -> Run:
    shutil.copytree(demo_run.path, tmp_path / "run")
    evaluate(tmp_path / "run")
    return Run(tmp_path / "run")


def test_the_test_set_is_not_opened_for_a_figure(
    demo_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(demo_run.path, tmp_path / "run")
    for name in ("predictions", "probabilities", "confusion"):
        assert draw(name, tmp_path / "run", "--out", tmp_path / "x.png") == 2
        assert f"`cifarlab evaluate {tmp_path / 'run'}` first" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "x.html")]) == 2
    assert "opened by evaluate alone" in capsys.readouterr().err
    assert not Run(tmp_path / "run").evaluations
    assert draw("predictions", tmp_path / "run", "--split", "validation", "--out", tmp_path / "x.png") == 0


def draw(*arguments: object) -> int:
    return main(["figure", *(str(argument) for argument in arguments)])


def test_every_name_is_in_the_help_and_has_its_function(capsys: pytest.CaptureFixture[str]) -> None:
    assert draw("--help") == 0
    listed = re.findall(r"^    ([a-z]+)  +(\S.*)$", capsys.readouterr().out, re.MULTILINE)
    assert dict(listed) == FIGURES
    assert set(FIGURES) == {*named.OF_DATA, *named.OF_A_RUN, "curves"}


@pytest.mark.parametrize(
    "arguments",
    [
        "pictures --rows 3 --columns 10",
        "pictures --rows 4 --columns 6 --random --seed 3",
        "classes --per-class 3",
        "augmented --recipe elu6-bn",
        "augmented --recipe cnn-small-aug --rows 6 --columns 1 --versions 5",
    ],
)
def test_figures_of_data(arguments: str, tmp_path: Path) -> None:
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for file in files:
        assert draw(*arguments.split(), "--data", "demo", "--out", file) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    with Image.open(files[0]) as image:
        assert image.width > 400


def test_figures_of_a_run(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("predictions", "probabilities", "confusion", "curves"):
        assert draw(name, run.path, "--out", tmp_path / f"{name}.svg") == 0
        assert "</svg>" in (tmp_path / f"{name}.svg").read_text()
    title = f"demo on demo, seed {run.recipe.seed}"
    assert all(title in (tmp_path / f"{name}.svg").read_text() for name in ("predictions", "curves"))
    assert capsys.readouterr().err.count("test pictures are shown") == 2
    uses = [use["command"] for use in run.evaluations["test_set_uses"]]
    assert uses == ["evaluate", "figure predictions", "figure probabilities"]  # the logits are computed once


def test_predictions_are_those_of_the_stored_logits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(named, "predicted_pictures", lambda *arguments: seen.extend(arguments))
    named.predictions(run, rows=2, columns=5, random=True, seed=4)
    images, labels, predicted = seen[:3]
    stored = run.load_logits("test")
    assert stored is not None
    test, chosen = open_source("demo").load("test"), np.random.default_rng(4).permutation(2000)[:10]
    assert (images == test.images[chosen]).all() and (labels == test.labels[chosen]).all()
    assert (predicted == stored[0]["logits-best"].argmax(1).numpy()[chosen]).all()
    assert f"predicted (true), {(predicted == labels).sum()} right" in seen[-1]


def test_validation_pictures_are_no_use_of_the_test_set(run: Run, tmp_path: Path) -> None:
    assert draw("predictions", run.path, "--split", "validation", "--out", tmp_path / "p.png") == 0
    assert [use["command"] for use in run.evaluations["test_set_uses"]] == ["evaluate"]


def test_a_record_without_weights_still_has_its_confusion(run: Run, tmp_path: Path) -> None:
    assert draw("confusion", run.path, "--out", tmp_path / "one.png") == 0
    for weights in run.path.glob("weights-*"):
        weights.unlink()
    assert draw("confusion", run.path, "--out", tmp_path / "two.png") == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_curves_of_several_runs(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "more" / "again")
    assert draw("curves", run.path, tmp_path / "more", "--out", tmp_path / "curves.svg") == 0
    text = (tmp_path / "curves.svg").read_text()
    assert "(2 runs)" in text and "band: from the lowest to the highest" in text


def test_the_changed_pictures_are_those_of_training() -> None:
    images = open_source("demo").load("train").images[:50]
    flipped = named._changed(images, get_recipe("vgg3-aug").augment.model_copy(update={"shift": 0.0}), seed=1)
    same = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all() and 10 < mirrored.sum() < 40


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("curvs --out x.png", "unknown figure 'curvs'; did you mean 'curves'?"),
        ("nothing-like-it --out x.png", "there are pictures, classes"),
        ("pictures", "--out FILE is missing"),
        ("pictures --out x.gif", "written as .png, .svg or .pdf"),
        ("pictures --out nowhere/x.png", "there is no folder nowhere"),
        ("confusion --out x.png", "is of a run"),
        ("confusion {run} {run} --out x.png", "is of one run, 2 given"),
        (
            "pictures {run} --out x.png",
            "is of a data set, not of a run: leave {run} out; --data says which data set",
        ),
        (
            "confusion {run} --rows 3 --out x.png",
            "--rows is not for the figure confusion; its options: --split",
        ),
        ("augmented --data demo --out x.png", "--recipe RECIPE is missing"),
        ("augmented --data demo --recipe vgg3 --out x.png", "vgg3 augments nothing"),
        ("probabilities {run} --split validation --index 99999 --out x.png", "beyond the last of"),
        ("pictures --rows 0 --out x.png", "'--rows'"),
    ],
)
def test_mistakes(
    arguments: str, part: str, run: Run, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(in_empty_folder.iterdir())
    assert draw(*arguments.format(run=run.path).split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert part.format(run=run.path) in captured.err
    assert set(in_empty_folder.iterdir()) == before
