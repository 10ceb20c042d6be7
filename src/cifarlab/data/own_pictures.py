"""Somebody's own pictures as a data source: listed, decoded, near duplicates found, a test split cut if need be."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cifarlab import text
from cifarlab.data.decoded import Decoded, Progress, decode
from cifarlab.data.listing import Entry, Listing, Reading, check_trainable, list_pictures
from cifarlab.data.mapped import from_cache
from cifarlab.data.sources import PICTURE_FILES_PIXELS, Source, Split, StoredSplit, name_of_pictures
from cifarlab.data.splits import hold_out
from cifarlab.data.survey import FEWEST, survey
from cifarlab.errors import UserError
from cifarlab.pictures import Fit

TEST_FRACTION = 0.2
TEST_SEED = 2020


def open_pictures(
    path: Path,
    reading: Reading = Reading(),
    size_pixels: int | None = None,
    fit: Fit = "squash",
    progress: Progress | None = None,
) -> Source:
    """The pictures at `path`, a folder or whatever else `list_pictures` understands, `size_pixels` a side.

    They are decoded once (`cifarlab.data.decoded`); `progress(done, total)` is called meanwhile. Where neither
    validation nor test pictures are given, a fifth of each class is cut off to test on, the same for every recipe and
    seed. Near duplicates are on one side of every cut.

    Raises:
        UserError: when there is nothing that can be trained on, or a picture cannot be read and `reading` does not say
            to go on without.
    """
    path = path.expanduser().absolute()
    listing = list_pictures(path, reading)
    check_trainable(listing)
    size = size_pixels or PICTURE_FILES_PIXELS
    decoded = decode(listing, size, fit, progress)
    _check_readable(listing, decoded, reading)
    kept = np.array([place for place in range(len(listing.entries)) if place not in decoded.reasons])
    entries = [listing.entries[place] for place in kept]
    labels = np.array([entry.label for entry in entries], np.int64)
    _check_counts(listing, labels)
    groups = decoded.groups[kept]
    splits = _splits(entries, labels, groups, listing.classes)
    places = {"train": np.flatnonzero(splits != "test"), "test": np.flatnonzero(splits == "test")}
    train = places["train"]

    def read(split: StoredSplit) -> Split:
        return Split(from_cache(decoded.pixels, kept[places[split]]), labels[places[split]])

    return Source(
        name=name_of_pictures(path),
        location=str(path),
        classes=listing.classes,
        checksum=_checksum(listing.classes, splits, labels, decoded.sha256[kept]),
        read=read,
        splits=("train", "test") if len(places["test"]) else ("train",),
        validation=np.flatnonzero(splits[train] == "validation") if "validation" in splits else None,
        groups=groups[train],
        reading=asdict(reading),
        survey=lambda: survey(listing, decoded),
        decoded_at=(size, fit),
        at_size=lambda size, fit: open_pictures(path, reading, size, fit),
    )


def _check_readable(listing: Listing, decoded: Decoded, reading: Reading) -> None:
    if not decoded.reasons or reading.skip_unreadable:
        return
    first = min(decoded.reasons)
    what = f"{listing.entries[first].name} {decoded.reasons[first]}"
    n = len(decoded.reasons)
    more = "" if n == 1 else f", and {n - 1:,} more pictures cannot be read"
    raise UserError(f"{listing.location}: {what}{more}; --skip-unreadable goes on without")


def _check_counts(listing: Listing, labels: np.ndarray) -> None:
    counts = np.bincount(labels, minlength=len(listing.classes))
    few = np.flatnonzero(counts < (1 if listing.splits else FEWEST))
    if len(few) == 0:
        return
    name, n = listing.classes[few[0]], text.count(int(counts[few[0]]), "picture")
    more = len(few) - 1
    others = f", and {more:,} more {'class has' if more == 1 else 'classes have'} too few" if more else ""
    raise UserError(
        f"{listing.location}: class '{name}' has {n} that can be read{others}; {FEWEST} are"
        " the fewest: one each to train on, to validate on and to test on; add some, or remove the class"
    )


def _splits(
    entries: list[Entry], labels: np.ndarray, groups: np.ndarray, classes: tuple[str, ...]
) -> np.ndarray:
    """Of each picture "train", "validation" or "test": as given, else a test split is cut."""
    given = np.array([entry.split or "train" for entry in entries])
    if set(given) != {"train"}:
        return given
    n_test = round(len(labels) * TEST_FRACTION)
    given = given.astype("U10")
    given[hold_out(labels, max(n_test, len(classes)), TEST_SEED, groups, classes)] = "test"
    return given


def _checksum(classes: tuple[str, ...], splits: np.ndarray, labels: np.ndarray, sha256: np.ndarray) -> str:
    """Of class names, and of every picture's split, label and file, in their order: not of size or fit."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split, label, file in zip(splits.tolist(), labels.tolist(), sha256, strict=True):
        digest.update(f"{split} {label} ".encode() + file.tobytes())
    return f"sha256:{digest.hexdigest()}"
