"""What pictures a person has, of which classes, in which splits: listed by name, not opened yet.

Each layout that is understood gives a `Listing`. Whatever uses somebody's own pictures begins with one.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from cifarlab.data.trees import Tree, open_tree
from cifarlab.errors import UserError, one_of
from cifarlab.pictures import OPENERS, SUFFIXES, nearest_sibling

SplitName = Literal["test", "validation", "train"]

SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
NOT_A_PICTURE = "not a picture, by its suffix"


@dataclass(frozen=True)
class Reading:
    """How somebody's pictures are to be read: kept with a run, so that they are read alike for ever after."""

    labels_from: str | None = None
    """A regular expression whose group `label`, or else first group, is the label in a file's name."""
    skip_unreadable: bool = False
    """Go on without the pictures that cannot be read."""


class Entry(NamedTuple):
    """One picture: its name as people know it, the index of its class, and its split where splits are given."""

    name: str
    label: int
    split: SplitName | None


@dataclass(frozen=True, eq=False)
class Listing:
    """Pictures by name. Either every entry has a split or none has."""

    location: Path
    layout: str
    """How labels and splits were found, for people: "class folders"."""
    classes: tuple[str, ...]
    """Every class that has an entry, in order: numbers by size, other names by code point."""
    entries: tuple[Entry, ...]
    """In the order of their names."""
    tree: Tree
    empty_classes: tuple[str, ...] = ()
    """Classes that are named but have no picture anywhere."""
    left_out: tuple[tuple[str, str], ...] = ()
    """(name, reason) of files and links that were met and are not among the entries."""

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """The splits that are given, of train, validation, test; none where nothing says."""
        given = {entry.split for entry in self.entries}
        return tuple(split for split in ("train", "validation", "test") if split in given)

    def read(self, entry: Entry) -> bytes:
        """The bytes of a picture file, safe in threads and processes. Raises UserError if it cannot be read."""
        return self.tree.read(entry.name)


def list_pictures(path: Path, reading: Reading = Reading()) -> Listing:
    """The pictures at `path`, in whichever layout of `cifarlab.data.layouts` it has.

    A manifest (`.csv`, `.tsv`, `.parquet`); arrays (`.npz`); or a folder or zip, with labels from file names if
    `reading` says how, else by the manifest within it, else by a folder for each class.
    Raises UserError if there is nothing at `path`, or no picture of which a class is known.
    """
    from cifarlab.data.layouts import class_folders, file_names, manifest, npz

    if not path.exists():
        raise UserError(f"no such file or folder: {path}{nearest_sibling(path)}")
    is_tree = path.is_dir() or zipfile.is_zipfile(path) or path.suffix.lower() == ".zip"
    if reading.labels_from is not None and (path.suffix.lower() == ".npz" or not is_tree):
        raise UserError(f"--labels-from is for a folder or zip of pictures, and {path} is neither")
    if path.suffix.lower() == ".npz" and path.is_file():
        return npz.list_npz(path)
    if manifest.is_manifest(path.name) and path.is_file():
        return manifest.list_manifest(path)
    if not is_tree:
        raise UserError(
            f"{path} is a file, but not a data set: a zip, a manifest ({one_of(manifest.SUFFIXES)}) or a .npz is needed"
        )
    tree = open_tree(path)
    if reading.labels_from is not None:
        return file_names.labels_from_names(tree, reading.labels_from)
    if named := manifest.find_manifest(tree):
        return manifest.from_manifest(tree, named)
    return class_folders.class_folders(tree)


def check_trainable(listing: Listing) -> None:
    """Raises UserError unless there are two classes or more, each with a picture to train on."""
    if len(listing.classes) < 2:
        names = "".join(f" '{name}'" for name in listing.classes)
        raise UserError(
            f"{listing.location} has one class only:{names}; two or more are needed to tell apart"
        )
    trained = {entry.label for entry in listing.entries if entry.split in (None, "train")}
    missing = [name for label, name in enumerate(listing.classes) if label not in trained]
    if missing:
        more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        raise UserError(f"{listing.location} has no training picture of {', '.join(missing[:5])}{more}")


def ordered_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of their labels: numbers by size if all are numbers, else by code point."""
    given = set(names)
    if all(name.isascii() and name.isdigit() for name in given):
        return tuple(sorted(given, key=lambda name: (int(name), name)))
    return tuple(sorted(given))


def as_entries(
    found: Sequence[tuple[str, str, SplitName | None]],
) -> tuple[tuple[str, ...], tuple[Entry, ...]]:
    """The classes of (name, label, split), in order, and an entry of each."""
    classes = ordered_classes(label for _, label, _ in found)
    return classes, entries_of(found, classes)


def entries_of(
    found: Iterable[tuple[str, str, SplitName | None]], classes: Sequence[str]
) -> tuple[Entry, ...]:
    """Of (name, label, split), with labels as their places in `classes`."""
    index = {name: label for label, name in enumerate(classes)}
    return tuple(Entry(name, index[label], split) for name, label, split in found)


def is_picture(name: str) -> bool:
    """By its suffix, in any case."""
    dot = name.rfind(".")
    return dot > name.rfind("/") and name[dot:].lower() in SUFFIXES


def no_pictures(listed: Tree) -> UserError:
    """What to say where there are none: of an official data set, which of its files are missing."""
    from cifarlab.data.sources import incomplete_official

    if (incomplete := incomplete_official(listed.location)) is not None:
        return incomplete
    others = Counter(Path(name).suffix.lower() or "no suffix" for name in listed.names)
    found = ", ".join(f"{n:,} of {suffix}" for suffix, n in others.most_common(3))
    there = f"; other files: {found}" if found else ""
    return UserError(
        f"no pictures in {listed.location}: {one_of(OPENERS)} files are looked for, by suffix{there}"
    )
