"""Finding a data set, verifying it, and reading it through a cache.

A source is looked for in the folder that was given, else in the one CIFARLAB_DATA names, else in the user's
cache, into which it is fetched. The first two are never fallen back from: a folder without the data is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cifarlab.data import cifar
from cifarlab.errors import UserError, nearest, one_of
from cifarlab.files import cache_dir, write_atomic

SplitName = Literal["train", "test"]
Progress = Callable[[int, int | None, str], None]

DATA_VARIABLE = "CIFARLAB_DATA"
DATASETS = {dataset.name: dataset for dataset in (cifar.CIFAR10,)}
NAMES = (*DATASETS, "demo")


@dataclass(frozen=True, eq=False)
class Split:
    """Pictures uint8 (N, H, W, C), C-contiguous, and labels int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Source:
    """An opened data source. Pictures are read, and verified, when a split is asked for."""

    name: str
    location: str
    """Where it was found, for people."""
    classes: tuple[str, ...]
    checksum: str
    """`sha256:` and the SHA-256 of train pictures (N, H, W, C), train labels as uint8, test pictures, test labels:
    the same from whichever official file it was read."""
    read: Callable[[SplitName], Split]

    def load(self, split: SplitName) -> Split:
        """Read one split, and only that one. Raises UserError if its files are missing or altered."""
        return self.read(split)


def open_source(
    name: str = "cifar10", data_dir: Path | None = None, progress: Progress | None = None
) -> Source:
    """Open the data set `name`: "cifar10" or "demo". No picture is read yet.

    `data_dir` may be the official folder of batches, the folder that holds it, the official archive, or the
    folder that holds that. Without it CIFARLAB_DATA says where, and without that the user's cache is used, into
    which the archive is fetched: `progress(done_bytes, total_bytes, host)` is called meanwhile.
    Raises UserError if the name is unknown, the data is not there, or nothing can be fetched.
    """
    if name == "demo":
        from cifarlab.data.demo import open_demo

        return open_demo()
    if name not in DATASETS:
        raise UserError(f"unknown data set '{name}'{nearest(name, NAMES)} (there are {one_of(NAMES)})")
    return open_dataset(DATASETS[name], data_dir)


def open_dataset(dataset: cifar.Dataset, data_dir: Path | None = None) -> Source:
    if data_dir is not None:
        return _source(dataset, _find(dataset, Path(data_dir), "--data-dir"), is_own=False)
    if given := os.environ.get(DATA_VARIABLE):
        return _source(dataset, _find(dataset, Path(given).expanduser(), DATA_VARIABLE), is_own=False)
    return _source(dataset, _find(dataset, cache_dir(), "the cache"), is_own=True)


def _source(dataset: cifar.Dataset, place: cifar.Place, is_own: bool) -> Source:
    def read(split: SplitName) -> Split:
        return _read(dataset, place, split, is_own)

    return Source(dataset.name, str(place.path), dataset.classes, dataset.checksum, read)


def _read(dataset: cifar.Dataset, place: cifar.Place, split: SplitName, is_own: bool) -> Split:
    cached = _load_cached(dataset, split)
    # A folder that was named must be right even where the cache could stand in for it.
    if cached is not None and (is_own or cifar.is_intact(place, split)):
        return cached
    fresh = Split(*cifar.read_split(dataset, place, split))
    if cached is None:
        with contextlib.suppress(UserError):  # without a cache the next reading is slower, that is all
            _store_cached(dataset, split, fresh)
    return fresh


# --- finding ---


def _find(dataset: cifar.Dataset, given: Path, asked_by: str) -> cifar.Place:
    places = list(_places(dataset, given))
    for place in places:
        if place.is_archive or not _missing(place):
            return place
    if places:
        place = places[0]
        raise UserError(f"{dataset.title} is not complete: {place.path} lacks {', '.join(_missing(place))}")
    looked = [name for layout in dataset.layouts for name in (layout.folder, layout.archive.name)]
    raise UserError(f"{dataset.title} is not in {given} (from {asked_by}): looked there for {one_of(looked)}")


def _places(dataset: cifar.Dataset, given: Path) -> Iterator[cifar.Place]:
    for layout in dataset.layouts:
        for folder in (given, given / layout.folder):
            if any(os.path.lexists(folder / batch.name) for batch in layout.files):
                yield cifar.Place(folder, layout, is_archive=False)
    for layout in dataset.layouts:
        if given.name == layout.archive.name and given.is_file():
            yield cifar.Place(given, layout, is_archive=True)
        elif (given / layout.archive.name).is_file():
            yield cifar.Place(given / layout.archive.name, layout, is_archive=True)


def _missing(place: cifar.Place) -> list[str]:
    return [batch.name for batch in place.layout.files if not os.path.lexists(place.path / batch.name)]


# --- the cache of decoded pictures ---


def _cached_paths(dataset: cifar.Dataset, split: SplitName) -> tuple[Path, Path]:
    folder = cache_dir() / "decoded"
    return folder / f"{dataset.name}-{split}-images.npy", folder / f"{dataset.name}-{split}-labels.npy"


def _load_cached(dataset: cifar.Dataset, split: SplitName) -> Split | None:
    """The cached split, if its content has the pinned checksum; None if it is missing or wrong."""
    arrays = []
    for path in _cached_paths(dataset, split):
        try:
            # Mapped first: NumPy compares the file's length with its header before any memory is taken. Then
            # copied: what is hashed must be what is used, whatever happens to the file later.
            arrays.append(np.array(np.load(path, mmap_mode="r", allow_pickle=False), order="C"))
        except Exception:  # missing or damaged in any way: it is made again
            return None
    images, labels = arrays
    shape = (cifar.SIDE_PIXELS, cifar.SIDE_PIXELS, cifar.CHANNELS)
    if images.dtype != np.uint8 or images.shape[1:] != shape or labels.dtype != np.uint8 or labels.ndim != 1:
        return None
    if content_sha256(images, labels) != dataset.split_sha256[split] or len(images) != len(labels):
        return None
    return Split(images, labels.astype(np.int64))


def _store_cached(dataset: cifar.Dataset, split: SplitName, content: Split) -> None:
    images_path, labels_path = _cached_paths(dataset, split)
    try:
        images_path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {images_path.parent}: {error.strerror or error}") from error
    for path, array in ((images_path, content.images), (labels_path, content.labels.astype(np.uint8))):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        write_atomic(path, [header.getvalue(), memoryview(array).cast("B")])


def content_sha256(*arrays: np.ndarray) -> str:
    """SHA-256 over the bytes of uint8 arrays, one after the other, in hex."""
    digest = hashlib.sha256()
    for array in arrays:
        assert array.dtype == np.uint8
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
