"""Pictures whose names say what is on them, as `cat_017.jpg`: labels by a regular expression."""

from __future__ import annotations

import re

from cifarlab.data.listing import (
    NOT_A_PICTURE,
    SPLIT_NAMES,
    Listing,
    SplitName,
    as_entries,
    is_picture,
    no_pictures,
)
from cifarlab.data.trees import Tree
from cifarlab.errors import UserError

EXAMPLE = r"'(.+)_\d+' for cat_017.jpg"


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Raises UserError if `pattern` is not a regular expression with a group for the label."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--labels-from '{pattern}' is not a regular expression: {error}") from error
    if compiled.groups == 0:
        raise UserError(
            f"--labels-from '{pattern}' has no group: put what is the label in parentheses, as in {EXAMPLE}"
        )
    return compiled


def labels_from_names(tree: Tree, pattern: str) -> Listing:
    """A listing of all pictures in `tree`, each with the label that `pattern` finds in its name.

    `pattern` is looked for in the file's name, or in its whole path below `tree` where the pattern has a `/`. The label
    is its group `label`, or else the first; the split its group `split`, or else the folder `train`, `val`, `valid` or
    `test` at the top. Raises UserError if it does not match every picture, or gives a split to some only.
    """
    compiled = compile_pattern(pattern)
    group = "label" if "label" in compiled.groupindex else 1
    pictures = [name for name in tree.names if is_picture(name)]
    if not pictures:
        raise no_pictures(tree)
    found: list[tuple[str, str, SplitName | None]] = []
    unmatched = []
    for name in pictures:
        match = compiled.search(name if "/" in pattern else name.rpartition("/")[2])
        if match is None or not match[group]:
            unmatched.append(name)
            continue
        word = match["split"] if "split" in compiled.groupindex else name.split("/")[0]
        found.append((name, match[group], SPLIT_NAMES.get((word or "").lower())))
    if unmatched:
        raise UserError(
            f"--labels-from '{pattern}' finds no label in {len(unmatched):,} of the {len(pictures):,} pictures in"
            f" {tree.location}, as {unmatched[0]}"
        )
    without = [name for name, _, split in found if split is None]
    if 0 < len(without) < len(found):
        raise UserError(
            f"{tree.location}: {len(found) - len(without):,} pictures are of a split and {len(without):,} of none, as"
            f" {without[0]}; give all of them a split, or none"
        )
    classes, entries = as_entries(found)
    return Listing(
        location=tree.location,
        layout=f"labels from names, {pattern}",
        classes=classes,
        entries=entries,
        tree=tree,
        left_out=(*tree.left_out, *((name, NOT_A_PICTURE) for name in tree.names if not is_picture(name))),
    )
