"""CIFAR-10 as Hugging Face keeps it (`uoft-cs/cifar10`): Parquet files of PNG pictures and labels.

The files may be cut and packed in any way, so that no checksum of theirs is pinned. Each 10,000 rows must be one of
the official batches, to the byte, whichever: there they stand in the order in which the official archive holds them,
which begins with batch 4, and here they are put back in theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cifarlab.data.cifar import CHANNELS, PIXELS_BYTES, SIDE_PIXELS, BatchFile, Dataset, StoredSplit
from cifarlab.errors import UserError
from cifarlab.pictures import read_picture

FOLDER = "plain_text"  # the name of the data set's only configuration
ROWS_AT_ONCE = 1_000
LARGEST_PICTURE_BYTES = 64 << 10  # of 32 x 32 pixels; a PNG of noise has 4 KB


def find_folder(given: Path) -> Path | None:
    """`given`, or the folder `plain_text` in it, if Parquet files of both splits are there."""
    for folder in (given, given / FOLDER):
        if _files(folder, "train") and _files(folder, "test"):
            return folder
    return None


def read_split(dataset: Dataset, folder: Path, split: StoredSplit) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (N, 32, 32, 3) and labels int64 (N,), in the order of the official batches.

    Raises UserError without pyarrow, or for files that are damaged, hold anything else, or hold it in another order.
    """
    batches = next(layout for layout in dataset.layouts if layout.kind == "binary")
    wanted = list(batches.train if split == "train" else batches.test)
    n = sum(batch.images for batch in wanted)
    rows, labels = np.empty((n, PIXELS_BYTES), np.uint8), np.empty(n, np.uint8)
    done = 0
    for encoded, label in _rows(folder, split, n):
        if len(encoded) > LARGEST_PICTURE_BYTES or not 0 <= label < len(dataset.classes):
            raise _not_official(dataset, folder, split, f"row {done + 1:,}")
        picture = read_picture(encoded, SIDE_PIXELS, SIDE_PIXELS)
        rows[done], labels[done] = picture.transpose(2, 0, 1).reshape(-1), label
        done += 1
    if done != n:
        raise _not_official(dataset, folder, split, f"{done:,} rows instead of {n:,}")
    order = _official_order(dataset, folder, split, wanted, rows, labels)
    planes = rows[order].reshape(n, CHANNELS, SIDE_PIXELS, SIDE_PIXELS)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels[order].astype(np.int64)


def _files(folder: Path, split: StoredSplit) -> list[Path]:
    return sorted(folder.glob(f"{split}-*.parquet"))


def _rows(folder: Path, split: StoredSplit, at_most: int) -> Iterator[tuple[bytes, int]]:
    """The bytes of a picture file, and its label, of each row; one row more than `at_most` is an error."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(
            f"{folder} holds Parquet files, which need a library: pip install 'cifarlab[parquet]'"
        ) from None
    for path in _files(folder, split):
        try:
            with ParquetFile(path) as file:
                at_most -= file.metadata.num_rows
                if at_most < 0:
                    raise UserError(f"{path} has more pictures than CIFAR-10")
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=["img", "label"]):
                    yield from _pairs(batch)
        except (ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            what = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"cannot read {path}: {what}; it should have columns img and label") from error


def _pairs(batch: Any) -> Iterator[tuple[bytes, int]]:
    encoded = batch.column("img").field("bytes").to_pylist()
    labels = batch.column("label").to_pylist()
    for data, label in zip(encoded, labels, strict=True):
        if type(data) is not bytes or type(label) is not int:
            raise ValueError("a picture or a label is missing")
        yield data, label


def _official_order(
    dataset: Dataset,
    folder: Path,
    split: StoredSplit,
    wanted: list[BatchFile],
    rows: np.ndarray,
    labels: np.ndarray,
) -> np.ndarray:
    """Where each picture of the official order stands: batches are known by the SHA-256 of their binary form."""
    first: dict[str, int] = {}
    start = 0
    while start < len(labels):
        stop = start + wanted[0].images  # all batches have as many
        records = np.concatenate([labels[start:stop, None], rows[start:stop]], axis=1)
        digest = hashlib.sha256(records.data).hexdigest()
        name = next((batch.name for batch in wanted if batch.sha256 == digest), None)
        if name is None or name in first:
            raise _not_official(dataset, folder, split, f"rows {start + 1:,} to {stop:,}")
        first[name] = start
        start = stop
    return np.concatenate([np.arange(batch.images) + first[batch.name] for batch in wanted])


def _not_official(dataset: Dataset, folder: Path, split: StoredSplit, where: str) -> UserError:
    return UserError(
        f"{folder}/{split}-*.parquet are not {dataset.title}: {where} are none of its official batches, to the byte and"
        " in order; take the files of uoft-cs/cifar10 as they are"
    )
