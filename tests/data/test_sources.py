"""Finding, caching and opening data sets, through `open_source`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_cifar import BINARY, CLASSES, PER_BATCH, PYTHON, SmallData

from cifarlab.data import open_source, sources
from cifarlab.data.sources import Source
from cifarlab.errors import UserError
from cifarlab.files import cache_dir, sha256_of, write_atomic

pytestmark = pytest.mark.usefixtures("small_for_cifar10")

REAL = os.environ.get("CIFARLAB_DATA", "")
N_TRAIN = 5 * PER_BATCH


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(
        "cifarlab.data.download.fetch", lambda *_: pytest.fail("would have gone to the network")
    )


def assert_right(source: Source, small: SmallData) -> None:
    assert (source.name, source.classes, source.checksum) == (
        "cifar10",
        CLASSES,
        small.dataset.content.checksum,
    )
    train, test = source.load("train"), source.load("test")
    for split in (train, test):
        assert (
            split.images.dtype == np.uint8
            and split.images.flags.c_contiguous
            and split.images.flags.writeable
        )
        assert split.labels.dtype == np.int64
    assert np.array_equal(np.concatenate([train.images, test.images]), small.images)
    assert np.array_equal(np.concatenate([train.labels, test.labels]), small.labels)
    assert len(train.images) == N_TRAIN


def refusal(*arguments) -> str:
    with pytest.raises(UserError) as caught:
        source = open_source(*arguments)
        source.load("train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put_archive(small: SmallData, parent: Path, folder: str = PYTHON) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    path = parent / {PYTHON: "cifar-10-python.tar.gz", BINARY: "cifar-10-binary.tar.gz"}[folder]
    path.write_bytes(small.archives[folder])
    return path


# --- where it is looked for ---


@pytest.mark.parametrize("folder", [PYTHON, BINARY])
@pytest.mark.parametrize(
    "as_what", ["folder", "parent", "archive", "folder of the archive", "a folder renamed"]
)
@pytest.mark.parametrize("named_by", ["argument", "variable", "cache"])
def test_every_form_is_found(small, tmp_path, monkeypatch, folder, as_what, named_by):
    parent = cache_dir() if named_by == "cache" else tmp_path / "data"
    found = put_archive(small, parent, folder) if "archive" in as_what else small.write(parent, folder)
    if as_what == "a folder renamed" and named_by != "cache":  # there only the official names are looked for
        found = found.rename(parent / "batches")
    given = parent if as_what in ("parent", "folder of the archive") else found
    if named_by == "variable":
        monkeypatch.setenv("CIFARLAB_DATA", str(given))
    source = open_source("cifar10", given if named_by == "argument" else None)
    assert source.location == str(found)
    assert_right(source, small)


def test_the_argument_beats_the_variable_beats_the_cache(small, tmp_path, monkeypatch):
    argument, variable = small.write(tmp_path / "a"), small.write(tmp_path / "v")
    small.write(cache_dir())
    monkeypatch.setenv("CIFARLAB_DATA", str(variable))
    assert open_source("cifar10", argument).location == str(argument)
    assert open_source("cifar10").location == str(variable)
    monkeypatch.setenv("CIFARLAB_DATA", "")
    assert open_source("cifar10").location == str(cache_dir() / PYTHON)


def test_a_named_folder_without_the_data_is_never_fallen_back_from(small, tmp_path, monkeypatch):
    small.write(cache_dir())
    empty = tmp_path / "empty"
    empty.mkdir()
    message = refusal("cifar10", empty)
    assert f"CIFAR-10 is not in {empty}" in message
    assert all(
        name in message for name in (PYTHON, BINARY, "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
    )
    monkeypatch.setenv("CIFARLAB_DATA", str(empty))
    assert f"{empty}, which CIFARLAB_DATA names" in refusal("cifar10")
    assert f"{empty / 'no'} does not exist" in refusal("cifar10", empty / "no")
    other = tmp_path / "data.zip"
    other.write_bytes(b"PK")
    assert "is a file, but not one of CIFAR-10's archives" in refusal("cifar10", other)


def test_a_folder_with_some_of_the_batches_says_which_are_missing(small, tmp_path):
    folder = small.write(tmp_path)
    (folder / "data_batch_2").unlink()
    (folder / "test_batch").unlink()
    assert f"CIFAR-10 in {folder} is not complete: data_batch_2, test_batch missing" in refusal(
        "cifar10", tmp_path
    )
    put_archive(small, tmp_path)  # but an archive beside it serves
    assert_right(open_source("cifar10", tmp_path), small)


@pytest.mark.parametrize(
    ("given", "nearest"), [("cifar-10", "cifar10"), ("CIFAR10", "cifar10"), ("dmeo", "demo")]
)
def test_a_mistyped_name_is_answered_with_the_nearest(given, nearest):
    assert f"unknown data set '{given}'; did you mean '{nearest}'?" in refusal(given)


def test_opening_a_source_reads_no_picture(small, tmp_path, monkeypatch):
    folder = small.write(tmp_path)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("opened a file"))
    open_source("cifar10", folder)


def test_training_does_not_read_the_test_pictures(small, tmp_path, monkeypatch):
    folder = small.write(tmp_path)
    opened = []
    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *rest, **more: opened.append(path) or original(path, *rest, **more)
    )
    for _ in range(2):  # without the cache, and with it
        open_source("cifar10", folder).load("train")
    assert any(path.name == "data_batch_1" for path in opened)
    assert not any("test" in path.name for path in opened)
    assert not list(cache_dir().rglob("*test*"))


# --- the cache ---


def cached(name: str = "train-images") -> Path:
    return cache_dir() / "decoded" / f"cifar10-{name}.npy"


def test_the_cache_alone_serves_when_nothing_is_named(small, tmp_path):
    assert_right(open_source("cifar10", small.write(tmp_path)), small)
    source = open_source("cifar10")
    assert source.location == str(cache_dir() / "decoded")
    assert_right(source, small)
    assert np.array_equal(np.load(cached(), mmap_mode="r", allow_pickle=False), small.images[:N_TRAIN])


def test_nothing_is_written_beside_the_data(small, tmp_path):
    folder = small.write(tmp_path)
    before = sorted(folder.iterdir())
    folder.chmod(0o555)
    assert_right(open_source("cifar10", folder), small)
    folder.chmod(0o755)
    assert sorted(folder.iterdir()) == before


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    elif how == "header":
        data[20:60] = b"9" * 40
    elif how == "huge shape":
        data[:128] = data[:128].replace(b"(40,", b"(4000000000,").replace(b" " * 8, b"", 1)
    elif how == "pickled":
        np.save(path, np.array([{}], object), allow_pickle=True)
        return
    path.write_bytes(data[: len(data) // 3] if how == "cut" else b"" if how == "empty" else data)


@pytest.mark.parametrize("how", ["flipped", "header", "huge shape", "pickled", "cut", "empty"])
@pytest.mark.parametrize("name", ["train-images", "train-labels"])
def test_a_damaged_cache_is_made_again(small, tmp_path, how, name):
    folder = small.write(tmp_path)
    assert_right(open_source("cifar10", folder), small)
    right = sha256_of(cached(name))
    damage(cached(name), how)
    assert sha256_of(cached(name)) != right
    assert_right(open_source("cifar10", folder), small)
    assert sha256_of(cached(name)) == right


@pytest.mark.parametrize("folder", [PYTHON, BINARY])
@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_a_damaged_folder_is_reported_even_where_the_cache_is_right(small, tmp_path, folder, how):
    data = small.write(tmp_path, folder)
    assert_right(open_source("cifar10", data), small)
    batch = sorted(data.glob("data_batch_4*"))[0]
    stamp = batch.stat()
    damage(batch, how)
    os.utime(batch, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert f"{batch.name} in {data} is" in refusal("cifar10", data)


def test_a_damaged_archive_is_reported_even_where_the_cache_is_right(small, tmp_path):
    archive = put_archive(small, tmp_path)
    assert_right(open_source("cifar10", archive), small)
    damage(archive, "cut")
    assert f"{archive} is damaged or cut short" in refusal("cifar10", archive)


def test_a_cache_that_cannot_be_written_does_not_stop_anybody(small, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert_right(open_source("cifar10", small.write(tmp_path)), small)


def test_a_damaged_archive_in_the_cache_is_fetched_again(small):
    archive = put_archive(small, cache_dir())
    damage(archive, "flipped")
    fetched = []

    def fetch() -> Path:
        fetched.append(1)
        return put_archive(small, cache_dir())

    assert_right(sources.open_dataset(small.dataset, None, fetch), small)
    assert len(fetched) == 1


def test_without_anything_it_is_fetched_once(small):
    fetched = []

    def fetch() -> Path:
        fetched.append(1)
        return put_archive(small, cache_dir(), BINARY)

    for _ in range(2):
        assert_right(sources.open_dataset(small.dataset, None, fetch), small)
    assert len(fetched) == 1


def test_two_processes_may_fill_the_cache_at_once(small, tmp_path):
    folder = small.write(tmp_path)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from small_cifar import SmallData\n"
        "from cifarlab.data import sources\n"
        "small = SmallData()\n"
        "for _ in range(30):\n"
        "    for path in sources._cached_paths(small.dataset, 'train'): path.unlink(missing_ok=True)\n"
        "    split = sources.open_dataset(small.dataset, Path(sys.argv[2]), None).load('train')\n"
        "    assert (split.images == small.images[:40]).all() and (split.labels == small.labels[:40]).all()\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(Path(__file__).parent), str(folder)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.communicate(timeout=60)[1] == "" and process.returncode == 0
    assert not list(cache_dir().rglob("*.tmp"))
    assert_right(open_source("cifar10", folder), small)


# --- files ---


def test_write_atomic_replaces_whole_files_and_tells_their_checksum(tmp_path):
    path = tmp_path / "file"
    assert write_atomic(path, b"old") == sha256_of(path)
    assert write_atomic(path, [b"ne", memoryview(b"w")]) == sha256_of(path)
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("before", [b"old", None])
def test_no_space_left_is_one_line_and_nothing_is_lost(tmp_path, before):
    """A limit on the size of files stands for the full disk: the kernel refuses the same `write`."""
    if before is not None:
        (tmp_path / "file").write_bytes(before)
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from cifarlab.files import write_atomic\n"
        "from cifarlab.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try: write_atomic(Path(sys.argv[1]), b'x' * 300_000)\n"
        "except UserError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "file")]
    message = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert message.startswith(f"cannot write {tmp_path / 'file'}: ") and message.count("\n") == 1
    if before is None:
        assert "nothing was left behind" in message and not list(tmp_path.iterdir())
    else:
        assert "what it held before is unchanged" in message
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_a_folder_that_is_not_there_or_not_one_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "no" / "file", tmp_path / "file" / "file"):
        with pytest.raises(UserError, match=r"^cannot write .*; nothing was left behind$"):
            write_atomic(path, b"")


def test_an_error_while_the_data_is_made_leaves_nothing_behind(tmp_path):
    def chunks():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", chunks())
    assert not list(tmp_path.iterdir())


def test_the_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere/cifarlab")
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_dir() == tmp_path / ".cache" / "cifarlab"


# --- the real data ---


@pytest.mark.skipif(not REAL, reason="CIFARLAB_DATA does not say where CIFAR-10 is")
def test_sixty_thousand_pictures_load_fast_and_in_little_memory():
    """The target is 1 s and 500 MB on an idle machine: benchmarks/data_loading.py measures it."""
    script = Path(__file__).parents[2] / "benchmarks" / "data_loading.py"
    command = [sys.executable, str(script), "--json", "--data-dir", REAL, "--repeats", "1"]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    cache = next(row for row in measured if row["way"] == "verified cache")
    assert cache["images"] == 60_000
    assert cache["peak_megabytes"] < 500
    assert cache["seconds"] < 4
