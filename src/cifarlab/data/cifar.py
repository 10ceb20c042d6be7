"""Official files of CIFAR-10, CIFAR-100 and SVHN: how they are read without trusting them.

The formats are those of https://www.cs.toronto.edu/~kriz/cifar.html and http://ufldl.stanford.edu/housenumbers.
Every file is compared with a SHA-256 pinned in `official.py` before a single byte of it is interpreted. Archives
are streamed by exact member name and never extracted.
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

StoredSplit = Literal["train", "test"]
"""What a data set comes in; validation pictures are cut from the training pictures."""

SIDE_PIXELS = 32
CHANNELS = 3
PIXELS_BYTES = SIDE_PIXELS * SIDE_PIXELS * CHANNELS
# What an archive may hold beyond the batches: a readme, tar headers, padding.
ARCHIVE_SLACK_BYTES = 1 << 20


@dataclass(frozen=True)
class BatchFile:
    """One official file, known by its size and checksum, and the pictures in it, if it is a batch."""

    name: str
    size_bytes: int
    sha256: str
    images: int = 10_000


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
    """One official format: a folder of batches, and the archive that holds the same folder, if there is one."""

    kind: Literal["python", "binary", "mat", "parquet"]
    folder: str
    train: tuple[BatchFile, ...]
    test: tuple[BatchFile, ...]
    other: tuple[BatchFile, ...]
    archive: Archive | None
    downloads: tuple[Archive, ...] = ()
    """Where there is no archive: the files of the folder, each fetched by itself."""

    @property
    def files(self) -> tuple[BatchFile, ...]:
        return self.train + self.test + self.other


@dataclass(frozen=True)
class Labels:
    """Where a batch has the labels that are wanted."""

    python_key: bytes = b"labels"
    binary_bytes: int = 1  # before the pixels of each picture
    binary_index: int = 0  # of the wanted one among them


@dataclass(frozen=True)
class Content:
    """What identifies the pictures and labels themselves, from whichever official file they are read."""

    split_sha256: dict[StoredSplit, str]
    """Per split, SHA-256 of the pictures' bytes (N, H, W, C) followed by the labels as uint8."""
    checksum: str
    """`sha256:` and the SHA-256 of train pictures, train labels, test pictures, test labels in that form."""


@dataclass(frozen=True)
class Dataset:
    """A data set: its classes, its official files, and what identifies its content, where that is known."""

    name: str
    title: str
    classes: tuple[str, ...]
    layouts: tuple[Layout, ...]
    content: Content | None
    labels: Labels = Labels()


@dataclass(frozen=True)
class Place:
    """Where one layout of a data set was found: a folder of batches, or an archive."""

    path: Path
    layout: Layout
    is_archive: bool


def read_split(dataset: Dataset, place: Place, split: StoredSplit) -> tuple[np.ndarray, np.ndarray]:
    """Read one split from the official files: uint8 (N, 32, 32, 3) and int64 (N,), in file order.

    The batches of the other split are neither decoded nor, in a folder, opened.
    Raises UserError naming the file that is missing, cut short, altered or not what it should be.
    """
    if place.layout.kind == "parquet":
        from cifarlab.data import parquet

        return parquet.read_split(dataset, place.path, split)
    batches = place.layout.train if split == "train" else place.layout.test
    first = dict(zip((batch.name for batch in batches), _starts(batches), strict=True))
    n = {batch.name: batch.images for batch in batches}
    images = np.empty((sum(n.values()), SIDE_PIXELS, SIDE_PIXELS, CHANNELS), np.uint8)
    labels = np.empty(len(images), np.int64)
    for name, data in _verified(place, split):
        if name not in n:
            continue
        rows = slice(first[name], first[name] + n[name])
        images[rows], labels[rows] = _decode(dataset, place, name, data, n[name])
    if labels.max(initial=0) >= len(dataset.classes):
        raise UserError(
            f"{place.path} has labels beyond the {len(dataset.classes)} classes of {dataset.title}"
        )
    return images, labels


def _starts(batches: tuple[BatchFile, ...]) -> list[int]:
    return [sum(batch.images for batch in batches[:i]) for i in range(len(batches))]


def _decode(dataset: Dataset, place: Place, name: str, data: bytes, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (n, 32, 32, 3) and labels (n,) of one batch."""
    where = f"{name} in {place.path}"
    if place.layout.kind == "mat":
        return decode_mat(data, n, where)
    if place.layout.kind == "python":
        rows, labels = decode_python(data, n, where, dataset.labels.python_key)
    else:
        rows, labels = decode_binary(data, n, where, dataset.labels)
    return rows.reshape(n, CHANNELS, SIDE_PIXELS, SIDE_PIXELS).transpose(0, 2, 3, 1), labels


def is_intact(place: Place, split: StoredSplit) -> bool:
    """Whether the official bytes behind a split are all there, without decoding them.

    False also where that is not plain, as with an archive that was packed anew, or with Parquet files, which have no
    one form: `read_split` decides then.
    """
    if place.layout.kind == "parquet":
        return False
    try:
        if place.is_archive:
            archive = place.layout.archive
            assert archive is not None
            return _sha256_of_sized(place.path, archive.size_bytes) == archive.sha256
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


def _verified(place: Place, split: StoredSplit) -> Iterator[tuple[str, bytes]]:
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
    if place.layout.archive is None:
        return f"replace it by a fresh copy from {place.layout.downloads[0].urls[0].rpartition('/')[0]}"
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


# --- the formats ---


def decode_binary(
    data: bytes, n: int, where: str, labels: Labels = Labels()
) -> tuple[np.ndarray, np.ndarray]:
    """A binary batch: n records of one label byte (CIFAR-100: coarse, fine) and 3,072 bytes, red, green, then blue,
    row by row.

    Returns rows uint8 (n, 3072) and labels uint8 (n,). Raises UserError if the length is wrong.
    """
    record_bytes = labels.binary_bytes + PIXELS_BYTES
    if len(data) != n * record_bytes:
        raise UserError(f"{where} is not a batch of {n:,} pictures")
    records = np.frombuffer(data, np.uint8).reshape(n, record_bytes)
    return records[:, labels.binary_bytes :], records[:, labels.binary_index]


def decode_mat(data: bytes, n: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A MATLAB file of SVHN, "format 2": X uint8 (32, 32, 3, n), and y (n, 1), where 10 stands for the digit 0.

    Returns pictures uint8 (n, 32, 32, 3) and labels uint8 (n,), 0 to 9. Raises UserError if it is something else.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(io.BytesIO(data), variable_names=["X", "y"])
        pixels, digits = content["X"], content["y"]
    except Exception as error:  # a broken file can raise nearly anything
        raise UserError(f"{where} is not a readable MATLAB file ({type(error).__name__})") from error
    shape = (SIDE_PIXELS, SIDE_PIXELS, CHANNELS, n)
    if pixels.dtype != np.uint8 or pixels.shape != shape or digits.shape != (n, 1):
        raise UserError(f"{where} is not a batch of {n:,} pictures")
    if digits.min() < 1 or digits.max() > 10:
        raise UserError(f"{where} has labels other than 1 to 10")
    return pixels.transpose(3, 0, 1, 2), (digits[:, 0] % 10).astype(np.uint8)


def decode_python(
    data: bytes, n: int, where: str, labels_key: bytes = b"labels"
) -> tuple[np.ndarray, np.ndarray]:
    """A python batch: a pickled dictionary with `data` uint8 (n, 3072) and a list of labels at `labels_key`.

    Returns rows uint8 (n, 3072) and labels uint8 (n,). Raises UserError if the pickle would build anything
    but plain containers and uint8 arrays, or is not such a dictionary.
    """
    batch = restricted_loads(data, where)
    rows = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(labels_key) if isinstance(batch, dict) else None
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
