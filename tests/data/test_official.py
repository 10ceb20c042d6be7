"""CIFAR-100 and SVHN in their official formats, as small files of random pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from picture_files import make
from scipy.io import savemat
from small_cifar import pack, python_batch

from cifarlab.cli import main
from cifarlab.data import open_source, sources
from cifarlab.data.cifar import Archive, BatchFile, Dataset, Layout
from cifarlab.data.official import CIFAR10, CIFAR100, CIFAR100_COARSE, OFFICIAL, SVHN
from cifarlab.errors import UserError
from cifarlab.files import cache_dir

N_TRAIN, N_TEST = 24, 8
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (N_TRAIN + N_TEST, 32, 32, 3), np.uint8)
FINE = GENERATOR.permutation(100)[: N_TRAIN + N_TEST]
COARSE = GENERATOR.integers(0, 20, N_TRAIN + N_TEST)
DIGITS = np.arange(N_TRAIN + N_TEST) % 10
PARTS = {"train": slice(0, N_TRAIN), "test": slice(N_TRAIN, None)}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def cifar100_files() -> dict[str, dict[str, bytes]]:
    rows = IMAGES.transpose(0, 3, 1, 2).reshape(len(IMAGES), 3072)
    python, binary = {"meta": b"\x80\x02}."}, {}
    for name, part in PARTS.items():
        python[name] = python_batch(rows[part], FINE[part], COARSE[part])
        labels = np.stack([COARSE[part], FINE[part]], axis=1).astype(np.uint8)
        binary[name + ".bin"] = np.concatenate([labels, rows[part]], axis=1).tobytes()
    return {"cifar-100-python": python, "cifar-100-binary": binary}


def svhn_files() -> dict[str, dict[str, bytes]]:
    files = {}
    for name, part in PARTS.items():
        buffer = io.BytesIO()
        digits = np.where(DIGITS[part] == 0, 10, DIGITS[part]).astype(np.uint8)[:, None]
        savemat(buffer, {"X": IMAGES[part].transpose(1, 2, 3, 0), "y": digits}, do_compression=True)
        files[f"{name}_32x32.mat"] = buffer.getvalue()
    return {"svhn": files}


FILES = cifar100_files() | svhn_files()


def small(dataset: Dataset) -> Dataset:
    """`dataset`, but of these files."""
    return dataclasses.replace(dataset, layouts=tuple(_small_layout(layout) for layout in dataset.layouts))


def _small_layout(layout: Layout) -> Layout:
    files = FILES[layout.folder]

    def described(batches: tuple[BatchFile, ...], images: int) -> tuple[BatchFile, ...]:
        return tuple(BatchFile(b.name, len(files[b.name]), sha256(files[b.name]), images) for b in batches)

    archive = layout.archive and archived(layout.archive.name, pack(layout.folder, files))
    downloads = tuple(archived(file.name, files[file.name]) for file in layout.downloads)
    train, test = described(layout.train, N_TRAIN), described(layout.test, N_TEST)
    return dataclasses.replace(
        layout, train=train, test=test, other=described(layout.other, 0), archive=archive, downloads=downloads
    )


def archived(name: str, data: bytes) -> Archive:
    return Archive(name, len(data), sha256(data), (f"https://example.org/{name}",))


@pytest.fixture(autouse=True)
def on_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("CIFARLAB_DATA", raising=False)
    for dataset in (CIFAR100, CIFAR100_COARSE, SVHN):
        monkeypatch.setitem(sources.DATASETS, dataset.name, small(dataset))
    monkeypatch.setattr(
        "cifarlab.data.download.fetch", lambda *_: pytest.fail("would have gone to the network")
    )


def put(parent: Path, folder: str, as_archive: bool = False) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    if as_archive:
        path = parent / f"{folder}.tar.gz"
        path.write_bytes(pack(folder, FILES[folder]))
        return path
    (parent / folder).mkdir()
    for name, data in FILES[folder].items():
        (parent / folder / name).write_bytes(data)
    return parent / folder


@pytest.mark.parametrize("folder", FILES)
@pytest.mark.parametrize("command", ["data", "train"])
def test_an_incomplete_official_folder_given_as_a_path_says_what_is_missing(
    tmp_path, capsys, folder, command
):
    place = put(tmp_path, folder)
    gone = sorted(FILES[folder])[-1]
    (place / gone).unlink()
    words = ["data"] if command == "data" else ["train", "cnn4", "--out", str(tmp_path / "run"), "--data"]
    for given in (place, tmp_path):
        assert main([*words, str(given)]) == 2
        error = capsys.readouterr().err
        assert f"in {place} is not complete: {gone} missing" in error and error.count("\n") == 1


@pytest.mark.parametrize("folder", FILES)
def test_a_damaged_official_file_given_as_a_path_is_named(tmp_path, capsys, folder):
    place = put(tmp_path, folder)
    damaged = place / sorted(FILES[folder])[-1]
    damaged.write_bytes(damaged.read_bytes()[:-7])
    assert main(["data", str(place)]) == 2
    error = capsys.readouterr().err
    assert f"{damaged.name} in {place} is cut short" in error and error.count("\n") == 1


def test_folders_called_as_official_files_are_ones_own(tmp_path, capsys):
    """CIFAR-100's files are called train, test and meta."""
    make(
        tmp_path / "own", *(f"{split}/{name}/1.png" for split in ("train", "test") for name in "ab"), "meta/"
    )
    assert main(["data", str(tmp_path / "own"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["test"]["n"] == 2
    (tmp_path / "none" / "train" / "a").mkdir(parents=True)
    (tmp_path / "none" / "test").mkdir()
    assert main(["data", str(tmp_path / "none")]) == 2
    assert "no pictures in" in capsys.readouterr().err


def assert_right(name: str, labels: np.ndarray, given: Path | None) -> str:
    """The content's checksum."""
    source = open_source(name, given)
    for split, part in PARTS.items():
        content = source.load(split)
        assert content.images.flags.c_contiguous and content.labels.dtype == np.int64
        assert np.array_equal(content.images, IMAGES[part])
        assert np.array_equal(content.labels, labels[part])
    return source.checksum


@pytest.mark.parametrize("folder", ["cifar-100-python", "cifar-100-binary"])
@pytest.mark.parametrize("as_archive", [False, True])
@pytest.mark.parametrize(("name", "labels"), [("cifar100", FINE), ("cifar100-coarse", COARSE)])
def test_cifar100_is_read_with_fine_and_with_coarse_labels(tmp_path, folder, as_archive, name, labels):
    given = put(tmp_path, folder, as_archive)
    checksum = assert_right(name, labels, tmp_path)
    assert open_source(name, given).location == str(given)
    parts = [part for cut in PARTS.values() for part in (IMAGES[cut], labels[cut].astype(np.uint8))]
    assert checksum == "sha256:" + sha256(b"".join(part.tobytes() for part in parts))


@pytest.mark.parametrize("given", ["svhn", "."])
def test_svhn_is_read_and_its_label_ten_is_the_digit_nought(tmp_path, given):
    put(tmp_path, "svhn")
    assert_right("svhn", DIGITS, tmp_path / given)
    assert open_source("svhn", tmp_path).classes[DIGITS[0]] == "0"


def test_the_contents_checksum_is_computed_once_and_then_known(tmp_path, monkeypatch):
    folder = put(tmp_path, "cifar-100-binary")
    first = assert_right("cifar100", FINE, folder)
    monkeypatch.setattr("cifarlab.data.sources.cifar.read_split", lambda *_: pytest.fail("read again"))
    assert assert_right("cifar100", FINE, folder) == first
    assert assert_right("cifar100", FINE, None) == first  # from the cache alone
    known = next(cache_dir().rglob("cifar100-*.json"))
    known.write_text("{}")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setitem(sources.DATASETS, "cifar100", small(CIFAR100))
    assert assert_right("cifar100", FINE, folder) == first


@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [("cifar100", "cifar-100-python", "train"), ("svhn", "svhn", "test_32x32.mat")],
)
def test_altered_and_missing_files_are_named(tmp_path, name, folder, file):
    path = put(tmp_path, folder) / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(
        UserError, match=f"{file} in .* is damaged: .* replace (it|the folder) by a fresh copy"
    ):
        open_source(name, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=f"is not complete: {file} missing"):
        open_source(name, tmp_path)


def test_what_is_not_there_is_told_with_the_names_that_are_looked_for(tmp_path):
    with pytest.raises(UserError, match="nor a folder cifar-100-python or cifar-100-binary, nor an archive"):
        open_source("cifar100", tmp_path)
    with pytest.raises(UserError, match=r"neither the files train_32x32.mat and test_32x32.mat themselves"):
        open_source("svhn", tmp_path)
    with pytest.raises(UserError, match="unknown data set 'cifar-100'; did you mean 'cifar100'"):
        open_source("cifar-100")


def test_svhn_is_fetched_file_by_file_and_what_is_there_is_kept(tmp_path, monkeypatch):
    asked = []

    def fetch(title: str, archives: list[Archive], folder: Path, progress: object) -> Path:
        asked.append(archives[0].name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / archives[0].name).write_bytes(FILES["svhn"][archives[0].name])
        return folder / archives[0].name

    monkeypatch.setattr("cifarlab.data.download.fetch", fetch)
    assert_right("svhn", DIGITS, None)
    assert set(asked) == {"train_32x32.mat", "test_32x32.mat"}
    asked.clear()
    assert_right("svhn", DIGITS, None)
    assert asked == []


def test_a_label_beyond_the_classes_is_refused(tmp_path, monkeypatch):
    few = dataclasses.replace(small(CIFAR100), classes=CIFAR100.classes[:50])
    monkeypatch.setitem(sources.DATASETS, "cifar100", few)
    put(tmp_path, "cifar-100-binary")
    with pytest.raises(UserError, match="labels beyond the 50 classes"):
        open_source("cifar100", tmp_path)


@pytest.mark.parametrize("dataset", OFFICIAL.values(), ids=list(OFFICIAL))
def test_what_is_pinned_is_whole(dataset):
    assert len(set(dataset.classes)) == len(dataset.classes)
    assert len(dataset.classes) == {"cifar100": 100, "cifar100-coarse": 20}.get(dataset.name, 10)
    for layout in dataset.layouts:
        if layout.kind == "parquet":  # its files have no one form
            continue
        train, test = sum(b.images for b in layout.train), sum(b.images for b in layout.test)
        assert (train, test) == ((73_257, 26_032) if dataset is SVHN else (50_000, 10_000))
        assert all(len(batch.sha256) == 64 for batch in layout.files)
        if layout.kind == "binary":
            record = dataset.labels.binary_bytes + 3072
            assert all(batch.size_bytes == batch.images * record for batch in layout.train + layout.test)
    assert (dataset.content is None) == (dataset is not CIFAR10)
