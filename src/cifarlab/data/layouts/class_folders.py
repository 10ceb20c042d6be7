"""Pictures in a folder for each class, below folders of splits or not: as most data sets of pictures are kept."""

from __future__ import annotations

from collections.abc import Set

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
    pictures: list[str] = []
    left_out: list[tuple[str, str]] = []
    for name in tree.names:
        if is_picture(name):
            pictures.append(name)
        else:
            left_out.append((name, NOT_A_PICTURE))
    if not pictures:
        raise no_pictures(tree)
    homes = {parent_of(name) for name in pictures}
    root = _root(tree, homes)
    splits = _split_folders(tree, root, homes)
    places = {home: _place(home[len(root) :], splits) for home in homes}
    found: list[tuple[str, str, SplitName | None]] = []
    for name in pictures:
        label, split, why_not = places[parent_of(name)]
        if why_not:
            left_out.append((name, why_not))
        else:
            found.append((name, label, split))
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


def _place(home: str, splits: dict[str, SplitName]) -> tuple[str, SplitName | None, str]:
    """Class and split of what lies in the folder `home`, or why it is left out."""
    parts = home.split("/") if home else []
    split = splits.get(parts[0]) if parts else None
    if splits and split is None:
        return "", None, BESIDE_SPLITS
    if len(parts) < (2 if splits else 1):
        return "", None, NO_CLASS_FOLDER
    return parts[1 if splits else 0], split, ""


def _root(tree: Tree, homes: Set[str]) -> str:
    """What every name begins with where folders hold nothing but one folder, as `photos/` in a zip of `photos`.

    `homes` are the folders in which pictures lie.
    """
    if "" in homes:
        return ""
    root = ""
    while True:
        inside = {name[len(root) :].split("/")[0] for name in tree.folders if name.startswith(root)}
        only = next(iter(inside))
        if len(inside) > 1 or only.lower() in SPLIT_NAMES or root + only in homes:
            return root
        root += f"{only}/"


def _split_folders(tree: Tree, root: str, homes: Set[str]) -> dict[str, SplitName]:
    """Folder name -> split, where the folders right below `root` are of splits and not of classes."""
    named: dict[str, SplitName] = {
        folder: SPLIT_NAMES[folder.lower()]
        for name in tree.folders
        if parent_of(name) == root.rstrip("/") and (folder := name[len(root) :]).lower() in SPLIT_NAMES
    }
    named = dict(sorted(named.items(), key=lambda each: list(SPLIT_NAMES).index(each[0].lower())))
    tops = {home[len(root) :].partition("/")[:2] for home in homes}  # and whether there is a folder below
    if not any(below and named.get(top) == "train" for top, below in tops):
        return {}
    beside = sorted({top for top, _ in tops if top} - set(named))
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
