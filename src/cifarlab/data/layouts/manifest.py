"""Pictures named in a table, one row each: columns `path`, `label` and perhaps `split`, as CSV or Parquet.

Paths are relative to the table's own folder.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from cifarlab.data.listing import (
    SPLIT_NAMES,
    Listing,
    SplitName,
    as_entries,
    is_picture,
)
from cifarlab.data.trees import Folder, Tree, parent_of
from cifarlab.errors import UserError, nearest, one_of

SUFFIXES = (".csv", ".tsv", ".parquet")
NEEDED, COLUMNS = ("path", "label"), ("path", "label", "split")
DELIMITERS = ",;\t"
NOT_IN_MANIFEST = "not in the manifest"

Rows = Mapping[str, Sequence[object]]
"""The columns of a table, by name."""


def is_manifest(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def list_manifest(path: Path) -> Listing:
    """The pictures that the table `path` names, wherever they are. Raises UserError for a table that is not one."""
    return from_manifest(Folder(path.parent), path.name, path)


def find_manifest(tree: Tree) -> str | None:
    """The one table at the top of a folder or zip, or in the only folder there, that has the columns of a manifest.

    Raises UserError if there are several.
    """
    tops = {name.partition("/")[0] for name in tree.names}
    top = next(iter(tops)) if len(tops) == 1 and tops <= set(tree.folders) else ""
    tables = [name for name in tree.names if is_manifest(name) and parent_of(name) == top]
    found = [name for name in tables if _has_columns(tree, name)]
    if len(found) > 1:
        raise UserError(
            f"{tree.location} has {len(found)} manifests, {one_of(found, 'and')}: name the one to use"
        )
    return found[0] if found else None


def from_manifest(tree: Tree, name: str, location: Path | None = None) -> Listing:
    """The pictures that the table `name` within `tree` names.

    Raises UserError if columns are missing, a row lacks its path or label, or a split is not one.
    """
    where = str(location) if location else f"{tree.location}/{name}"
    rows = _lowered(_read(tree, name, where))
    missing = [column for column in NEEDED if column not in rows]
    if missing:
        raise UserError(
            f"{where} has no column '{missing[0]}'{nearest(missing[0], rows)} (its columns are"
            f" {one_of(rows or ['none'], 'and')}; a manifest has path and label, and may have split)"
        )
    paths, labels = (_texts(rows[column], column, where) for column in NEEDED)
    if not paths:
        raise UserError(f"{where} names no picture: it has no row below its columns")
    splits: list[SplitName | None] = [None] * len(paths)
    if "split" in rows:
        splits = [_split(value, row, where) for row, value in enumerate(rows["split"], start=1)]
    names = _below(parent_of(name), paths)
    classes, entries = as_entries(list(zip(names, labels, splits, strict=True)))
    pictures = set(names)
    unnamed = [
        (other, NOT_IN_MANIFEST) for other in tree.names if is_picture(other) and other not in pictures
    ]
    return Listing(
        location=location or tree.location,
        layout=f"manifest {name}" + (" with splits" if "split" in rows else ""),
        classes=classes,
        entries=entries,
        tree=tree,
        left_out=(*tree.left_out, *unnamed),
    )


def needs_parquet(tree: Tree) -> str:
    """The end of a message where a Parquet file might be the manifest that nothing here can read."""
    there = [name for name in tree.names if name.lower().endswith(".parquet")]
    if not there or find_spec("pyarrow") is not None:
        return ""
    return f"; to read {there[0]}: pip install 'cifarlab[parquet]'"


# --- what a row says ---


def _texts(values: Sequence[object], column: str, where: str) -> list[str]:
    texts = ["" if value is None or value != value else str(value) for value in values]  # NaN is no value
    for row, text in enumerate(texts, start=1):
        if not text.strip():
            raise UserError(f"{where}: row {row:,} has no {column}")
    return texts


def _split(value: object, row: int, where: str) -> SplitName:
    split = SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        given = "no split" if value in (None, "") else f"the split '{value}'"
        raise UserError(
            f"{where}: row {row:,} has {given}; it should be train, validation or test"
            f"{nearest(str(value).lower(), SPLIT_NAMES)}"
        )
    return split


def _below(folder: str, paths: Sequence[str]) -> list[str]:
    """Names within the tree. A table in which no path has a `/` but some have a `\\` was written on Windows."""
    if any("\\" in path for path in paths) and not any("/" in path for path in paths):
        paths = [path.replace("\\", "/") for path in paths]
    return [posixpath.normpath(posixpath.join(folder, path)) for path in paths]


# --- files ---


def _has_columns(tree: Tree, name: str) -> bool:
    try:
        return set(NEEDED) <= set(_lowered(_read(tree, name, name)))
    except UserError:
        return False


def _lowered(rows: Rows) -> Rows:
    return {str(column).strip().lower(): values for column, values in rows.items()}


def _read(tree: Tree, name: str, where: str) -> Rows:
    data = tree.read(name)
    return _read_parquet(data, where) if name.lower().endswith(".parquet") else _read_csv(data, where)


def _read_csv(data: bytes, where: str) -> Rows:
    """Columns of a table whose cells are parted by the one of `,`, `;` and tab that its first line has most of."""
    try:
        text = data.decode("utf-8-sig")
        header = text.split("\n", 1)[0]
        lines = csv.reader(
            io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=header.count), strict=True
        )
        names, *rows = [line for line in lines if line] or [[]]
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not text in UTF-8 (byte {error.start:,})") from error
    except csv.Error as error:
        raise UserError(f"{where} is not a table of comma-separated values: {error}") from error
    return {name: [row[at] if at < len(row) else "" for row in rows] for at, name in enumerate(names)}


def _read_parquet(data: bytes, where: str) -> Rows:
    if find_spec("pyarrow") is None:
        raise UserError(f"{where} is a Parquet file, which needs a library: pip install 'cifarlab[parquet]'")
    from pyarrow import ArrowException, BufferReader
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(BufferReader(data)) as file:
            wanted = [name for name in file.schema_arrow.names if name.strip().lower() in COLUMNS]
            table = file.read(columns=wanted)
            others: Iterable[str] = (name for name in file.schema_arrow.names if name not in wanted)
            return {name: table.column(name).to_pylist() for name in wanted} | dict.fromkeys(others, ())
    except (ArrowException, OSError, ValueError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot read {where}: {what}") from error
