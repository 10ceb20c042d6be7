"""What pictures a person has: layouts, and what is wrong with them."""

import pickle
from pathlib import Path

import pytest
from picture_files import make, write_zip, zipped

from cifarlab.data.listing import Listing, Reading, check_trainable, list_pictures
from cifarlab.errors import UserError


def told(listing: Listing) -> list[tuple[str, str, str | None]]:
    """(name, class, split) of each entry."""
    return [(entry.name, listing.classes[entry.label], entry.split) for entry in listing.entries]


def refusal(path: Path, labels_from: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        check_trainable(list_pictures(path, Reading(labels_from=labels_from)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=["folder", "zip"])
def as_given(request, tmp_path):
    """Gives a folder as it is, or as a zip of it."""
    return lambda folder: folder if request.param == "folder" else zipped(folder, tmp_path / "given.zip")


# --- class folders ---


def test_a_folder_for_each_class(tmp_path, as_given):
    folder = make(tmp_path / "photos", "dog/1.png", "cat/b.PNG", "cat/tabby/a.jpeg", "bird/", "cat/notes.txt")
    listing = list_pictures(as_given(folder))
    assert told(listing) == [
        ("cat/b.PNG", "cat", None),
        ("cat/tabby/a.jpeg", "cat", None),
        ("dog/1.png", "dog", None),
    ]
    assert listing.classes == ("cat", "dog") and listing.empty_classes == ("bird",) and listing.splits == ()
    assert listing.left_out == (("cat/notes.txt", "not a picture, by its suffix"),)
    assert listing.read(listing.entries[2]) == (folder / "dog/1.png").read_bytes()
    again = pickle.loads(pickle.dumps(listing))
    assert again.read(again.entries[0]) == (folder / "cat/b.PNG").read_bytes()


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_folders_of_splits(tmp_path, as_given, validation):
    folder = make(
        tmp_path / "photos", "train/cat/1.png", "train/dog/2.png", f"{validation}/cat/3.png", "test/dog/4.png",
        "test/loose.png", "unlabelled/5.png", "test/owl/",
    )  # fmt: skip
    listing = list_pictures(as_given(folder))
    assert {split: [name for name, _, s in told(listing) if s == split] for split in listing.splits} == {
        "train": ["train/cat/1.png", "train/dog/2.png"],
        "validation": [f"{validation}/cat/3.png"],
        "test": ["test/dog/4.png"],
    }
    assert listing.layout == f"class folders in train, {validation}, test"
    assert listing.empty_classes == ("owl",)
    assert dict(listing.left_out) == {
        "test/loose.png": "not in a class folder",
        "unlabelled/5.png": "beside the folders of splits",
    }


def test_folders_that_hold_one_folder_are_passed_through(tmp_path, as_given):
    listing = list_pictures(
        as_given(make(tmp_path / "x", "a/photos/cat/1.png", "a/photos/dog/2.png", "a/photos/owl/"))
    )
    assert listing.classes == ("cat", "dog") and listing.empty_classes == ("owl",)
    assert [entry.name for entry in listing.entries] == ["a/photos/cat/1.png", "a/photos/dog/2.png"]


def test_a_zip_with_its_root_as_a_member(tmp_path):
    """As bsdtar writes it: `tar -a -cf a.zip .`."""
    listing = list_pictures(
        write_zip(tmp_path / "a.zip", **{"./": b"", "./photos/cat/1.png": b"1", "./photos/dog/1.png": b"2"})
    )
    assert told(listing) == [("photos/cat/1.png", "cat", None), ("photos/dog/1.png", "dog", None)]
    assert listing.empty_classes == () and listing.read(listing.entries[1]) == b"2"
    flat = write_zip(
        tmp_path / "b.zip", **{"./": b"", "./cat/1.png": b"1", "./dog/1.png": b"2", "./owl/": b""}
    )
    assert list_pictures(flat).empty_classes == ("owl",)


def test_pictures_may_lie_deeper_in_all_classes(tmp_path):
    assert list_pictures(make(tmp_path, "cat/a/1.png", "dog/b/1.png")).classes == ("cat", "dog")


def test_train_may_be_a_class_among_others(tmp_path):
    listing = list_pictures(make(tmp_path, "car/1.png", "plane/1.png", "train/1.png"))
    assert listing.classes == ("car", "plane", "train") and listing.splits == ()


def test_numbers_are_in_the_order_of_their_size(tmp_path):
    assert list_pictures(make(tmp_path, "10/a.png", "9/a.png", "0/a.png")).classes == ("0", "9", "10")


def test_names_of_any_script(tmp_path, as_given):
    names = ("Кошка", "犬 と 猫", "🦊 fox", "a'b\"c", "ελάφι")
    listing = list_pictures(as_given(make(tmp_path / "x", *(f"{name}/foto ñ 😀.png" for name in names))))
    assert set(listing.classes) == set(names)
    for entry in listing.entries:
        assert listing.read(entry).startswith(b"\x89PNG")


def test_what_systems_leave_behind_is_passed_over(tmp_path, as_given):
    folder = make(
        tmp_path / "x", "cat/1.png", "dog/1.png", ".DS_Store", "cat/Thumbs.db", "cat/._1.png", "__MACOSX/cat/1.png",
        ".git/a.png", "dog/@eaDir/1.png", "cat/desktop.ini", "dog/.hidden/1.png",
    )  # fmt: skip
    listing = list_pictures(as_given(folder))
    assert [entry.name for entry in listing.entries] == ["cat/1.png", "dog/1.png"]
    assert listing.left_out == () and listing.empty_classes == ()


def test_pictures_beside_the_class_folders_are_told(tmp_path, as_given):
    listing = list_pictures(as_given(make(tmp_path / "x", "cat/1.png", "dog/1.png", "loose.png")))
    assert listing.left_out == (("loose.png", "not in a class folder"),)


# --- what cannot be trained on ---


def test_what_is_not_there(tmp_path):
    make(tmp_path, "photos/")
    assert refusal(tmp_path / "photo").endswith("photo; did you mean 'photos'?")


@pytest.mark.parametrize("names", [(), ("cat/", "dog/"), (".hidden/1.png",)])
def test_no_pictures(tmp_path, as_given, names):
    (tmp_path / "x").mkdir()
    assert "no pictures in" in refusal(as_given(make(tmp_path / "x", *names)))


def test_no_pictures_but_other_files(tmp_path):
    make(tmp_path, "cat/1.tif", "cat/2.tif", "dog/1.txt")
    assert refusal(tmp_path).endswith("; other files: 2 of .tif, 1 of .txt")


def test_one_class(tmp_path, as_given):
    assert "has one class only: 'cat'" in refusal(
        as_given(make(tmp_path / "x", "cat/1.png", "cat/2.png", "dog/"))
    )


def test_no_class_folders(tmp_path, as_given):
    told = refusal(as_given(make(tmp_path / "x", "cat_1.png", "dog_1.png")))
    assert "no folder for each class" in told and "--labels-from" in told


def test_a_class_without_training_pictures(tmp_path):
    told = refusal(make(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/owl/1.png"))
    assert told.endswith("has no training picture of owl")


def test_splits_or_classes(tmp_path):
    assert "is train a split or a class?" in refusal(make(tmp_path / "a", "train/x/1.png", "car/x/1.png"))
    told = refusal(make(tmp_path / "b", "train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png"))
    assert "the validation split twice: val and valid" in told


def test_a_file_that_is_no_data_set(tmp_path):
    assert "is a file, but not a data set" in refusal(make(tmp_path, "1.png") / "1.png")


# --- labels from names ---


def test_labels_from_file_names(tmp_path, as_given):
    folder = as_given(make(tmp_path / "x", "great_owl_017.jpg", "below/cat_2.png", "dog_3.PNG", "notes.txt"))
    listing = list_pictures(folder, Reading(labels_from=r"(.+)_\d+"))
    assert told(listing) == [
        ("below/cat_2.png", "cat", None), ("dog_3.PNG", "dog", None), ("great_owl_017.jpg", "great_owl", None),
    ]  # fmt: skip
    assert listing.left_out == (("notes.txt", "not a picture, by its suffix"),)


@pytest.mark.parametrize("pattern", [r"(?P<split>\w+)-(?P<label>\w+)-", r"(?P<label>\w+)-\d"])
def test_splits_from_file_names(tmp_path, pattern):
    names = "train/train-cat-1.png", "train/train-dog-1.png", "test/test-cat-1.png"
    listing = list_pictures(make(tmp_path, *names), Reading(labels_from=pattern))
    assert {(label, split) for _, label, split in told(listing)} == {
        ("cat", "train"), ("dog", "train"), ("cat", "test"),
    }  # fmt: skip


def test_labels_from_the_whole_path(tmp_path):
    listing = list_pictures(make(tmp_path, "a/cat/1.png", "b/dog/1.png"), Reading(labels_from="./(.+)/"))
    assert listing.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(.+", "is not a regular expression"),
        (".+", "has no group"),
        (r"([a-z]+)_\d", "finds no label in 1 of the 2 pictures in"),
        (r"(x?)", "finds no label in 2 of the 2 pictures in"),
        (r"(.)(?P<split>_1)?", "has one class only"),
    ],
)
def test_patterns_that_do_not_do(tmp_path, pattern, reason):
    assert reason in refusal(make(tmp_path, "cat_1.png", "cat.png"), pattern)


def test_splits_in_some_names_only(tmp_path):
    make(tmp_path, "train/cat_1.png", "dog_1.png")
    assert "1 pictures are of a split and 1 of none, as dog_1.png" in refusal(tmp_path, "(cat|dog)")


def test_a_pattern_for_what_has_labels(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\n")
    assert "--labels-from is for a folder or zip" in refusal(tmp_path / "a.csv", "(.)")
