"""Finding a data set, verifying it, and reading it through a cache.

A source is looked for in the folder that was given, else in the one CIFARLAB_DATA names, else in the user's
cache, into which it is fetched. From the first two there is no falling back: a folder without the data is an
error.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cifarlab.data import cifar
from cifarlab.data.cifar import StoredSplit
from cifarlab.data.mapped import Pictures
from cifarlab.data.official import OFFICIAL
from cifarlab.errors import UserError, nearest, one_of
from cifarlab.files import cache_dir, write_atomic

if TYPE_CHECKING:
    from cifarlab.data.listing import Reading
    from cifarlab.data.survey import Survey
    from cifarlab.pictures import Fit

Progress = Callable[[int, int | None, str], None]
DecodingProgress = Callable[[int, int], None]
T = TypeVar("T")

DATA_VARIABLE = "CIFARLAB_DATA"
DATASETS = dict(OFFICIAL)
NAMES = (*DATASETS, "demo")
PICTURE_FILES_PIXELS = 32  # a side, where the recipe does not say
SPLITS: tuple[StoredSplit, ...] = ("train", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Pictures uint8 (N, H, W, C), C-contiguous or, where memory is too small, on the disk, and labels int64 (N,)."""

    images: Pictures
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
    labels: the same from whichever official file they are read. Of picture files, see `own_pictures`."""
    read: Callable[[StoredSplit], Split]
    splits: tuple[StoredSplit, ...] = SPLITS
    in_memory: bool = False
    """Given in Python (`arrays.py`): whoever needs the pictures of a run again must give the source again."""
    validation: np.ndarray | None = None
    """Where the data set says which of its training pictures validate: their indices, int64."""
    groups: np.ndarray | None = None
    """Of training pictures, int64 (N,): near duplicates have the same number, and stay on one side of every cut."""
    reading: Mapping[str, Any] | None = None
    """Of picture files: how they were listed and read, which a run keeps so as to open them alike."""
    survey: Callable[[], Survey] | None = None
    """Of picture files: what they hold, and what is wrong with them."""
    decoded_at: tuple[int, Fit] | None = None
    """Of picture files: their pixels a side, and how they were fitted to it."""
    at_size: Callable[[int, Fit], Source] | None = None
    """Of picture files: the same, decoded in another way."""

    def load(self, split: StoredSplit) -> Split:
        """Read one split, and only that one. Raises UserError if it is missing, or its files are missing or altered."""
        self.check_has(split)
        return self.read(split)

    def check_has(self, split: StoredSplit) -> None:
        """Raises UserError if there is no such split."""
        if split not in self.splits:
            raise UserError(
                f"{self.name} has no {split} pictures, only {one_of(self.splits, 'and')}: `--split validation` judges"
                " those that were kept from training"
            )

    def sized(self, size_pixels: int | None, fit: Fit) -> Source:
        """With pictures of `size_pixels` a side; None: the data set's own size, or 32 of picture files."""
        wanted = size_pixels or PICTURE_FILES_PIXELS, fit
        if self.at_size is not None:
            return self if wanted == self.decoded_at else self.at_size(*wanted)
        if size_pixels is None:
            return self

        def read(name: StoredSplit) -> Split:
            split = self.read(name)
            return Split(resized(split.images, size_pixels, fit), split.labels)

        return replace(self, read=read)


def resized(images: Pictures, size_pixels: int, fit: Fit) -> np.ndarray:
    """uint8 (N, H, W, 3) at `size_pixels` a side, as picture files come to it."""
    from PIL import Image

    from cifarlab.pictures import read_picture

    sized = np.empty((len(images), size_pixels, size_pixels, 3), np.uint8)
    for place in range(len(sized)):
        sized[place] = read_picture(Image.fromarray(images[place]), size_pixels, size_pixels, fit)
    return sized


def open_source(
    name: str | Path = "cifar10",
    data_dir: Path | None = None,
    progress: Progress | None = None,
    *,
    size_pixels: int | None = None,
    fit: Fit = "squash",
    reading: Reading | None = None,
    decoding: DecodingProgress | None = None,
) -> Source:
    """Open the data set `name`, one of NAMES, or the pictures at a path.

    The pictures of a named data set are read when a split is asked for. Picture files are decoded now, `size_pixels` a
    side (`cifarlab.data.own_pictures`), with `decoding(done, total)` called meanwhile; `reading` says how.

    `data_dir` may be the official folder of batches, the folder that holds it, the official archive, or the
    folder that holds that. Without it CIFARLAB_DATA says where, and without that the user's cache is used,
    into which the archive is fetched if need be: `progress(done_bytes, total_bytes, host)` is called then.
    Raises UserError if the name is unknown, the data is not there, or nothing can be fetched.
    """
    if name == "demo":
        from cifarlab.data.demo import open_demo

        return open_demo()
    if name not in DATASETS:
        return _open_path(name, data_dir, size_pixels, fit, reading, decoding)
    dataset = DATASETS[str(name)]

    return open_dataset(dataset, data_dir, lambda: _fetch(dataset, progress))


def reopen_source(
    run_data: Mapping[str, Any],
    data_dir: Path | None = None,
    progress: Progress | None = None,
    *,
    size_pixels: int | None = None,
    fit: Fit = "squash",
    decoding: DecodingProgress | None = None,
) -> Source:
    """The source that a run's data.json speaks of, read as it was for the run; other arguments as for `open_source`.

    Picture files are looked for in `data_dir`, else where they were; a data set with a name in `data_dir`, else where
    CIFARLAB_DATA says, else where it was, else in the user's cache.
    Raises UserError if it is not there any more, or was given in Python, so that nobody but the user has it.
    """
    if run_data.get("in_memory"):
        raise UserError(
            f"the run was trained on data given in Python ({run_data['name']}): give the same source again, as"
            " data=source, in Python: cifarlab.evaluate(run, data=source), and cifarlab.resume,"
            " cifarlab.calibration.calibrate, cifarlab.report.write_report, cifarlab.figures.named take it alike"
        )
    if "reading" not in run_data:
        return open_source(run_data["name"], data_dir or _where_it_was(run_data), progress)
    path = data_dir or Path(run_data["location"])
    if data_dir is None and not path.exists():
        raise UserError(f"the run's pictures are not at {path} any more: --data-dir says where they are now")
    from cifarlab.data.listing import Reading
    from cifarlab.data.own_pictures import open_pictures

    return open_pictures(path, Reading(**run_data["reading"]), size_pixels, fit, decoding)


def check_same_data(run: Path, run_data: Mapping[str, Any], source: Source) -> None:
    """Raises UserError where `source` is other data than the `run` was trained with."""
    was, now = run_data["checksum"], source.checksum
    if was == now:
        return
    changed = source.reading is not None and source.location == run_data["location"]
    why = ": pictures there were changed, added or taken away since" if changed else ""
    raise UserError(
        f"{run} was trained on other data: {was[:23]}…, and {source.location} is {now[:23]}…{why}"
    )


def _where_it_was(run_data: Mapping[str, Any]) -> Path | None:
    """Of official files, if they are still there; None where CIFARLAB_DATA says where, and in the user's cache, which
    mends itself."""
    if os.environ.get(DATA_VARIABLE):
        return None
    place, dataset = Path(run_data["location"]), DATASETS.get(run_data["name"])
    if dataset is None or not place.is_absolute() or place.is_relative_to(cache_dir().absolute()):
        return None
    return place if _is_all_there(dataset, place) else None


def is_path(name: str | Path) -> bool:
    """Whether data called `name` are looked for at a place and not under a name."""
    return name not in NAMES and (
        isinstance(name, Path) or os.sep in name or Path(name).expanduser().exists()
    )


def are_own_pictures(data: str | Path | Source) -> bool:
    """Whether these are somebody's own picture files, and no data set that others have as well."""
    if isinstance(data, Source):
        return data.reading is not None
    return is_path(data) and official_at(Path(data).expanduser()) is None


def source_name(name: str | Path) -> str:
    """What the source that `open_source` opens under this name or at this path calls itself."""
    if not is_path(name):
        return str(name)
    path = Path(name).expanduser().absolute()
    official = official_at(path)
    return name_of_pictures(path) if official is None else official.name


def name_of_pictures(path: Path) -> str:
    """Of picture files at `path`."""
    return path.stem if path.is_file() else path.name


def _open_path(
    name: str | Path,
    data_dir: Path | None,
    size_pixels: int | None,
    fit: Fit,
    reading: Reading | None,
    decoding: DecodingProgress | None,
) -> Source:
    if not is_path(name):
        raise UserError(
            f"unknown data set '{name}'{nearest(str(name), NAMES)} (there are {one_of(NAMES)}, or give the path of your"
            " own pictures)"
        )
    if data_dir is not None:
        raise UserError(f"the data's place is given twice: {name} and {data_dir}")
    path = Path(name).expanduser()
    if (dataset := official_at(path)) is not None:
        return open_dataset(dataset, path, lambda: path)
    from cifarlab.data.listing import Reading
    from cifarlab.data.own_pictures import open_pictures

    return open_pictures(path, reading or Reading(), size_pixels, fit, decoding)


def official_at(path: Path) -> cifar.Dataset | None:
    """The official data set that is all there, in or at `path`: its folder alone may be called "train" as anybody's."""
    return next((dataset for dataset in DATASETS.values() if _is_all_there(dataset, path)), None)


def incomplete_official(path: Path) -> UserError | None:
    """What is missing of the official folder that `path` is, or holds, where it has no pictures of one's own.

    A folder is one by its name, or by two of its files: a single file may be called "test" as anybody's.
    """
    for dataset in DATASETS.values():
        for layout in dataset.layouts:
            for folder in (path, path / layout.folder):
                place = cifar.Place(folder, layout, is_archive=False)
                known = folder.name == layout.folder or _n_there(place) > 1
                if folder.is_dir() and known and _missing(place):
                    return _not_complete(dataset, place)
    return None


def _is_all_there(dataset: cifar.Dataset, path: Path) -> bool:
    with contextlib.suppress(UserError):
        return path.exists() and _find(dataset, path) is not None
    return False


def _fetch(dataset: cifar.Dataset, progress: Progress | None) -> Path:
    from cifarlab.data.download import fetch

    archives = [layout.archive for layout in dataset.layouts if layout.archive is not None]
    if archives:
        return fetch(dataset.title, archives, cache_dir(), progress)
    layout = dataset.layouts[0]
    folder = cache_dir() / layout.folder
    for file in layout.downloads:
        fetch(dataset.title, [file], folder, progress)
    return folder


def open_dataset(dataset: cifar.Dataset, data_dir: Path | None, fetch: Callable[[], Path]) -> Source:
    """Open a data set in the official formats; `fetch` puts its files into the cache and gives their path."""
    if data_dir is not None:
        return _open_given(dataset, Path(data_dir).expanduser(), "")
    if given := os.environ.get(DATA_VARIABLE):
        return _open_given(dataset, Path(given).expanduser(), f", which {DATA_VARIABLE} names")
    return _open_own(dataset, fetch)


def _open_given(dataset: cifar.Dataset, given: Path, named_by: str) -> Source:
    place = _find(dataset, given)
    if place is None:
        raise UserError(_not_there(dataset, given, named_by))
    content = _content_of(dataset) or _identify(dataset, place)

    def read(split: StoredSplit) -> Split:
        cached = _load_cached(dataset, content, split)
        # A folder that was named must be right even where the cache could stand in for it.
        if cached is not None and cifar.is_intact(place, split):
            return cached
        return _read_and_cache(dataset, place, split)

    return Source(dataset.name, str(place.path.absolute()), dataset.classes, content.checksum, read)


def _open_own(dataset: cifar.Dataset, fetch: Callable[[], Path]) -> Source:
    """From the user's cache, where whatever was fetched and is found damaged is fetched again."""

    def find_or_fetch() -> cifar.Place:
        if (
            dataset.layouts[0].archive is None
        ):  # fetched file by file: `fetch` finds those that are there already
            return _place_at(dataset, fetch())
        return _find(dataset, cache_dir()) or _place_at(dataset, fetch())

    def anew(wanted: Callable[[cifar.Place], T]) -> T:
        place = find_or_fetch()
        try:
            return wanted(place)
        except UserError:
            if not place.is_archive and place.layout.archive is not None:
                raise
            return wanted(_place_at(dataset, fetch()))

    def read(split: StoredSplit) -> Split:
        cached = _load_cached(dataset, content, split)
        return anew(lambda place: _read_and_cache(dataset, place, split)) if cached is None else cached

    known = _content_of(dataset)
    if known and all(path.is_file() for split in SPLITS for path in _cached_paths(dataset, split)):
        content, location = known, _cached_folder()
    else:
        content, location = known or anew(lambda place: _identify(dataset, place)), find_or_fetch().path
    return Source(dataset.name, str(location), dataset.classes, content.checksum, read)


def _read_and_cache(dataset: cifar.Dataset, place: cifar.Place, split: StoredSplit) -> Split:
    fresh = Split(*cifar.read_split(dataset, place, split))
    with contextlib.suppress(UserError):  # without a cache the next reading is slower, that is all
        _store_cached(dataset, split, fresh)
    return fresh


# --- finding ---


def _find(dataset: cifar.Dataset, given: Path) -> cifar.Place | None:
    """The first complete folder of batches, or else archive, or else Parquet files, in or at `given`."""
    folders = [
        place
        for layout in dataset.layouts
        for folder in (given, given / layout.folder)
        if _n_there(place := cifar.Place(folder, layout, is_archive=False))
    ]
    archives = [
        cifar.Place(path, layout, is_archive=True)
        for layout in dataset.layouts
        if layout.archive is not None
        for path in ([given] if given.name == layout.archive.name else []) + [given / layout.archive.name]
        if path.is_file()
    ]
    parquets = [
        cifar.Place(folder, layout, is_archive=False)
        for layout in dataset.layouts
        if layout.kind == "parquet" and (folder := _parquet_folder(given))
    ]
    for place in (*folders, *archives, *parquets):
        if place.is_archive or not _missing(place):
            return place
    for place in folders:
        raise _not_complete(dataset, place)
    return None


def _not_complete(dataset: cifar.Dataset, place: cifar.Place) -> UserError:
    return UserError(f"{dataset.title} in {place.path} is not complete: {', '.join(_missing(place))} missing")


def _parquet_folder(given: Path) -> Path | None:
    from cifarlab.data.parquet import find_folder

    return find_folder(given)


def _missing(place: cifar.Place) -> list[str]:
    return [batch.name for batch in place.layout.files if not os.path.lexists(place.path / batch.name)]


def _n_there(place: cifar.Place) -> int:
    """Files with official names; folders of such names, as train and test are for CIFAR-100, are anybody's."""
    paths = [place.path / batch.name for batch in place.layout.files]
    return sum(os.path.lexists(path) and not path.is_dir() for path in paths)


def _place_at(dataset: cifar.Dataset, path: Path) -> cifar.Place:
    """Where something was fetched to."""
    for layout in dataset.layouts:
        if layout.archive is not None and layout.archive.name == path.name:
            return cifar.Place(path, layout, is_archive=True)
    return cifar.Place(path, dataset.layouts[0], is_archive=False)


def _not_there(dataset: cifar.Dataset, given: Path, named_by: str) -> str:
    folders = [layout.folder for layout in dataset.layouts]
    archives = [layout.archive.name for layout in dataset.layouts if layout.archive is not None]
    if given.is_file():
        known = f"one of {dataset.title}'s archives {one_of(archives)}" if archives else "a folder"
        return f"{given}{named_by} is a file, but not {known}"
    if not given.exists():
        return f"{given}{named_by} does not exist, so {dataset.title} is not there"
    files = "the batches themselves"
    if not archives:
        files = f"the files {one_of([file.name for file in dataset.layouts[0].files], 'and')} themselves"
    archive = f", nor an archive {one_of(archives)}" if archives else ""
    return f"{dataset.title} is not in {given}{named_by}: neither {files}, nor a folder {one_of(folders)}{archive}"


# --- what identifies the content ---


def _content_of(dataset: cifar.Dataset) -> cifar.Content | None:
    """The content's checksums, pinned or computed by an earlier opening; None where they are not known yet."""
    if dataset.content is not None:
        return dataset.content
    try:
        known = json.loads(_content_path(dataset).read_text())
        split_sha256: dict[StoredSplit, str] = {split: str(known["split_sha256"][split]) for split in SPLITS}
        return cifar.Content(split_sha256, str(known["checksum"]))
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged: computed again
        return None


def _identify(dataset: cifar.Dataset, place: cifar.Place) -> cifar.Content:
    """Checksums of a content that nobody has published, from files whose published checksums hold; kept in the cache.

    Both splits are read for it, once; of the test pictures nothing but their checksum is used.
    """
    splits = {split: _read_and_cache(dataset, place, split) for split in SPLITS}
    parts = {split: (content.images[:], content.labels.astype(np.uint8)) for split, content in splits.items()}
    split_sha256: dict[StoredSplit, str] = {split: content_sha256(*parts[split]) for split in SPLITS}
    content = cifar.Content(split_sha256, "sha256:" + content_sha256(*parts["train"], *parts["test"]))
    with contextlib.suppress(UserError):
        write_atomic(_content_path(dataset), json.dumps(asdict(content)).encode())
    return content


def _content_path(dataset: cifar.Dataset) -> Path:
    """Named after the official files too, so that it answers for no others."""
    files = "".join(batch.sha256 for layout in dataset.layouts for batch in layout.files)
    return _cached_folder() / f"{dataset.name}-{hashlib.sha256(files.encode()).hexdigest()[:16]}.json"


# --- the cache of decoded pictures ---


def _cached_folder() -> Path:
    return cache_dir() / "decoded"


def _cached_paths(dataset: cifar.Dataset, split: StoredSplit) -> tuple[Path, Path]:
    folder = _cached_folder()
    return folder / f"{dataset.name}-{split}-images.npy", folder / f"{dataset.name}-{split}-labels.npy"


def _load_cached(dataset: cifar.Dataset, content: cifar.Content, split: StoredSplit) -> Split | None:
    """The cached split, if it has the checksum of `content`; None if it is missing or wrong."""
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
    if content_sha256(images, labels) != content.split_sha256[split] or len(images) != len(labels):
        return None
    return Split(images, labels.astype(np.int64))


def _store_cached(dataset: cifar.Dataset, split: StoredSplit, content: Split) -> None:
    images_path, labels_path = _cached_paths(dataset, split)
    try:
        images_path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {images_path.parent}: {error.strerror or error}") from error
    for path, array in ((images_path, content.images[:]), (labels_path, content.labels.astype(np.uint8))):
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
