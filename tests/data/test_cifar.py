"""Reading the official files: exact, and safe with files that are wrong, cut short or meant to harm."""

from __future__ import annotations

import os
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from small_cifar import BINARY, PER_BATCH, PYTHON, SmallData, add_member, binary_batch, pack, python_2_array

from cifarlab.data import cifar
from cifarlab.data.cifar import Place, decode_python, is_intact, read_split, restricted_loads
from cifarlab.data.official import BINARY_LAYOUT, CIFAR10
from cifarlab.errors import UserError

REAL = os.environ.get("CIFARLAB_DATA", "")
needs_cifar10 = pytest.mark.skipif(not REAL, reason="CIFARLAB_DATA does not say where CIFAR-10 is")


def folder_place(small: SmallData, parent: Path, folder: str = PYTHON) -> Place:
    layout = next(layout for layout in small.dataset.layouts if layout.folder == folder)
    return Place(small.write(parent, folder), layout, is_archive=False)


def archive_place(small: SmallData, parent: Path, data: bytes, folder: str = PYTHON) -> Place:
    layout = next(layout for layout in small.dataset.layouts if layout.folder == folder)
    path = parent / layout.archive.name
    path.write_bytes(data)
    return Place(path, layout, is_archive=True)


def refusal(small: SmallData, place: Place, split: cifar.SplitName = "train") -> str:
    """The one line that reading `place` ends with."""
    assert not is_intact(place, split)
    with pytest.raises(UserError) as caught:
        read_split(small.dataset, place, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is read ---


@pytest.mark.parametrize("folder", [PYTHON, BINARY])
@pytest.mark.parametrize("is_archive", [False, True])
def test_both_formats_give_the_same_pictures_in_file_order(small, tmp_path, folder, is_archive):
    if is_archive:
        place = archive_place(small, tmp_path, small.archives[folder], folder)
    else:
        place = folder_place(small, tmp_path, folder)
    cuts: dict[cifar.SplitName, slice] = {
        "train": slice(0, 5 * PER_BATCH),
        "test": slice(5 * PER_BATCH, None),
    }
    for split, cut in cuts.items():
        images, labels = read_split(small.dataset, place, split)
        assert images.dtype == np.uint8 and images.flags.c_contiguous and labels.dtype == np.int64
        assert np.array_equal(images, small.images[cut])
        assert np.array_equal(labels, small.labels[cut])
        assert is_intact(place, split)


def test_an_archive_is_not_extracted(small, tmp_path, monkeypatch):
    place = archive_place(small, tmp_path, small.archives[PYTHON])
    monkeypatch.setattr(tarfile.TarFile, "extract", None)
    monkeypatch.setattr(tarfile.TarFile, "extractall", None)
    read_split(small.dataset, place, "train")
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


def test_an_archive_packed_anew_is_read_but_not_taken_for_the_official_one(small, tmp_path):
    place = archive_place(small, tmp_path, pack(PYTHON, small.files[PYTHON] | {"readme.html": b"hello"}))
    assert not is_intact(place, "train")
    assert np.array_equal(read_split(small.dataset, place, "test")[0], small.images[5 * PER_BATCH :])


def test_the_training_split_is_read_without_opening_the_test_batch(small, tmp_path):
    place = folder_place(small, tmp_path)
    (place.path / "test_batch").unlink()
    assert len(read_split(small.dataset, place, "train")[0]) == 5 * PER_BATCH
    assert "test_batch is missing" in refusal(small, place, "test")


# --- files that are wrong ---


def test_a_missing_batch_is_named(small, tmp_path):
    place = folder_place(small, tmp_path)
    (place.path / "data_batch_3").unlink()
    message = refusal(small, place)
    assert f"data_batch_3 is missing from {place.path}" in message
    assert "replace the folder by a fresh copy of cifar-10-python.tar.gz" in message


@pytest.mark.parametrize("folder", [PYTHON, BINARY])
def test_a_batch_cut_short_is_named(small, tmp_path, folder):
    place = folder_place(small, tmp_path, folder)
    path = sorted(place.path.glob("data_batch_2*"))[0]
    size = path.stat().st_size
    os.truncate(path, size - 1)
    assert (
        f"{path.name} in {place.path} is cut short: {size - 1:,} bytes, the official file has {size:,}"
        in refusal(small, place)
    )
    path.write_bytes(b"")
    assert "is cut short: 0 bytes" in refusal(small, place)


def test_a_batch_too_long_is_not_read_whole(small, tmp_path):
    place = folder_place(small, tmp_path)
    os.truncate(place.path / "data_batch_2", 10**12)  # sparse: takes no room
    assert "too long: 1,000,000,000,000 bytes" in refusal(small, place)


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "batches.meta"])
def test_one_flipped_bit_is_found(small, tmp_path, name):
    place = folder_place(small, tmp_path)
    path = place.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))
    message = refusal(small, place)
    official = next(batch.sha256 for batch in place.layout.files if batch.name == name)
    assert f"{name} in {place.path} is damaged" in message and official[:12] in message


def test_a_batch_that_is_a_folder_or_a_pipe_is_refused_at_once(small, tmp_path):
    place = folder_place(small, tmp_path)
    path = place.path / "data_batch_1"
    path.unlink()
    path.mkdir()
    assert "data_batch_1 is not a file" in refusal(small, place)
    path.rmdir()
    os.mkfifo(path)
    assert "data_batch_1 is not a file" in refusal(small, place)


# --- archives that are wrong ---


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_an_archive_cut_short_is_refused(small, tmp_path, kept):
    data = small.archives[PYTHON]
    place = archive_place(small, tmp_path, data[: int(kept * len(data))])
    message = refusal(small, place)
    assert str(place.path) in message and "fresh copy of cifar-10-python.tar.gz" in message


def test_a_flipped_bit_anywhere_in_an_archive_never_changes_a_picture(small, tmp_path):
    data = small.archives[BINARY]
    for position in range(20, len(data), len(data) // 25):
        flipped = bytearray(data)
        flipped[position] ^= 0x04
        place = archive_place(small, tmp_path, bytes(flipped), BINARY)
        assert not is_intact(place, "train")
        try:
            images, labels = read_split(small.dataset, place, "train")
        except UserError as error:
            assert str(place.path) in str(error)
        else:
            assert np.array_equal(images, small.images[: 5 * PER_BATCH])
            assert np.array_equal(labels, small.labels[: 5 * PER_BATCH])


def test_something_else_than_an_archive_is_refused(small, tmp_path):
    assert "is damaged or cut short" in refusal(small, archive_place(small, tmp_path, b"<html>" * 100))
    assert "lacks cifar-10-batches-py/data_batch_1" in refusal(
        small, archive_place(small, tmp_path, pack("somewhere", small.files[PYTHON]))
    )


def member(kind: bytes, name: str, size: int = 0, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, target
    return info


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, f"{PYTHON}/data_batch_2"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
        (tarfile.DIRTYPE, ""),
    ],
)
def test_a_batch_that_is_a_link_or_a_device_is_refused(small, tmp_path, kind, target):
    files = {name: data for name, data in small.files[PYTHON].items() if name != "data_batch_1"}
    bad = member(kind, f"{PYTHON}/data_batch_1", target=target)
    place = archive_place(small, tmp_path, pack(PYTHON, files, lambda tar: tar.addfile(bad)))
    assert "data_batch_1" in refusal(small, place) and "not a plain file" in refusal(small, place)


@pytest.mark.parametrize(
    "name", ["../data_batch_1", "/tmp/data_batch_1", f"{PYTHON}/../{PYTHON}/data_batch_1"]
)
def test_a_name_that_only_resembles_a_batch_is_left_alone(small, tmp_path, name):
    files = {name: data for name, data in small.files[PYTHON].items() if name != "data_batch_1"}
    batch = small.files[PYTHON]["data_batch_1"]
    place = archive_place(small, tmp_path, pack(PYTHON, files, lambda tar: add_member(tar, name, batch)))
    assert "lacks cifar-10-batches-py/data_batch_1" in refusal(small, place)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_member_held_twice_is_refused(small, tmp_path):
    """Of two members of one name, programs disagree on which they take."""
    batch = small.files[PYTHON]["data_batch_1"]
    data = pack(PYTHON, small.files[PYTHON], lambda tar: add_member(tar, f"{PYTHON}/data_batch_1", batch))
    assert "holds cifar-10-batches-py/data_batch_1 twice" in refusal(
        small, archive_place(small, tmp_path, data)
    )


def test_a_huge_batch_is_refused_before_it_is_read(small, tmp_path):
    files = {name: data for name, data in small.files[PYTHON].items() if name != "data_batch_1"}
    huge = member(tarfile.REGTYPE, f"{PYTHON}/data_batch_1", size=10**12)
    place = archive_place(small, tmp_path, pack(PYTHON, files, lambda tar: tar.addfile(huge)))
    assert "too long: 1,000,000,000,000 bytes" in refusal(small, place)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_an_archive_that_unpacks_without_end_is_given_up(small, tmp_path, kind):
    """64 MB of zeros in a file beside the batches, or in a header that tarfile reads whole into memory."""
    size = 64 << 20
    blocks = member(kind, "bomb", size).tobuf(tarfile.GNU_FORMAT) + bytes(size)
    packer = zlib.compressobj(1, wbits=31)
    place = archive_place(small, tmp_path, packer.compress(blocks) + packer.flush())
    assert place.path.stat().st_size < 1 << 20
    assert "unpacks to more than the official archive" in refusal(small, place)


# --- pickles that are wrong ---

HARMFUL = {
    "os.system": b"cos\nsystem\n(S'touch %s'\ntR.",
    "posix.system": b"cposix\nsystem\n(S'touch %s'\ntR.",
    "subprocess.Popen": b"csubprocess\nPopen\n((S'touch'\nS'%s'\nltR.",
    "builtins.eval": b'cbuiltins\neval\n(S\'open("%s", "w")\'\ntR.',
    "__builtin__.exec": b'c__builtin__\nexec\n(S\'open("%s", "w")\'\ntR.',
    "builtins.getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.",
    "numpy.load": b"cnumpy\nload\n(S'%s'\ntR.",
    "numpy.save": b"cnumpy\nsave\n(S'%s'\nI1\ntR.",
    "numpy.core.multiarray.scalar": b"cnumpy.core.multiarray\nscalar\n(tR.",
    "numpy._core.multiarray._reconstruct": b"cnumpy._core.multiarray\n_reconstruct\n(tR.",
    "numpy.ndarray.tofile": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    "cifarlab.data.cifar._Array": b"ccifarlab.data.cifar\n_Array\n(tR.",
    "copyreg._reconstructor": b"ccopy_reg\n_reconstructor\n(tR.",
    "_codecs.encode": b"c_codecs\nencode\n(S'x'\ntR.",
    "os.remove by INST": b"(S'%s'\nios\nremove\n.",
    "os.remove by OBJ": b"(cos\nremove\nS'%s'\no.",
}


@pytest.mark.parametrize("what", HARMFUL)
def test_a_pickle_that_asks_for_more_than_arrays_is_refused(what, tmp_path):
    target = tmp_path / "made"
    pickled = HARMFUL[what]
    with pytest.raises(UserError, match="is refused: it asks for") as caught:
        restricted_loads(pickled.replace(b"%s", bytes(target)), "data_batch_1")
    assert "\n" not in str(caught.value)
    assert not target.exists()


def _array_pickle(dtype: bytes = b"u1") -> bytes:
    return python_2_array(np.zeros((PER_BATCH, 3072), np.uint8), dtype)


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"garbage",
        b"\x80\x02}(U\x06labels",  # cut short
        b"\x80\x02" + _array_pickle(b"O8") + b".",  # an array of objects
        b"\x80\x02" + _array_pickle(b"f8") + b".",
        b"\x80\x02"
        + _array_pickle().replace(struct.pack("<i", PER_BATCH), struct.pack("<i", 1 << 30))
        + b".",
        b"cnumpy\nndarray\n(I1000000000000\ntR.",  # the array type called by itself
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I1\ntS'b'\ntR.",
        b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR}S'__class__'\nI1\nsb.",  # its state replaced
        b"Pevil\n.",  # a persistent object
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"(" * 100_000,
    ],
)
def test_a_broken_or_twisted_pickle_ends_in_one_line(pickled):
    with pytest.raises(UserError) as caught:
        decode_python(pickled, PER_BATCH, "data_batch_1 in /data")
    assert str(caught.value).startswith("data_batch_1 in /data is") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02].",
        b"\x80\x02}.",
        b"\x80\x02}(U\x06labels](K\x01K\x02eU\x04data"
        + _array_pickle()
        + b"u.",  # two labels for eight pictures
        b"\x80\x02}(U\x06labels]("
        + b"M\x00\x01" * PER_BATCH
        + b"eU\x04data"
        + _array_pickle()
        + b"u.",  # label 256
        b"\x80\x02}(U\x06labels](" + b"K\x01" * PER_BATCH + b"eU\x04dataU\x03abcu.",
    ],
)
def test_a_pickle_of_something_else_is_not_a_batch(pickled):
    with pytest.raises(UserError, match=f"is not a batch of {PER_BATCH} pictures"):
        decode_python(pickled, PER_BATCH, "data_batch_1")


def test_a_harmful_batch_is_stopped_by_its_checksum_before_it_is_unpickled(small, tmp_path, monkeypatch):
    place = folder_place(small, tmp_path)
    batch = place.path / "data_batch_1"
    harmful = HARMFUL["os.system"].replace(b"%s", bytes(tmp_path / "made"))
    batch.write_bytes(harmful.ljust(batch.stat().st_size, b"."))
    monkeypatch.setattr(cifar, "restricted_loads", None)
    assert "data_batch_1" in refusal(small, place) and "is damaged" in refusal(small, place)
    assert not (tmp_path / "made").exists()


# --- the real files ---


@needs_cifar10
def test_the_pinned_checksums_are_those_of_cifar10(monkeypatch):
    """Also those of the binary batches, by re-encoding the python ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(__file__)))  # not a folder: read without a cache
    from cifarlab.data.sources import content_sha256, open_source

    source = open_source("cifar10", Path(REAL))
    parts = []
    binary: dict[cifar.SplitName, tuple[cifar.BatchFile, ...]] = {
        "train": BINARY_LAYOUT.train,
        "test": BINARY_LAYOUT.test,
    }
    for split, batches in binary.items():
        content = source.load(split)
        images, labels = content.images, content.labels.astype(np.uint8)
        parts += [images, labels]
        assert content_sha256(images, labels) == CIFAR10.content.split_sha256[split]
        for i, batch in enumerate(batches):
            rows = images[i * 10_000 : (i + 1) * 10_000].transpose(0, 3, 1, 2).reshape(10_000, 3072)
            data = binary_batch(rows, labels[i * 10_000 : (i + 1) * 10_000])
            assert len(data) == batch.size_bytes
            assert cifar.hashlib.sha256(data).hexdigest() == batch.sha256
    assert source.checksum == "sha256:" + content_sha256(*parts)
    assert np.bincount(parts[1]).tolist() == [5_000] * 10


@needs_cifar10
def test_the_class_names_are_those_in_the_official_meta_file():
    for folder in (Path(REAL), Path(REAL) / PYTHON):
        if (folder / "batches.meta").is_file():
            meta = restricted_loads((folder / "batches.meta").read_bytes(), "batches.meta")
            assert tuple(name.decode() for name in meta[b"label_names"]) == CIFAR10.classes
            return
    pytest.skip("CIFARLAB_DATA holds no batches.meta")
