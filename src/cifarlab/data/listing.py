"""What pictures a person has, of which classes, in which splits: listed by name, not opened yet.

Each layout that is understood gives a `Listing`. Whatever uses somebody's own pictures begins with one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cifarlab.data.trees import Tree, open_tree, parent_of
from cifarlab.errors import UserError, one_of
from cifarlab.pictures import OPENERS, SUFFIXES

SplitName = Literal["train", "validation", "test"]

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
NO_CLASS_FOLDER = "not in a class folder"
BESIDE_SPLITS = "beside the folders of splits"


@dataclass(frozen=True)
class Reading:
    """How somebody's pictures are to be read: kept with a run, so that they are read alike for ever after."""

    skip_unreadable: bool = False
    """Go on without the pictures that cannot be read."""


@dataclass(frozen=True)
class Entry:
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
    """The pictures at `path`: a folder or a zip with a folder for each class, below `train/`, `val/` or `valid/`, and
    `test/`, or without these.

    Below a class folder pictures may lie at any depth. A folder that holds nothing but one folder stands for that one.
    Raises UserError if there is nothing at `path`, or no picture that belongs to a class.
    """
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    return class_folders(open_tree(path))


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


def is_picture(name: str) -> bool:
    """By its suffix, in any case."""
    dot = name.rfind(".")
    return dot > name.rfind("/") and name[dot:].lower() in SUFFIXES


def no_pictures(listed: Tree) -> UserError:
    others = Counter(Path(name).suffix.lower() or "no suffix" for name in listed.names)
    found = ", ".join(f"{n:,} of {suffix}" for suffix, n in others.most_common(3))
    there = f"; other files: {found}" if found else ""
    return UserError(
        f"no pictures in {listed.location}: {one_of(OPENERS)} files are looked for, by suffix{there}"
    )


# --- a folder for each class ---


def class_folders(tree: Tree) -> Listing:
    """A listing of pictures that lie in a folder for each class, with folders of splits above them or not."""
    pictures = [name for name in tree.names if is_picture(name)]
    if not pictures:
        raise no_pictures(tree)
    root = _root(tree, pictures)
    splits = _split_folders(tree, root, pictures)
    found: list[tuple[str, str, SplitName | None]] = []
    left_out = [(name, NOT_A_PICTURE) for name in tree.names if not is_picture(name)]
    for name in pictures:
        parts = name[len(root) :].split("/")
        split = splits.get(parts[0])
        if splits and split is None:
            left_out.append((name, BESIDE_SPLITS))
        elif len(parts) < (3 if splits else 2):
            left_out.append((name, NO_CLASS_FOLDER))
        else:
            found.append((name, parts[1 if splits else 0], split))
    if not found:
        raise UserError(_no_classes(tree, root, splits))
    named = _class_names(tree, root, splits)
    classes = ordered_classes(label for _, label, _ in found)
    index = {name: label for label, name in enumerate(classes)}
    return Listing(
        location=tree.location,
        layout="class folders" + (f" in {', '.join(splits)}" if splits else ""),
        classes=classes,
        entries=tuple(Entry(name, index[label], split) for name, label, split in found),
        tree=tree,
        empty_classes=ordered_classes(named - set(classes)),
        left_out=(*tree.left_out, *left_out),
    )


def _root(tree: Tree, pictures: Sequence[str]) -> str:
    """What every name begins with where folders hold nothing but one folder, as `photos/` in a zip of `photos`."""
    root = ""
    while True:
        inside = {name[len(root) :].split("/")[0] for name in (*pictures, *_below(tree.folders, root))}
        only = next(iter(inside))
        is_class = any(parent_of(name) == root + only for name in pictures)
        if len(inside) > 1 or only.lower() in SPLIT_NAMES or only in pictures or is_class:
            return root
        root += f"{only}/"


def _below(names: Iterable[str], root: str) -> list[str]:
    return [name for name in names if name.startswith(root) and name != root]


def _split_folders(tree: Tree, root: str, pictures: Sequence[str]) -> dict[str, SplitName]:
    """Folder name -> split, where the folders right below `root` are of splits and not of classes."""
    named: dict[str, SplitName] = {
        folder: SPLIT_NAMES[folder.lower()]
        for name in tree.folders
        if parent_of(name) == root.rstrip("/") and (folder := name[len(root) :]).lower() in SPLIT_NAMES
    }
    with_classes = {
        parts[0] for name in pictures if len(parts := name[len(root) :].split("/")) > 2 and parts[0] in named
    }
    if not any(named[folder] == "train" for folder in with_classes):
        return {}
    beside = sorted(
        {name[len(root) :].partition("/")[0] for name in pictures if "/" in name[len(root) :]} - set(named)
    )
    if len(named) == 1 and beside:
        raise UserError(
            f"{tree.location}: is {next(iter(named))} a split or a class? {one_of(beside[:4], 'and')} are beside it; "
            "rename it, or list the pictures in a manifest"
        )
    for split in set(named.values()):
        twice = sorted(folder for folder in named if named[folder] == split)
        if len(twice) > 1:
            raise UserError(f"{tree.location} has the {split} split twice: {one_of(twice, 'and')}; keep one")
    return named


def _class_names(tree: Tree, root: str, splits: dict[str, SplitName]) -> set[str]:
    """The names of all class folders, of empty ones too."""
    tops = [root + split for split in splits] or [root.rstrip("/")]
    return {name.rpartition("/")[2] for name in tree.folders if parent_of(name) in tops}


def _no_classes(tree: Tree, root: str, splits: dict[str, SplitName]) -> str:
    where = f"{tree.location}/{root}" if root else str(tree.location)
    return f"{where.rstrip('/')} holds pictures, but no folder for each class: their labels are not known"
