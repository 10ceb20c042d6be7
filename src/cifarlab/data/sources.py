"""Finding a data set, verifying it, and reading it through a cache.

A source is looked for in the folder that was given, else in the one CIFARLAB_DATA names, else in the user's
cache, into which it is fetched. From the first two there is no falling back: a folder without the data is an
error.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable
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
SPLITS: tuple[SplitName, ...] = ("train", "test")


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
    """`sha256:` and the SHA-256 of train pictures (N, H, W, C), train labels as uint8, test pictures and test
    labels: the same from whichever official file they are read."""
    read: Callable[[SplitName], Split]

    def load(self, split: SplitName) -> Split:
        """Read one split, and only that one. Raises UserError if its files are missing or altered."""
        return self.read(split)


def open_source(
    name: str = "cifar10", data_dir: Path | None = None, progress: Progress | None = None
) -> Source:
    """Open the data set `name`: "cifar10" or "demo". No picture is read yet.

    `data_dir` may be the official folder of batches, the folder that holds it, the official archive, or the
    folder that holds that. Without it CIFARLAB_DATA says where, and without that the user's cache is used,
    into which the archive is fetched if need be: `progress(done_bytes, total_bytes, host)` is called then.
    Raises UserError if the name is unknown, the data is not there, or nothing can be fetched.
    """
    if name == "demo":
        from cifarlab.data.demo import open_demo

        return open_demo()
    if name not in DATASETS:
        raise UserError(f"unknown data set '{name}'{nearest(name, NAMES)} (there are {one_of(NAMES)})")
    dataset = DATASETS[name]

    def fetch() -> Path:
        from cifarlab.data.download import fetch

        archives = [layout.archive for layout in dataset.layouts]
        return fetch(dataset.title, archives, cache_dir(), progress)

    return open_dataset(dataset, data_dir, fetch)


def open_dataset(dataset: cifar.Dataset, data_dir: Path | None, fetch: Callable[[], Path]) -> Source:
    """Open a data set in the official formats; `fetch` puts an archive into the cache and gives its path."""
    if data_dir is not None:
        return _open_given(dataset, Path(data_dir).expanduser(), "")
    if given := os.environ.get(DATA_VARIABLE):
        return _open_given(dataset, Path(given).expanduser(), f", which {DATA_VARIABLE} names")
    return _open_own(dataset, fetch)


def _open_given(dataset: cifar.Dataset, given: Path, named_by: str) -> Source:
    place = _find(dataset, given)
    if place is None:
        raise UserError(_not_there(dataset, given, named_by))

    def read(split: SplitName) -> Split:
        cached = _load_cached(dataset, split)
        # A folder that was named must be right even where the cache could stand in for it.
        if cached is not None and cifar.is_intact(place, split):
            return cached
        return _read_and_cache(dataset, place, split)

    return Source(dataset.name, str(place.path), dataset.classes, dataset.checksum, read)


def _open_own(dataset: cifar.Dataset, fetch: Callable[[], Path]) -> Source:
    """From the user's cache, where whatever was fetched and is found damaged is fetched again."""

    def find_or_fetch() -> cifar.Place:
        return _find(dataset, cache_dir()) or _archive_place(dataset, fetch())

    def read(split: SplitName) -> Split:
        cached = _load_cached(dataset, split)
        if cached is not None:
            return cached
        place = find_or_fetch()
        try:
            return _read_and_cache(dataset, place, split)
        except UserError:
            if not place.is_archive:
                raise
            return _read_and_cache(dataset, _archive_place(dataset, fetch()), split)

    if all(path.is_file() for split in SPLITS for path in _cached_paths(dataset, split)):
        location = _cached_folder()
    else:
        location = find_or_fetch().path
    return Source(dataset.name, str(location), dataset.classes, dataset.checksum, read)


def _read_and_cache(dataset: cifar.Dataset, place: cifar.Place, split: SplitName) -> Split:
    fresh = Split(*cifar.read_split(dataset, place, split))
    with contextlib.suppress(UserError):  # without a cache the next reading is slower, that is all
        _store_cached(dataset, split, fresh)
    return fresh


# --- finding ---


def _find(dataset: cifar.Dataset, given: Path) -> cifar.Place | None:
    """The first complete folder of batches, or else archive, in or at `given`."""
    folders = [
        cifar.Place(folder, layout, is_archive=False)
        for layout in dataset.layouts
        for folder in (given, given / layout.folder)
        if any(os.path.lexists(folder / batch.name) for batch in layout.files)
    ]
    archives = [
        cifar.Place(path, layout, is_archive=True)
        for layout in dataset.layouts
        for path in ([given] if given.name == layout.archive.name else []) + [given / layout.archive.name]
        if path.is_file()
    ]
    for place in (*folders, *archives):
        if place.is_archive or not _missing(place):
            return place
    for place in folders:
        raise UserError(
            f"{dataset.title} in {place.path} is not complete: {', '.join(_missing(place))} missing"
        )
    return None


def _missing(place: cifar.Place) -> list[str]:
    return [batch.name for batch in place.layout.files if not os.path.lexists(place.path / batch.name)]


def _archive_place(dataset: cifar.Dataset, path: Path) -> cifar.Place:
    layout = next(layout for layout in dataset.layouts if layout.archive.name == path.name)
    return cifar.Place(path, layout, is_archive=True)


def _not_there(dataset: cifar.Dataset, given: Path, named_by: str) -> str:
    folders = [layout.folder for layout in dataset.layouts]
    archives = [layout.archive.name for layout in dataset.layouts]
    if given.is_file():
        return f"{given}{named_by} is a file, but not one of {dataset.title}'s archives {one_of(archives)}"
    if not given.exists():
        return f"{given}{named_by} does not exist, so {dataset.title} is not there"
    return (
        f"{dataset.title} is not in {given}{named_by}: neither the batches themselves, nor a folder "
        f"{one_of(folders)}, nor an archive {one_of(archives)}"
    )


# --- the cache of decoded pictures ---


def _cached_folder() -> Path:
    return cache_dir() / "decoded"


def _cached_paths(dataset: cifar.Dataset, split: SplitName) -> tuple[Path, Path]:
    folder = _cached_folder()
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
        write_atomic(path, [header.getvalue(), array.data.cast("B")])


def content_sha256(*arrays: np.ndarray) -> str:
    """SHA-256 over the bytes of uint8 arrays, one after the other, in hex."""
    digest = hashlib.sha256()
    for array in arrays:
        assert array.dtype == np.uint8
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
