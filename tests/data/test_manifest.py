"""Pictures named in a table."""

from pathlib import Path

import pytest
from picture_files import make, zipped

from cifarlab.data.listing import Listing, list_pictures
from cifarlab.errors import UserError

TABLE = "path,label,split\na/1.png,cat,train\nb/2.png,dog,train\na/3.png,cat,test\n"


def told(listing: Listing) -> list[tuple[str, str, str | None]]:
    return [(entry.name, listing.classes[entry.label], entry.split) for entry in listing.entries]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list_pictures(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding, newline="")
    return path


def write_parquet(file: Path, **columns: list) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), file)
    return file


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return make(tmp_path / "in" / "x", "a/1.png", "b/2.png", "a/3.png", "a/unused.png")


AS_TABLE = [("a/1.png", "cat", "train"), ("b/2.png", "dog", "train"), ("a/3.png", "cat", "test")]


@pytest.mark.parametrize(
    "text",
    [
        TABLE,
        "\ufeff" + TABLE.replace("\n", "\r\n"),
        TABLE.replace(",", ";"),
        TABLE.replace(",", "\t"),
        TABLE.replace("path,label,split", "Label , other,PATH,Split").replace("a/1.png,cat,", 'cat,"x, y",a/1.png,')
        .replace("b/2.png,dog,", "dog,,b/2.png,").replace("a/3.png,cat,", "cat,,a/3.png,"),
        TABLE.replace("/", "\\"),
        TABLE.replace("test\n", "Testing\n\n"),
    ],
    ids=["plain", "from Excel", "semicolons", "tabs", "columns in any order", "from Windows", "a blank line"],
)  # fmt: skip
def test_a_table_of_pictures(pictures, text):
    listing = list_pictures(written(pictures / "anything.csv", text))
    assert told(listing) == AS_TABLE
    assert listing.location == pictures / "anything.csv"
    assert listing.read(listing.entries[1]) == (pictures / "b/2.png").read_bytes()


def test_a_parquet_table(pictures):
    columns = {"path": ["a/1.png", "b/2.png"], "label": [10, 9], "size": [1.5, 2.5]}
    listing = list_pictures(write_parquet(pictures / "t.parquet", **columns))
    assert told(listing) == [("a/1.png", "10", None), ("b/2.png", "9", None)]
    assert listing.classes == ("9", "10") and listing.splits == ()


@pytest.mark.parametrize("place", ["folder", "zip", "zip of the folder"])
def test_a_table_within(pictures, tmp_path, place):
    written(pictures / "labels.csv", TABLE)
    written(pictures / "other.csv", "image,class\nx,y\n")
    path = pictures if place == "folder" else tmp_path / "given.zip"
    if place != "folder":
        zipped(pictures if place == "zip" else tmp_path / "in", path)
    top = "x/" if place == "zip of the folder" else ""
    listing = list_pictures(path)
    assert told(listing) == [(top + name, label, split) for name, label, split in AS_TABLE]
    assert listing.left_out == ((top + "a/unused.png", "not in the manifest"),)
    assert listing.read(listing.entries[1]) == (pictures / "b/2.png").read_bytes()


def test_paths_from_elsewhere(pictures, tmp_path):
    text = f"path,label\n../in/x/a/1.png,cat\n{pictures}/b/2.png,dog\n"
    listing = list_pictures(written(tmp_path / "lists" / "t.csv", text))
    for entry, name in zip(listing.entries, ("a/1.png", "b/2.png"), strict=True):
        assert listing.read(entry) == (pictures / name).read_bytes()
        assert listing.tree.state(entry.name)[0] > 0


def test_paths_that_lead_out_of_a_zip_find_nothing(pictures, tmp_path):
    written(pictures / "labels.csv", "path,label\n../../etc/passwd,cat\n/etc/passwd,dog\n")
    listing = list_pictures(zipped(pictures, tmp_path / "a.zip"))
    for entry in listing.entries:
        with pytest.raises(UserError, match="it is not in the zip"):
            listing.read(entry)


def test_missing_files_are_told_when_they_are_read(pictures):
    listing = list_pictures(written(pictures / "t.csv", "path,label\na/1.png,cat\nb/gone.png,dog\n"))
    assert listing.tree.state("b/gone.png") == (0,)
    with pytest.raises(UserError, match=r"^b/gone.png cannot be read: no such file"):
        listing.read(listing.entries[1])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,class\na.png,cat\n", "has no column 'label' (its columns are path and class; a manifest has"),
        ("paths,label\na.png,cat\n", "has no column 'path'; did you mean 'paths'?"),
        ("", "has no column 'path' (its columns are none;"),
        ("path,label\n", "names no picture"),
        ("path,label\na.png,cat\nb.png\n", "row 2 has no label"),
        ("path,label\n  ,cat\n", "row 1 has no path"),
        (
            "path,label,split\na.png,cat,train\nb.png,cat,dev\n",
            "row 2 has the split 'dev'; it should be train,",
        ),
        ("path,label,split\na.png,cat,train\nb.png,cat,\n", "row 2 has no split"),
        ('path,label\n"a.png,cat\n', "is not a table of comma-separated values"),
    ],
)
def test_tables_that_do_not_do(tmp_path, text, reason):
    path = written(tmp_path / "t.csv", text)
    assert str(path) in refusal(path) and reason in refusal(path)


def test_a_table_in_another_encoding(tmp_path):
    assert "is not text in UTF-8 (byte 16)" in refusal(
        written(tmp_path / "t.csv", "path,label\na.pngé", "latin-1")
    )


def test_a_parquet_file_that_is_not_one(tmp_path):
    pytest.importorskip("pyarrow")
    assert f"cannot read {tmp_path / 't.parquet'}: " in refusal(written(tmp_path / "t.parquet", "PAR1 no"))


def test_parquet_labels_that_are_missing(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", path=["1.png", "2.png"], label=["cat", None])
    assert "row 2 has no label" in refusal(path)


def test_parquet_without_its_library(pictures, monkeypatch):
    path = write_parquet(pictures / "t.parquet", path=["a/1.png"], label=["cat"])
    monkeypatch.setattr("cifarlab.data.layouts.manifest.find_spec", lambda _: None)
    assert "needs a library: pip install 'cifarlab[parquet]'" in refusal(path)
    assert list_pictures(pictures).classes == ("a", "b")
    for name in ("a", "b"):
        (pictures / name).rename(pictures / f"{name}.folder")
    flat = make(pictures / "flat", "1.png")
    path.rename(flat / "t.parquet")
    assert "to read t.parquet: pip install 'cifarlab[parquet]'" in refusal(flat)


def test_two_tables(pictures):
    for name in ("one.csv", "two.csv"):
        written(pictures / name, TABLE)
    assert "has 2 manifests, one.csv and two.csv: name the one to use" in refusal(pictures)
