"""Commands that cifarlab hints at work when they are pasted."""

import shlex
from pathlib import Path

import pytest
from picture_files import make
from small_cifar import PYTHON, SmallData
from tests.tiny import SMALL_OPTIONS

from cifarlab.cli import main
from cifarlab.range_test import RangeTest

pytestmark = pytest.mark.usefixtures("small_for_cifar10")

SMALL = [*SMALL_OPTIONS, "--set", "batch_size=8", "--set", "data.validation=first"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(
        "cifarlab.data.download.fetch", lambda *_: pytest.fail("would have gone to the network")
    )


def run_hints(output: str, picture: Path) -> list[str]:
    """Run what stands under "Next:", and give the commands' names."""
    lines = [line for line in output.split("\nNext:")[1].splitlines() if line.startswith("  cifarlab ")]
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    for words in commands:
        assert main([str(picture) if word == "PICTURE" else word for word in words]) == 0, words
    return [words[0] for words in commands]


@pytest.fixture(params=["archive", "folder", "data-dir", "own pictures"])
def given(request, small: SmallData, in_empty_folder: Path) -> list[str]:
    place = in_empty_folder / "my data"
    if request.param == "own pictures":
        make(place, *(f"{name}_{n}.png" for name in ("cat", "dog") for n in range(8)))
        return ["--data", "my data", "--labels-from", r"(.+)_\d"]
    if request.param == "archive":
        place.mkdir()
        (place / "cifar-10-python.tar.gz").write_bytes(small.archives[PYTHON])
        return ["--data", "my data/cifar-10-python.tar.gz"]
    small.write(place)
    return ["--data", f"my data/{PYTHON}"] if request.param == "folder" else ["--data-dir", "my data"]


def test_what_follows_a_training_can_be_pasted(given, in_empty_folder, monkeypatch, capsys):
    picture = make(in_empty_folder / "x", "photo 1.png") / "photo 1.png"
    monkeypatch.delenv("CIFARLAB_DATA", raising=False)
    assert main(["train", "demo", *given, *SMALL, "--out", "my run"]) == 0
    assert run_hints(capsys.readouterr().out, picture) == ["evaluate", "predict", "resume"]


def test_the_variable_beats_where_a_run_had_its_data(small: SmallData, in_empty_folder, monkeypatch, capsys):
    small.write(in_empty_folder / "my data")
    assert main(["train", "demo", "--data-dir", "my data", *SMALL, "--out", "run"]) == 0
    monkeypatch.setenv("CIFARLAB_DATA", str(in_empty_folder))
    assert main(["evaluate", "run"]) == 2
    assert "which CIFARLAB_DATA names" in capsys.readouterr().err


def test_what_follows_a_search_of_the_rate_can_be_pasted(given, in_empty_folder, monkeypatch, capsys):
    monkeypatch.setattr(RangeTest, "suggestion", 0.01)  # noise has none
    assert main(["lr-find", "demo", *given, *SMALL, "--steps", "20", "--figure", "x.png"]) == 0
    assert run_hints(capsys.readouterr().out, in_empty_folder) == ["train"]


def test_problems_of_pictures_can_be_looked_at(in_empty_folder, capsys):
    make(in_empty_folder / "my photos", *(f"{name}_{n}.png" for name in ("Cat", "cat") for n in range(8)))
    words = ["--data", "my photos", "--labels-from", r"(.+)_\d"]
    assert main(["train", "demo", *words, *SMALL]) == 0
    hint = capsys.readouterr().err.split("note: `cifarlab ")[1].split("` says which")[0]
    assert main(shlex.split(hint)) == 0
    assert "differ only in case or space" in capsys.readouterr().out
