"""Training on own pictures: from a folder to probabilities, and every mistake on the way as one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.drawn_pictures import draw, write_folder
from tests.tiny import RECIPE

from cifarlab import evaluate, load_predictor, resume, train
from cifarlab.cli import main
from cifarlab.data import Source, Split, mapped, open_source
from cifarlab.data.listing import Reading
from cifarlab.data.own_pictures import open_pictures
from cifarlab.errors import UserError
from cifarlab.job import prepare
from cifarlab.recipe import override
from cifarlab.recipes import get_recipe
from cifarlab.run import Run


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 30; the last five of each are the first five again, saved as JPEG."""
    folder = write_folder(tmp_path_factory.mktemp("pictures") / "Fläche 🌷", {"rose": 25, "tulip": 25})
    for name in ("rose", "tulip"):
        for index in range(5):
            Image.open(folder / name / f"{index:03d}.png").save(folder / name / f"x{index}.jpg", quality=80)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        fields = {"epochs": 2, "input.size": 40, "input.fit": "letterbox", "batch_size": 8}
        return train(RECIPE, data=str(folder), out=tmp_path_factory.mktemp("runs") / "run", overrides=fields)


def test_a_test_split_is_cut_with_near_duplicates_on_one_side(folder: Path) -> None:
    source = open_source(folder)
    train_split, test = source.load("train"), source.load("test")
    assert np.bincount(train_split.labels).tolist() == [24, 24] and np.bincount(test.labels).tolist() == [
        6,
        6,
    ]
    assert source.groups is not None and len(source.groups) == 48
    for picture in test.images:
        nearest = np.abs(train_split.images[:].astype(int) - picture).mean(axis=(1, 2, 3)).min()
        assert nearest > 16
    again = open_source(folder, fit="crop")
    assert again.checksum == source.checksum and np.array_equal(again.load("test").labels, test.labels)


def test_validation_keeps_near_duplicates_together_too(folder: Path) -> None:
    job = prepare(override(RECIPE, {"batch_size": 8}), open_source(folder))
    groups = job.source.groups
    assert groups is not None
    held_out = set(groups[job.validation_indices].tolist())
    assert held_out and not held_out & set(np.delete(groups, job.validation_indices).tolist())


def test_splits_that_are_given_are_kept(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"a": 6, "b": 6})
    write_folder(tmp_path / "val", {"a": 2, "b": 3}, seed=5)
    source = open_source(tmp_path)
    assert source.splits == ("train",) and len(source.load("train").labels) == 17
    job = prepare(override(RECIPE, {"batch_size": 4}), source)
    assert (job.n_train, job.n_validation) == (12, 5)
    assert job.validation_indices == list(range(12, 17))
    with pytest.raises(UserError, match="has no test pictures, only train"):
        source.load("test")


def test_the_run_remembers_names_and_preparation_and_predicts_the_same_elsewhere(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = tmp_path / "photo.jpg"
    draw(123, 80, 50).save(photo)
    here = load_predictor(run).predict(photo, top=2)[0]
    elsewhere = shutil.copytree(run.path, tmp_path / "another machine" / "run")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    there = load_predictor(elsewhere).predict(photo, top=2)[0]
    assert {ranked.class_name for ranked in there.predictions} == {"rose", "tulip"}
    for a, b in zip(here.predictions, there.predictions, strict=True):
        assert a.class_name == b.class_name and abs(a.probability - b.probability) < 1e-6
    preparation = Run(elsewhere).load_preparation()
    assert (preparation.height, preparation.width, preparation.fit) == (40, 40, "letterbox")


def test_prediction_on_the_files_agrees_with_the_logits_of_evaluation(run: Run, folder: Path) -> None:
    import torch

    evaluate(run)
    stored = Run(run.path).load_logits("test")
    assert stored is not None
    expected = torch.softmax(stored[0][f"logits-{run.default_weights}"].double(), 1).numpy()
    test = open_pictures(folder, size_pixels=40, fit="letterbox").load("test")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = load_predictor(run).predict(files, top=2)
    probabilities = np.array(
        [[r.probability for r in sorted(p.predictions, key=lambda r: r.index)] for p in found]
    )
    nearest = np.abs(probabilities[:, None] - expected).max(axis=2).min(axis=0)
    assert len(test.labels) == 12 and nearest.max() < 1e-5


def test_a_moved_folder_is_found_by_data_dir_and_another_is_refused(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(folder, tmp_path / "moved")
    copied = Run(shutil.copytree(run.path, tmp_path / "run"))
    assert resume(copied, epochs=3, data_dir=moved).metrics[-1]["epoch"] == 3
    draw(7).save(moved / "rose" / "000.png")
    with pytest.raises(UserError, match="was trained on other data"):
        resume(copied, epochs=4, data_dir=moved)
    away = folder.rename(tmp_path / "away")
    with pytest.raises(UserError, match="pictures are not at .* any more: --data-dir says where"):
        resume(copied, epochs=4)
    away.rename(folder)
    shutil.rmtree(moved)
    with pytest.raises(UserError, match="no such file or folder"):
        resume(copied, epochs=4, data_dir=moved)


def test_pictures_that_stay_on_the_disk_give_the_same_training(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "SHARE_OF_MEMORY", 0.0)
    assert isinstance(open_source(folder).load("train").images, mapped.MappedPictures)
    fields = {"epochs": 2, "input.size": 40, "input.fit": "letterbox", "batch_size": 8}
    other = train(RECIPE, data=str(folder), out=tmp_path / "run", overrides=fields)
    assert other.weights_checksum("last") == run.weights_checksum("last")
    ours, theirs = evaluate(other), evaluate(run)
    assert (ours.loss, ours.confusion) == (theirs.loss, theirs.confusion)


def test_the_demo_set_as_files_trains_to_the_same_weights(tmp_path: Path) -> None:
    """PNG keeps every pixel: read back in the same order, files are the data set that was written."""
    demo = open_source("demo").load("train")
    for index in range(200):
        folder = tmp_path / "files" / f"{demo.labels[index]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(demo.images[index]).save(folder / f"{index:05d}.png")
    files = open_source(tmp_path / "files")
    stems = [path.stem for path in sorted((tmp_path / "files").rglob("*.png"))]
    every = open_pictures(tmp_path / "files").load("train")
    assert files.classes == tuple("0123456789") and len(every.labels) < len(stems)
    direct = Split(demo.images[:200], demo.labels[:200])
    settings = override(RECIPE, {"epochs": 1, "batch_size": 50, "data.validation_fraction": 0.5})
    as_files = replace(files, read=lambda _: _in_file_order(tmp_path / "files", stems), groups=None)
    arrays = Source("direct", "", files.classes, "sha256:0", lambda _: direct)
    a = train(settings, data=as_files, out=tmp_path / "a")
    b = train(settings, data=arrays, out=tmp_path / "b")
    assert a.weights_checksum("last") == b.weights_checksum("last")


def _in_file_order(folder: Path, stems: list[str]) -> Split:
    from cifarlab.data.decoded import decode
    from cifarlab.data.listing import list_pictures

    listing = list_pictures(folder)
    order = np.argsort(np.array(stems, int))
    labels = np.array([entry.label for entry in listing.entries], np.int64)
    return Split(decode(listing, 32, "squash").pixels[order], labels[order])


def test_unreadable_pictures_stop_a_training_unless_they_are_to_be_skipped(
    folder: Path, tmp_path: Path
) -> None:
    bad = shutil.copytree(folder, tmp_path / "bad")
    (bad / "rose" / "001.png").write_bytes(b"")
    (bad / "tulip" / "002.png").write_bytes(b"GIF89a")
    with pytest.raises(
        UserError, match=r"rose/001.png is empty \(0 bytes\), and 1 more .* --skip-unreadable"
    ):
        open_source(bad)
    source = open_source(bad, reading=Reading(skip_unreadable=True))
    assert len(source.load("train").labels) + len(source.load("test").labels) == 58
    assert source.reading is not None and source.reading["skip_unreadable"]


@pytest.mark.parametrize(
    "classes, message",
    [
        ({"a": 5, "b": 1}, "class 'b' has 1 picture that can be read; 3 are the fewest"),
        ({"a": 5, "b": 2, "c": 1}, "class 'b' has 2 pictures that can be read, and 1 more"),
        ({"a": 5}, "one class only"),
    ],
)
def test_too_little_to_train_on_is_one_line(tmp_path: Path, classes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_source(write_folder(tmp_path / "few", classes))
    assert "\n" not in str(caught.value)


def test_ten_a_class_are_enough_for_every_split(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path / "few", {"a": 10, "b": 10, "c": 3}))
    job = prepare(override(RECIPE, {"batch_size": 4, "data.validation_fraction": 0.1}), source)
    assert np.bincount(source.load("test").labels).tolist() == [2, 2, 1]
    validation = source.load("train").labels[job.validation_indices]
    assert np.bincount(validation).tolist() == [1, 1, 1]


def test_folds_keep_near_duplicates_together(folder: Path) -> None:
    source = open_source(folder)
    assert source.groups is not None
    seen: list[int] = []
    for fold in range(3):
        fields = {"data.validation": "fold", "data.folds": 3, "data.fold": fold, "batch_size": 8}
        job = prepare(override(RECIPE, fields), source)
        inside = set(source.groups[job.validation_indices].tolist())
        assert not inside & set(np.delete(source.groups, job.validation_indices).tolist())
        assert 14 <= job.n_validation <= 18
        seen += job.validation_indices
    assert sorted(seen) == list(range(48))


@pytest.mark.parametrize("recipe", ["vgg3-bn", "airbench94", "vgg1"])
@pytest.mark.parametrize("size", [64, 224])
def test_recipes_adapt_to_larger_pictures(recipe: str, size: int) -> None:
    before, after = get_recipe(recipe), override(get_recipe(recipe), {"input.size": size})
    more = {64: 1, 224: 2}[size]
    assert after.model.widths == before.model.widths + before.model.widths[-1:] * more
    assert after.augment.crop_padding == round(before.augment.crop_padding * size / 32)
    kept = override(
        get_recipe(recipe), {"input.size": size, "model.widths": [8, 8, 8], "model.convolutions": 3}
    )
    assert kept.model.widths == (8, 8, 8)
    assert override(after, {"seed": 3}).model == after.model


def test_a_network_that_grows_too_large_says_so(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path / "few", {"a": 3, "b": 3}), size_pixels=224)
    recipe = override(get_recipe("dense4"), {"input.size": 224, "batch_size": 2})
    with pytest.raises(
        UserError, match="mlp on pictures of 224x224 pixels would have .* more than 100,000,000"
    ):
        prepare(recipe, source)


def test_a_run_on_own_pictures_begins_with_the_weights_of_another(run: Run, tmp_path: Path) -> None:
    fields = {"epochs": 1, "input.size": 40, "batch_size": 4}
    folder = write_folder(tmp_path / "trees", {"fir": 6, "oak": 6, "yew": 6}, seed=50)
    begun = train(RECIPE, data=folder, out=tmp_path / "run", overrides=fields, init_from=run)
    assert begun.data["initial_weights"]["new_layers"] == ["output"] and begun.classes == (
        "fir",
        "oak",
        "yew",
    )


def test_the_command_line_from_folder_to_comparison(
    folder: Path, tmp_path: Path, small_settings: list[str], capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIFARLAB_DATA", raising=False)
    settings = [each.replace("4400", "12") for each in small_settings]
    assert main(["train", "demo", "--data", str(folder), "--out", "run", "--seeds", "2", *settings]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run/seed-0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 12
    assert main(["predict", "run/seed-1", str(folder / "rose" / "003.png"), "--json"]) == 0
    assert {each["class"] for each in json.loads(capsys.readouterr().out)[0]["predictions"]} == {
        "rose",
        "tulip",
    }
    assert main(["report", "run/seed-0", "--out", "report.html"]) == 0 and Path("report.html").is_file()
    assert main(["resume", "run/seed-0", "--epochs", "3"]) == 0
    assert main(["train", "demo", "--data", "./nowhere", "--out", "other"]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert main(["train", "demo", "--data", str(folder / "rose"), "--out", "other"]) == 2
    assert not Path("other").exists()
