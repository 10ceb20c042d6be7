"""What `cifarlab data PATH` finds in somebody's own pictures, and how commands take them."""

import json
from pathlib import Path

import numpy as np
import pytest
from picture_files import (
    CLASSES,
    bomb,
    encoded,
    make,
    make_faulty,
    pixels,
    said_to_be_encrypted,
    write_zip,
    zipped,
)
from PIL import Image
from tests.tiny import SMALL_OPTIONS

from cifarlab import Run, get_recipe, text, train, train_group
from cifarlab.cli import main
from cifarlab.data import from_folder, open_source
from cifarlab.data.decoded import decode
from cifarlab.data.listing import Reading, list_pictures
from cifarlab.data.survey import Survey, class_samples, label_clashes, survey
from cifarlab.recipe import override


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    return make_faulty(tmp_path / "faulty set")


def surveyed(path: Path, reading: Reading = Reading()) -> Survey:
    listing = list_pictures(path, reading)
    return survey(listing, decode(listing, 32, "squash"))


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- what is found ---


def test_every_fault_is_found(faulty):
    found = surveyed(faulty)
    assert set(found.classes) == set(CLASSES) and found.empty_classes == ["nothing here"]
    assert found.splits == {"all": {"n": 50, "per_class": [8, 8, 17, 9, 8]}}
    assert {each["path"].removeprefix("owl/"): each["reason"].split(":")[0] for each in found.unreadable} == {
        "bomb.png": "is too large",
        "broken link.png": "cannot be read",
        "cut.png": "is damaged or cut short",
        "empty.png": "is empty (0 bytes)",
        "text.jpg": "is not a picture that can be read",
    }
    assert sorted(map(sorted, found.exact_duplicates.groups)) == [
        ["owl/1.png", "owl/copy of 1.png"], ["owl/2.png", "犬/owl.png"],
    ]  # fmt: skip
    assert (found.exact_duplicates.across_classes, found.exact_duplicates.across_splits) == (1, 0)
    assert list(map(sorted, found.near_duplicates.groups)) == [["owl/3 smaller.jpg", "owl/3.png"]]
    assert found.label_clashes == [["Cat", "cat "]]
    assert found.sizes == {"smallest": [22, 15], "median": [40, 30], "largest": [60, 30], "different": 8}
    assert found.modes == {"RGB": 39, "L": 5, "P": 1}
    assert {reason: sorted(names) for reason, names in found.left_out.items()} == {
        "not a picture, by its suffix": ["README.txt", "owl/notes.txt"],
        "not in a class folder": ["loose.png"],
        "a link that leads nowhere": ["owl/itself.png"],
        "a link to a folder that is listed already": ["owl/round and round"],
    }
    lines = [problem.line for problem in found.problems]
    assert lines[0] == "5 pictures cannot be read; --skip-unreadable trains without" and len(lines) == 9


def test_a_picture_many_times_is_a_short_line_and_whole_in_the_json(tmp_path):
    make(tmp_path / "x", *(f"{name}/{n}.png" for name in "ab" for n in range(4)))
    for n in range(20):
        (tmp_path / f"x/a/copy{n:02d}.png").write_bytes((tmp_path / "x/a/0.png").read_bytes())
    found = surveyed(tmp_path / "x")
    assert len(found.exact_duplicates.groups[0]) == 21
    (problem,) = (each for each in found.problems if "the same file" in each.line)
    assert problem.examples == ["a/0.png = a/copy00.png = a/copy01.png = a/copy02.png = 17 more"]


def test_nothing_is_found_where_nothing_is_wrong(tmp_path):
    assert (
        surveyed(make(tmp_path / "x", *(f"{name}/{n}.png" for name in "ab" for n in range(3)))).problems == []
    )


def test_duplicates_across_splits(tmp_path):
    make(tmp_path / "x", "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png")
    (tmp_path / "x/test/b/5.png").write_bytes((tmp_path / "x/train/b/2.png").read_bytes())
    found = surveyed(tmp_path / "x")
    assert found.exact_duplicates.across_splits == 1 and found.exact_duplicates.across_classes == 0
    assert found.near_duplicates.groups == []
    assert {split: counts["per_class"] for split, counts in found.splits.items()} == {
        "train": [1, 1], "test": [1, 2],
    }  # fmt: skip
    (problem,) = found.problems
    assert "1 across splits: what is tested on was trained on" in problem.line
    assert problem.examples == ["test/b/5.png = train/b/2.png"]


def test_a_split_and_one_class_are_called_by_their_names(tmp_path, capsys):
    make(tmp_path / "x", "a/1.png", "a/2.png")
    assert main(["data", str(tmp_path / "x")]) == 0
    assert "pictures  2 of 1 class\n" in capsys.readouterr().out
    (tmp_path / "x" / "list.csv").write_text("path,label,split\na/1.png,a,trian\n")
    assert main(["data", str(tmp_path / "x")]) == 2
    assert "it should be train, validation or test; did you mean 'train'?" in capsys.readouterr().err


def test_a_class_of_one_picture_again_and_again(tmp_path):
    make(tmp_path / "x", *(f"{name}/{n}.png" for name in "ab" for n in range(4)))
    for n in range(4):
        (tmp_path / f"x/a/{n}.png").write_bytes((tmp_path / "x/a/0.png").read_bytes())
    found = surveyed(tmp_path / "x")
    assert found.alike_classes == ["a"]
    assert "1 class with one picture again and again" in found.problems[-1].line


def test_uneven_and_small_classes(tmp_path):
    found = surveyed(make(tmp_path / "x", "few/1.png", *(f"many/{n}.png" for n in range(4))))
    assert [problem.line for problem in found.problems] == [
        "1 class with fewer than 3 pictures",
        "classes are uneven: many has 4.0 times the training pictures of few",
    ]
    assert found.problems[0].examples == ["few: 1"]


def test_labels_that_are_the_same_to_a_reader():
    names = ["Cat", "cat", "cat_", "big dog", "big-dog", "bigger dog", "caf\u00e9", "cafe\u0301", "cafe"]
    assert label_clashes(names) == [
        ["Cat", "cat", "cat_"],
        ["big dog", "big-dog"],
        ["cafe\u0301", "caf\u00e9"],
    ]


def test_samples_are_of_their_class_and_can_be_read(faulty):
    listing = list_pictures(faulty)
    images, labels = class_samples(listing, per_class=6)
    assert images.shape == (30, 96, 96, 3) and images.dtype == np.uint8
    assert labels.tolist() == [label for label in range(5) for _ in range(6)]
    again, _ = class_samples(listing, per_class=6)
    assert np.array_equal(images, again)


# --- the command ---


def test_the_survey_is_shown(faulty, capsys):
    code, out, err = ask(capsys, "data", faulty)
    assert (code, err) == (0, "")
    assert "pictures  50 of 5 classes\n" in out
    assert "\n犬       9 ████████▌\n" in out  # two cells wide
    assert "  owl/empty.png is empty (0 bytes)\n" in out or "and 2 more (--json has all)" in out
    assert "- 1 class without a picture\n    nothing here\n" in out
    assert max(map(len, out.splitlines())) < 120 + len(str(faulty))


def test_the_survey_as_json_with_a_figure(faulty, tmp_path, capsys):
    figure = tmp_path / "samples.png"
    code, out, err = ask(capsys, "data", faulty, "--json", "--figure", figure, "--per-class", 2)
    assert (code, err) == (0, f"drawn: {figure}\n")
    document = json.loads(out)
    assert document["name"] == "faulty set" and document["location"] == str(faulty)
    assert document["exact_duplicates"]["across_classes"] == 1 and len(document["problems"]) == 9
    with Image.open(figure) as drawn:
        assert drawn.width > 2 * 96 and drawn.height > 5 * 96


@pytest.mark.parametrize("what", ["zip", "manifest", "npz", "names"])
def test_every_layout_is_surveyed(what, tmp_path, capsys):
    folder = make(tmp_path / "x", *(f"{name}/{name}_{n}.png" for name in ("cat", "dog") for n in range(3)))
    path, options = folder, ()
    if what == "zip":
        path = zipped(folder, tmp_path / "x.zip")
    elif what == "manifest":
        path = folder / "list.csv"
        path.write_text(
            "path,label\n" + "".join(f"{n}/{n}_{i}.png,{n}\n" for n in ("cat", "dog") for i in range(3))
        )
    elif what == "npz":
        path = tmp_path / "x.npz"
        images = np.stack([pixels(seed, 8, 6) for seed in range(6)])
        np.savez(path, images=images, labels=np.array(["cat"] * 3 + ["dog"] * 3))
    else:
        options = ("--labels-from", r"(.+)_\d")
    code, out, err = ask(capsys, "data", path, *options, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["classes"] == ["cat", "dog"] and document["problems"] == []
    assert document["splits"] == {"all": {"n": 6, "per_class": [3, 3]}}
    assert document["sizes"]["largest"] == [8, 6]


def make_unfit(folder: Path) -> None:
    """Archives that are not read, a manifest that lacks a column, and links that lead round in a circle."""
    pictures = {f"{name}/{n}.png": encoded(pixels(n)) for n in range(1, 6) for name in "ab"}
    write_zip(folder / "leads out.zip", **pictures, **{"../evil.png": b"x"})
    said_to_be_encrypted(write_zip(folder / "encrypted.zip", **pictures))
    whole = write_zip(folder / "cut.zip", **pictures)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / "list.csv").write_text("path,labels\nphotos/a/1.png,a\n")
    (folder / "round").symlink_to("round")
    make(folder / "rounds", "a/", "b/")
    (folder / "rounds/a/up").symlink_to("..")
    (folder / "rounds/b/itself.png").symlink_to("itself.png")
    (folder / "rounds/b/a").symlink_to("../a")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("data", "nowhere/at/all"), "no such file or folder"),
        (("data", "empty"), "no pictures in"),
        (("data", "photos", "--labels-from", "("), "is not a regular expression"),
        (("data", "photos", "--data-dir", "."), "the data's place is given twice"),
        (("data", "photos", "--figure", "missing/x.png"), "there is no folder missing"),
        (("data", "demo", "--labels-from", "(.)"), "are for your own pictures, and demo is demo"),
        (("data", "photos", "--per-class", "3"), "needs --figure"),
        (("train", "demo", "--data", "photos"), "has one class only: 'a'"),
        (("train", "demo", "--data", "small"), "class 'b' has 1 picture that can be read"),
        (("train", "demo", "--data", "broken"), "--skip-unreadable goes on without"),
        (("train", "demo", "--data", "demo", "--skip-unreadable"), "are for your own pictures"),
        (
            ("train", "demo", "--data", "leads out.zip"),
            "has a member whose name leads out of it: '../evil.png'",
        ),
        (("train", "demo", "--data", "encrypted.zip"), "is encrypted (a/1.png): make one without a password"),
        (("train", "demo", "--data", "cut.zip"), "is damaged or cut short: not a whole zip"),
        (("train", "demo", "--data", "list.csv"), "has no column 'label'; did you mean 'labels'?"),
        (("train", "demo", "--data", "./round"), "no such file or folder"),
        (("train", "demo", "--data", "rounds"), "no pictures in"),
    ],
)
def test_mistakes_are_one_line(arguments, reason, in_empty_folder, capsys):
    make(in_empty_folder / "photos", "a/1.png", "a/2.png")
    make(in_empty_folder / "small", "b/1.png", *(f"a/{n}.png" for n in range(5)))
    make(in_empty_folder / "broken", *(f"{name}/{n}.png" for name in "ab" for n in range(5)))
    (in_empty_folder / "broken/a/bomb.png").write_bytes(bomb())
    make(in_empty_folder / "empty", "a/")
    make_unfit(in_empty_folder)
    code, out, err = ask(capsys, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert reason in err
    assert not (in_empty_folder / "runs").exists()


def test_files_that_change_between_epochs_change_nothing(tmp_path):
    folder = make(tmp_path / "x", *(f"{name}/{n}.png" for name in "ab" for n in range(5)))
    source = open_source(folder)
    before = np.array(source.load("train").images[:])
    for path in folder.rglob("*.png"):
        path.write_bytes(encoded(pixels(1000)))
    assert np.array_equal(source.load("train").images[:], before)
    assert open_source(folder).checksum != source.checksum


@pytest.mark.parametrize("setting", ["", "data.validation=test", "data.validation=none"])
def test_a_recipe_that_validated_on_the_test_set_leaves_ones_own_test_pictures_alone(
    setting, in_empty_folder, capsys
):
    folder = make(in_empty_folder / "x", *(f"{name}/{n}.png" for name in "ab" for n in range(20)))
    for n in range(6):
        (folder / f"a/copy {n}.png").write_bytes((folder / "a/0.png").read_bytes())
    words = ["--set", setting] if setting else []
    code, _, err = ask(capsys, "train", "vgg1", "--data", folder, *words, *SMALL_OPTIONS, "--out", "run")
    assert code == 0, err
    assert ("vgg1 validated on the test set; with your own pictures" in err) == (setting == "")
    run, source = Run("run"), open_source(folder)
    assert run.data["validation"] == (setting.split("=")[-1] or "stratified")
    assert run.evaluations.get("test_set_uses", []) == []
    assert len(source.load("test").labels) == 9 or len(source.load("test").labels) == 8
    sides = np.zeros(len(source.groups), int)
    sides[run.data["validation_indices"]] = 1
    for group in np.unique(source.groups):
        assert len(set(sides[source.groups == group].tolist())) == 1
    everything = [source.load(split).images[:].reshape(-1, 32 * 32 * 3) for split in ("train", "test")]
    assert not {row.tobytes() for row in everything[0]} & {row.tobytes() for row in everything[1]}


def test_where_there_are_no_pictures_nothing_is_said_but_that(in_empty_folder, capsys):
    code, out, err = ask(capsys, "train", "vgg1", "--data", in_empty_folder / "missing")
    assert (code, out, err.count("\n")) == (2, "", 1) and "no such file or folder" in err


def test_in_python_a_recipe_by_name_leaves_ones_own_test_pictures_alone_too(in_empty_folder):
    folder = make(in_empty_folder / "x", *(f"{name}/{n}.png" for name in "ab" for n in range(8)))
    fields = {"model.widths": [4], "model.dense": 8, "epochs": 1, "device.threads": 1}
    recipe = override(get_recipe("vgg1"), fields)
    by_name = [
        train("vgg1", data=folder, overrides=fields),
        train("vgg1", data=from_folder(folder), overrides=fields),
        *train_group("vgg1", seeds=1, data=str(folder), overrides=fields),
    ]
    assert [run.data["validation"] for run in by_name] == ["stratified"] * 3
    assert train(recipe, data=folder).data["validation"] == "test"  # as it was given


def test_training_says_what_is_wrong_and_goes_on(faulty, in_empty_folder, capsys):
    command = ("train", "demo", "--data", faulty, *SMALL_OPTIONS)
    code, _, err = ask(capsys, *command)
    assert code == 2 and "and 4 more pictures cannot be read; --skip-unreadable goes on without" in err
    code, _, err = ask(capsys, *command, "--skip-unreadable", "--out", "run")
    assert code == 0, err
    assert (
        "note: 5 pictures cannot be read" in err
        and f"note: `{text.command('data', faulty)}` says which" in err
    )
    code, out, err = ask(capsys, "evaluate", "run", "--json")
    assert code == 0, err
    assert [each["name"] for each in json.loads(out)["classes"]] == list(list_pictures(faulty).classes)
    (faulty / "owl" / "1.png").write_bytes(encoded(pixels(1)))
    code, _, err = ask(capsys, "resume", "run", "--epochs", "2")
    assert code == 2 and "was trained on other data" in err
    assert "pictures there were changed, added or taken away since" in err
