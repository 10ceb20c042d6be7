"""Pictures that are in memory already as a data source: arrays, or any PyTorch data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cifarlab.data.sources import Source, Split, StoredSplit
from cifarlab.errors import UserError

if TYPE_CHECKING:
    from cifarlab.pictures import Fit

IN_PYTHON = "given in Python"


def from_arrays(
    images: Any,
    labels: Any,
    *,
    test: tuple[Any, Any] | None = None,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
) -> Source:
    """A data source of pictures in memory, for `cifarlab.train(recipe, data=...)`.

    Nothing of it is kept with a run but a checksum: `resume`, `evaluate` and whatever else needs pictures are given the
    same source again.

    Args:
        images: uint8 (N, H, W, 3), or grey (N, H, W) or (N, H, W, 1), 0..255: anything that becomes such an array.
        labels: (N,): places in `classes`, from 0, or names out of it; without `classes`, any numbers or names.
        test: images and labels to judge on; without, `evaluate` has the validation split alone.
        classes: names, in the order of the network's outputs; by default the different labels, sorted.
        name: what the data is called in runs.

    Raises:
        UserError: when the arrays are not such, do not fit each other, or have fewer than two classes.
    """
    pictures = as_pictures(images, "images")
    named = _as_labels(labels, len(pictures), "labels")
    names, indices = _classes(named, classes)
    if len(names) < 2:
        raise UserError(f"labels should have two classes or more, {len(names)} given")
    content: dict[StoredSplit, Split] = {"train": Split(pictures, indices)}
    if test is not None:
        content["test"] = _test_split(test, pictures.shape, names, classes)

    def read(split: StoredSplit) -> Split:
        return content[split]

    return Source(
        name=name,
        location=IN_PYTHON,
        classes=names,
        checksum=_checksum(names, content),
        read=read,
        splits=tuple(content),
        in_memory=True,
    )


def from_dataset(
    dataset: Any, *, test: Any = None, classes: Sequence[str] | None = None, name: str | None = None
) -> Source:
    """A data source of a PyTorch data set (`torch.utils.data.Dataset`), every picture of which is taken into memory.

    An item is a picture and a label, as `torchvision.datasets` gives them. A picture is a Pillow image, a uint8 array
    (H, W, 3), a uint8 tensor (3, H, W), or a float tensor (3, H, W) of 0..1 as `ToTensor` makes it; all of one
    size. Random changes and normalising belong into the recipe (`augment.*`, `data.preparation`): here they would be
    done once for all.

    Args:
        dataset, test: with `len()` and items by number.
        classes: as for `from_arrays`; by default `dataset.classes`, where there is such.
        name: by default that of the data set's class, in lower case.

    Raises:
        UserError: as `from_arrays`, and for items of another kind.
    """
    names = classes if classes is not None else getattr(dataset, "classes", None)
    images, labels = _items(dataset, "dataset")
    return from_arrays(
        images,
        labels,
        test=None if test is None else _items(test, "test"),
        classes=names,
        name=name or type(dataset).__name__.lower(),
    )


def from_folder(
    path: str | Path,
    *,
    size_pixels: int | None = None,
    fit: Fit = "squash",
    skip_unreadable: bool = False,
    labels_from: str | None = None,
) -> Source:
    """A data source of picture files: whatever the option `--data PATH` takes.

    A folder of class folders, a zip, a manifest, a `.npz`: see docs/how-to/own-pictures.md. They are decoded now, once,
    to the user's cache. A run remembers where they are, and opens them again by itself.

    Args:
        size_pixels, fit: as the recipe's `input.size` and `input.fit`, which decide when a recipe is trained.
        skip_unreadable: go on without the pictures that cannot be read.
        labels_from: a pattern of file names.

    Raises:
        UserError: when there is nothing that can be trained on.
    """
    from cifarlab.data.listing import Reading
    from cifarlab.data.own_pictures import open_pictures

    reading = Reading(skip_unreadable=skip_unreadable, labels_from=labels_from)
    return open_pictures(Path(path), reading, size_pixels, fit)


def as_pictures(images: Any, what: str) -> np.ndarray:
    """uint8 (N, H, W, 3), C-contiguous. Raises UserError for anything but whole numbers 0..255 of such a shape."""
    array = np.asarray(images)
    if array.dtype != np.uint8:
        raise UserError(f"{what} should be uint8, 0 to 255, {array.dtype} given{_how_to_convert(array)}")
    grey = array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 1)
    if array.ndim == 4 and array.shape[1] == 3 and array.shape[3] not in (1, 3):
        raise UserError(
            f"{what} should be (N, H, W, 3), {array.shape} given: channels come last: .transpose(0, 2, 3, 1)"
        )
    if not (grey or (array.ndim == 4 and array.shape[3] == 3)) or 0 in array.shape:
        raise UserError(f"{what} should be (N, H, W, 3), or grey (N, H, W), with pixels, {array.shape} given")
    if grey:
        return np.repeat(array.reshape(*array.shape[:3], 1), 3, axis=3)
    return np.array(
        array, order="C"
    )  # a copy: what has the checksum is what is used, whatever becomes of theirs


def _how_to_convert(array: np.ndarray) -> str:
    if array.dtype.kind == "f" and array.size and array.min() >= 0.0 and array.max() <= 1.0:
        return ": (images * 255).round().astype('uint8') makes it so"
    return ""


def _as_labels(given: Any, n: int, what: str) -> np.ndarray:
    """(n,) numbers or str: names may also be bytes in UTF-8, or objects, as pandas has them."""
    labels = np.asarray(given)
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    elif labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels.flat):
        labels = labels.astype(str)
    if labels.ndim != 1 or labels.dtype.kind not in "iubU":
        raise UserError(
            f"{what} should be numbers or names, one for each picture, {labels.dtype} {labels.shape} given"
        )
    if len(labels) != n:
        raise UserError(f"there are {n:,} images and {len(labels):,} {what}")
    return labels


def _classes(labels: np.ndarray, classes: Sequence[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Names, and each label's place among them, int64 (N,)."""
    if classes is None:
        values, places = np.unique(labels, return_inverse=True)
        return tuple(str(value) for value in values), places.astype(np.int64)
    names = tuple(str(name) for name in classes)
    if len(set(names)) < len(names):
        raise UserError(f"classes should differ, {len(names) - len(set(names))} of {len(names)} are repeated")
    return names, _places(labels, names, "labels")


def _places(labels: np.ndarray, names: tuple[str, ...], what: str) -> np.ndarray:
    if labels.dtype.kind in "iub":
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(names)):
            raise UserError(
                f"{what} should be 0 to {len(names) - 1}, one of {len(names)} classes, {labels.min()} to"
                f" {labels.max()} given"
            )
        return labels.astype(np.int64)
    place = {name: index for index, name in enumerate(names)}
    unknown = sorted(set(map(str, labels)) - set(names))
    if unknown:
        raise UserError(f"{what} has '{unknown[0]}', which is none of the {len(names)} classes")
    return np.array([place[str(label)] for label in labels], np.int64)


def _test_split(
    test: tuple[Any, Any],
    shape: tuple[int, ...],
    names: tuple[str, ...],
    classes: Sequence[str] | None,
) -> Split:
    images = as_pictures(test[0], "test images")
    labels = _as_labels(test[1], len(images), "test labels")
    if images.shape[1:] != shape[1:]:
        raise UserError(f"test images are {images.shape[1:3]}, and those to train on {shape[1:3]}")
    if classes is None:  # classes are the values that training pictures have
        return Split(images, _places(labels.astype(str), names, "test labels"))
    return Split(images, _places(labels, names, "test labels"))


def _checksum(names: tuple[str, ...], content: dict[StoredSplit, Split]) -> str:
    digest = hashlib.sha256(json.dumps(names).encode())
    for split, pictures in content.items():
        digest.update(f"{split} {pictures.images.shape}".encode())
        digest.update(pictures.images[:].data)
        digest.update(pictures.labels.astype("<i8").data)
    return f"sha256:{digest.hexdigest()}"


def _items(dataset: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise UserError(f"{what} should have a length and items by number, {type(dataset).__name__} has not")
    pictures: list[np.ndarray] = []
    labels: list[Any] = []
    for place in range(len(dataset)):
        item = dataset[place]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise UserError(f"item {place} of {what} should be a picture and its label")
        pictures.append(_picture(item[0], f"picture {place} of {what}"))
        labels.append(item[1].item() if hasattr(item[1], "item") else item[1])
    if len({picture.shape for picture in pictures}) > 1:
        raise UserError(
            f"pictures of {what} should be of one size, {pictures[0].shape[:2]} and others given: resize them in the"
            " data set, or train from their folder"
        )
    if not pictures:
        raise UserError(f"{what} is empty")
    return np.stack(pictures), np.array(labels)


def _picture(picture: Any, what: str) -> np.ndarray:
    """uint8 (H, W, 3), or (H, W) where it is grey."""
    if hasattr(picture, "convert"):  # Pillow
        return np.asarray(picture.convert("RGB"))
    is_tensor = type(picture).__module__.split(".")[0] in ("torch", "torchvision")
    array = np.asarray(picture)
    if is_tensor and array.ndim == 3 and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.dtype.kind == "f" and array.size:
        if not (array.min() >= 0.0 and array.max() <= 1.0):
            raise UserError(
                f"{what} has values {array.min():g} to {array.max():g}; it should have 0 to 1: leave normalising to the"
                " recipe's data.preparation"
            )
        array = np.round(array * 255).astype(np.uint8)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise UserError(
            f"{what} should be a Pillow image, or RGB or grey values, {array.dtype} {array.shape} given"
        )
    return array
