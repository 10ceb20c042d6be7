"""Pictures as NumPy arrays in one `.npz` file: each is read as a PNG of itself, so that one way in does for all."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cifarlab import text
from cifarlab.data.listing import SPLIT_NAMES, Listing, SplitName, entries_of, ordered_classes
from cifarlab.data.mapped import memory_bytes
from cifarlab.errors import UserError, one_of

PAIRS = (("images", "labels"), ("x", "y"), ("X", "y"), ("data", "labels"))
CLASS_NAMES = ("classes", "class_names", "label_names")
CHANNELS = (1, 3, 4)
LAYOUT_HINT = "uint8 (N, H, W) or (N, H, W, 1, 3 or 4)"


class Arrays:
    """A `Tree` whose files are the pictures of arrays uint8 (N, H, W) or (N, H, W, C): `x_train[17]`."""

    folders: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    def __init__(self, location: Path, images: Mapping[str, np.ndarray]) -> None:
        self.location = location
        self.images = dict(images)
        status = location.stat()
        self._state = status.st_size, status.st_mtime_ns, status.st_ctime_ns

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{array}[{at}]" for array, values in self.images.items() for at in range(len(values)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"images": dict.fromkeys(self.images)}

    def state(self, name: str) -> tuple[int, ...]:
        array, at = _parts(name)
        return self.images[array][at].nbytes, *self._state

    def read(self, name: str) -> bytes:
        array, at = _parts(name)
        if self.images[array] is None:  # in another process
            with np.load(self.location, allow_pickle=False) as stored:
                self.images[array] = stored[array]
        pixels = self.images[array][at]
        file = io.BytesIO()
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels).save(
            file, "PNG", compress_level=0
        )
        return file.getvalue()


def _parts(name: str) -> tuple[str, int]:
    array, _, at = name.rstrip("]").rpartition("[")
    return array, int(at)


def list_npz(path: Path) -> Listing:
    """The pictures of a `.npz` file: arrays `images` and `labels`, or `x` and `y`, of all or of each split, as
    `x_train` or `train_images`; and perhaps `classes`, names of which the labels are then indices.

    Raises UserError if they are not there, or are not pictures and labels.
    """
    try:
        stored = _load(path)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError, NotImplementedError) as error:
        raise UserError(f"{path} cannot be read as NumPy's .npz: {' '.join(str(error).split())}") from error
    pairs = _pairs(stored)
    if not pairs:
        raise UserError(
            f"{path} has the arrays {one_of(stored or ['(none)'], 'and')}; pictures and labels are looked for under"
            " images and labels, or x and y, or with the split, as x_train and y_train"
        )
    if len({split is None for _, _, split in pairs}) > 1:
        raise UserError(
            f"{path} has pictures with a split and without: {one_of([p[0] for p in pairs], 'and')}"
        )
    names = _class_names(path, stored)
    found: list[tuple[str, str, SplitName | None]] = []
    for images, labels, split in pairs:
        _check_images(path, images, stored[images])
        texts = _labels(path, labels, stored[labels], len(stored[images]), names)
        found.extend((f"{images}[{at}]", label, split) for at, label in enumerate(texts))
    if not found:
        raise UserError(f"no pictures in {path}: its arrays are empty")
    used = {label for _, label, _ in found}
    classes = (
        ordered_classes(used) if names is None else tuple(str(name) for name in names if str(name) in used)
    )
    return Listing(
        location=path,
        layout=f"arrays {one_of([images for images, _, _ in pairs], 'and')}",
        classes=classes,
        entries=entries_of(found, classes),
        tree=Arrays(path, {images: stored[images] for images, _, _ in pairs}),
        empty_classes=() if names is None else tuple(str(name) for name in names if str(name) not in used),
    )


def _load(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        needed_bytes = sum(info.file_size for info in archive.infolist())
    if needed_bytes > memory_bytes():
        raise UserError(
            f"{path} holds {text.size(needed_bytes)}, and this machine has {text.size(memory_bytes())} of memory: write"
            " the pictures as files"
        )
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _class_names(path: Path, stored: Mapping[str, np.ndarray]) -> np.ndarray | None:
    name = next((name for name in CLASS_NAMES if name in stored), None)
    if name is None:
        return None
    names = stored[name]
    if names.ndim != 1 or len(set(names.tolist())) < len(names):
        raise UserError(
            f"{path}: {name} is {names.dtype} {names.shape}; a list of names is needed, each of them once"
        )
    return names


def _pairs(stored: Mapping[str, np.ndarray]) -> list[tuple[str, str, SplitName | None]]:
    """(images, labels, split) of the arrays that belong together by their names."""
    found: list[tuple[str, str, SplitName | None]] = []
    for images, labels in PAIRS:
        if images in stored and labels in stored:
            found.append((images, labels, None))
        for word, split in SPLIT_NAMES.items():
            for names in ((f"{images}_{word}", f"{labels}_{word}"), (f"{word}_{images}", f"{word}_{labels}")):
                if names[0] in stored and names[1] in stored:
                    found.append((names[0], names[1], split))
    return found


def _check_images(path: Path, name: str, images: np.ndarray) -> None:
    given = f"{path}: {name} is {images.dtype} {images.shape}"
    if images.dtype != np.uint8:
        raise UserError(f"{given}; pictures are {LAYOUT_HINT}, 0 to 255")
    if images.ndim == 4 and images.shape[3] not in CHANNELS and images.shape[1] in CHANNELS:
        raise UserError(f"{given}: its channels come first; pictures are {LAYOUT_HINT}")
    if (
        images.ndim not in (3, 4)
        or (images.ndim == 4 and images.shape[3] not in CHANNELS)
        or 0 in images.shape[1:]
    ):
        raise UserError(f"{given}; pictures are {LAYOUT_HINT}")


def _labels(path: Path, name: str, labels: np.ndarray, n: int, names: np.ndarray | None) -> list[str]:
    """Of each of `n` pictures its class's name."""
    values = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if values.shape != (n,) or values.dtype.kind not in "iuUb":
        raise UserError(
            f"{path}: {name} is {labels.dtype} {labels.shape}; {n:,} whole numbers or names are needed, one for each"
            " picture"
        )
    if names is None or values.dtype.kind == "U":
        return [str(value) for value in values.tolist()]
    wrong = np.flatnonzero((values < 0) | (values >= len(names)))
    if len(wrong):
        raise UserError(
            f"{path}: {name}[{wrong[0]}] is {values[wrong[0]]}, and there are {len(names)} classes"
        )
    return [str(names[value]) for value in values.tolist()]
