"""A small data set in the official formats, so that tests need neither the real one nor a network."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from cifarlab.data.cifar import Archive, BatchFile, Content, Dataset, Layout
from cifarlab.data.official import PARQUET_LAYOUT

PER_BATCH = 8
PYTHON, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
CLASSES = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")


def _string(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def python_2_array(rows: np.ndarray, dtype: bytes = b"u1") -> bytes:
    """The opcodes with which Python 2 and the NumPy of 2009 pickled an array."""
    kind = b"cnumpy\ndtype\n" + _string(dtype) + _number(0) + _number(1) + b"\x87R"
    kind += b"(" + _number(3) + _string(b"|") + b"NNN" + _number(-1) + _number(-1) + _number(0) + b"tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    empty += _number(0) + b"\x85" + _string(b"b") + b"\x87R"
    shape = b"(" + b"".join(_number(n) for n in rows.shape) + b"t"
    return empty + b"(" + _number(1) + shape + kind + b"\x89" + _string(rows.tobytes()) + b"tb"


def python_batch(rows: np.ndarray, labels: np.ndarray, coarse: np.ndarray | None = None) -> bytes:
    """A batch as in cifar-10-batches-py, or with coarse labels as in cifar-100-python: pickle protocol 2, its strings
    those of Python 2."""
    names = b"](" + b"".join(_string(b"picture_%d.png" % i) for i in range(len(labels))) + b"e"
    items = _string(b"filenames") + names + _string(b"batch_label") + _string(b"a batch")
    if coarse is None:
        items += _string(b"labels") + _numbers(labels)
    else:
        items += _string(b"fine_labels") + _numbers(labels) + _string(b"coarse_labels") + _numbers(coarse)
    return b"\x80\x02}(" + items + _string(b"data") + python_2_array(rows) + b"u."


def _numbers(labels: np.ndarray) -> bytes:
    return b"](" + b"".join(_number(int(label)) for label in labels) + b"e"


def binary_batch(rows: np.ndarray, labels: np.ndarray) -> bytes:
    return np.concatenate([labels.astype(np.uint8)[:, None], rows], axis=1).tobytes()


class SmallData:
    """Random pictures, the official files that hold them, and the `Dataset` that describes those."""

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.images = generator.integers(0, 256, (6 * PER_BATCH, 32, 32, 3), np.uint8)
        self.labels = generator.integers(0, 10, 6 * PER_BATCH)
        self.files: dict[str, dict[str, bytes]] = {PYTHON: {}, BINARY: {}}
        rows = self.images.transpose(0, 3, 1, 2).reshape(6 * PER_BATCH, 3072)
        for i in range(5):
            self._add(f"data_batch_{i + 1}", rows, i)
        self._add("test_batch", rows, 5)
        self.files[PYTHON]["batches.meta"] = b"\x80\x02}."
        self.archives = {name: pack(name, files) for name, files in self.files.items()}
        self.dataset = self.described(())

    def _add(self, name: str, rows: np.ndarray, i: int) -> None:
        part = slice(i * PER_BATCH, (i + 1) * PER_BATCH)
        self.files[PYTHON][name] = python_batch(rows[part], self.labels[part])
        self.files[BINARY][name + ".bin"] = binary_batch(rows[part], self.labels[part])

    def described(self, hosts: tuple[str, ...]) -> Dataset:
        """The data set, its archives to be fetched from `hosts` ("http://127.0.0.1:1234")."""
        n_train = 5 * PER_BATCH
        train = self.images[:n_train].tobytes() + bytes(self.labels[:n_train].tolist())
        test = self.images[n_train:].tobytes() + bytes(self.labels[n_train:].tolist())
        return Dataset(
            name="cifar10",
            title="CIFAR-10",
            classes=CLASSES,
            layouts=(
                self._layout("python", PYTHON, hosts),
                self._layout("binary", BINARY, hosts),
                PARQUET_LAYOUT,
            ),
            content=Content(
                {"train": _sha256(train), "test": _sha256(test)}, "sha256:" + _sha256(train + test)
            ),
        )

    def _layout(self, kind: Literal["python", "binary"], folder: str, hosts: tuple[str, ...]) -> Layout:
        def batches(start: str) -> tuple[BatchFile, ...]:
            files = self.files[folder].items()
            return tuple(
                BatchFile(n, len(data), _sha256(data), PER_BATCH) for n, data in files if n.startswith(start)
            )

        archive = archive_of(f"cifar-10-{kind}.tar.gz", self.archives[folder], hosts)
        return Layout(kind, folder, batches("data_batch"), batches("test_batch"), batches("batches"), archive)

    def write(self, parent: Path, folder: str = PYTHON) -> Path:
        """Lay the batches down in `parent`/`folder`."""
        target = parent / folder
        target.mkdir(parents=True, exist_ok=True)
        for name, data in self.files[folder].items():
            (target / name).write_bytes(data)
        return target


def archive_of(name: str, data: bytes, hosts: tuple[str, ...] = ()) -> Archive:
    return Archive(name, len(data), _sha256(data), tuple(f"{host}/{name}" for host in hosts))


def pack(
    folder: str, files: dict[str, bytes], extra: Callable[[tarfile.TarFile], None] | None = None
) -> bytes:
    """A .tar.gz of `folder`, as the official ones are: the folder first, then its files in no good order."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        directory = tarfile.TarInfo(folder)
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        for name in sorted(files, reverse=True):
            add_member(tar, f"{folder}/{name}", files[name])
        if extra:
            extra(tar)
    return buffer.getvalue()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
