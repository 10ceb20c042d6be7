"""What pictures a person has: layouts, and what is wrong with them."""

import pickle
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifarlab.data.listing import Listing, list_pictures
from cifarlab.errors import UserError


def picture(seed: int = 0, size: tuple[int, int] = (8, 6), format: str = "PNG") -> bytes:
    """A small picture of noise, as the bytes of a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def make(root: Path, *names: str) -> Path:
    """A folder with a picture under each name, or an empty folder where a name ends with `/`."""
    for seed, name in enumerate(names):
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed))
    return root


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for inside in sorted(folder.rglob("*")):
            archive.write(inside, inside.relative_to(folder))
    return path


def told(listing: Listing) -> list[tuple[str, str, str | None]]:
    """(name, class, split) of each entry."""
    return [(entry.name, listing.classes[entry.label], entry.split) for entry in listing.entries]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list_pictures(path)
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
