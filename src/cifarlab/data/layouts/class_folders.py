"""Pictures in a folder for each class, below folders of splits or not: as most data sets of pictures are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cifarlab.data.layouts.file_names import EXAMPLE
from cifarlab.data.layouts.manifest import needs_parquet
from cifarlab.data.listing import (
    NOT_A_PICTURE,
    SPLIT_NAMES,
    Listing,
    SplitName,
    as_entries,
    is_picture,
    no_pictures,
    ordered_classes,
)
from cifarlab.data.trees import Tree, parent_of
from cifarlab.errors import UserError, one_of

NO_CLASS_FOLDER = "not in a class folder"
BESIDE_SPLITS = "beside the folders of splits"


def class_folders(tree: Tree) -> Listing:
    """A listing of pictures that lie in a folder for each class, at any depth, with folders `train`, `val` or `valid`,
    and `test` above them or not. A folder that holds nothing but one folder stands for that one.

    Raises UserError if there are no pictures, none in a class folder, or it is not plain which folders are splits.
    """
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
        raise UserError(_no_classes(tree, root))
    named = _class_names(tree, root, splits)
    classes, entries = as_entries(found)
    return Listing(
        location=tree.location,
        layout="class folders" + (f" in {', '.join(splits)}" if splits else ""),
        classes=classes,
        entries=entries,
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
    named = dict(sorted(named.items(), key=lambda each: list(SPLIT_NAMES).index(each[0].lower())))
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


def _no_classes(tree: Tree, root: str) -> str:
    where = f"{tree.location}/{root}".rstrip("/")
    return (
        f"{where} holds pictures, but no folder for each class: --labels-from PATTERN takes labels from file names, as"
        f" {EXAMPLE}, and a manifest with columns path and label names them{needs_parquet(tree)}"
    )
