"""Pictures as arrays in one file."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifarlab.data.listing import Listing, list_pictures
from cifarlab.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (6, 5, 4, 3), np.uint8)
LABELS = np.array([0, 1, 0, 10, 10, 2])


def save(path: Path, **arrays: object) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def read(listing: Listing) -> list[np.ndarray]:
    return [np.array(Image.open(io.BytesIO(listing.read(entry)))) for entry in listing.entries]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list_pictures(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("images", [GREY, RGB, GREY[..., None], np.concatenate([RGB, RGB[..., :1]], 3)])
@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("X", "y")])
def test_pictures_and_labels(tmp_path, images, names):
    listing = list_pictures(
        save(tmp_path / "a.npz", **dict(zip(names, (images, LABELS[:, None]), strict=True)))
    )
    assert listing.classes == ("0", "1", "2", "10") and listing.splits == ()
    assert [entry.label for entry in listing.entries] == [0, 1, 0, 3, 3, 2]
    assert listing.entries[4].name == f"{names[0]}[4]"
    again = pickle.loads(pickle.dumps(listing))
    for one in (listing, again):
        assert np.array_equal(np.stack(read(one)), images[..., 0] if images.shape[3:] == (1,) else images)


@pytest.mark.parametrize("form", ["x_{}", "{}_images"])
def test_splits(tmp_path, form):
    form_y = form.replace("x_", "y_").replace("images", "labels")
    arrays = {}
    for split, part in (("train", slice(0, 3)), ("val", slice(3, 4)), ("test", slice(4, 6))):
        arrays |= {form.format(split): RGB[part], form_y.format(split): LABELS[part]}
    listing = list_pictures(save(tmp_path / "a.npz", **arrays))
    assert [entry.split for entry in listing.entries] == ["train"] * 3 + ["validation"] + ["test"] * 2
    assert np.array_equal(np.stack(read(listing)), RGB)


def test_class_names(tmp_path):
    names = np.array(["cat", "dog", "owl", "никто"])
    listing = list_pictures(
        save(tmp_path / "a.npz", images=RGB[:3], labels=np.array([2, 0, 2]), classes=names)
    )
    assert listing.classes == ("cat", "owl") and listing.empty_classes == ("dog", "никто")
    assert [entry.label for entry in listing.entries] == [1, 0, 1]
    listing = list_pictures(save(tmp_path / "b.npz", images=RGB[:2], labels=np.array(["b", "a"])))
    assert listing.classes == ("a", "b")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (
            {"arr_0": RGB, "arr_1": LABELS},
            "has the arrays arr_0 and arr_1; pictures and labels are looked for",
        ),
        ({"images": RGB / 255, "labels": LABELS}, "images is float64 (6, 5, 4, 3); pictures are uint8"),
        ({"images": np.zeros((6, 3, 5, 5), np.uint8), "labels": LABELS}, "its channels come first"),
        ({"images": RGB[0, 0], "labels": LABELS}, "images is uint8 (4, 3); pictures are"),
        ({"images": RGB, "labels": LABELS[:5]}, "labels is int64 (5,); 6 whole numbers or names are needed"),
        ({"images": RGB, "labels": np.eye(6)}, "labels is float64 (6, 6); 6 whole numbers or names"),
        (
            {"images": RGB, "labels": LABELS, "classes": np.array(["a", "b"])},
            "labels[3] is 10, and there are 2",
        ),
        ({"images": RGB, "labels": LABELS, "classes": np.array(2)}, "classes is int64 (); a list of names"),
        ({"images": RGB, "labels": LABELS, "classes": np.array(["a", "a"])}, "each of them once"),
        ({"images": RGB[:0], "labels": LABELS[:0]}, "its arrays are empty"),
        ({"images": RGB, "labels": LABELS, "x_test": RGB, "y_test": LABELS}, "with a split and without"),
    ],
)
def test_arrays_that_do_not_do(tmp_path, arrays, reason):
    assert reason in refusal(save(tmp_path / "a.npz", **arrays))


def test_objects_are_not_unpickled(tmp_path):
    objects = np.array([{"a": 1}] * 6, object)
    path = tmp_path / "a.npz"
    np.savez(path, images=RGB, labels=objects)
    assert f"{path} cannot be read as NumPy's .npz: Object arrays cannot be loaded" in refusal(path)


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_file_cut_short(tmp_path, share):
    path = save(tmp_path / "a.npz", images=RGB, labels=LABELS)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "cannot be read as NumPy's .npz" in refusal(path)


def test_more_than_the_memory_holds(tmp_path, monkeypatch):
    path = save(tmp_path / "a.npz", images=np.zeros((10, 400, 400, 3), np.uint8), labels=np.arange(10))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr("os.sysconf", lambda _: 1000)
    assert "holds 4.8 MB, and this machine has 1.0 MB of memory" in refusal(path)
