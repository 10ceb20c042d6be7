"""Files below a folder or in a zip, under their relative names: listed once, read one by one, nothing extracted.

Names have `/` between their parts and are valid Unicode. What systems leave behind (`.DS_Store`, `Thumbs.db`,
`__MACOSX`, whatever begins with a dot) is not listed.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import stat
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

from cifarlab.errors import UserError
from cifarlab.pictures import LARGEST_FILE_BYTES, read_file

CLUTTER = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found"}
)
LISTED_ALREADY = "a link to a folder that is listed already"
LEADS_UP = "a link to a folder that holds this one"
LEADS_NOWHERE = "a link that leads nowhere"
LINK_IN_ZIP = "a link within a zip"
ENCRYPTED = 0x1  # of a member's flags: APPNOTE.TXT 6.3.10, section 4.4.4
NAME_IS_UTF8 = 0x800


class Tree(Protocol):
    """Files under relative names. Reading is safe in threads and, by pickling, in processes."""

    @property
    def location(self) -> Path: ...
    @property
    def names(self) -> tuple[str, ...]:
        """Of the files, sorted."""
        ...

    @property
    def folders(self) -> tuple[str, ...]:
        """Of the folders, empty ones too, sorted."""
        ...

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of what was not followed."""
        ...

    def state(self, name: str) -> tuple[int, ...]:
        """Length in bytes, and what changes when the file does; (0,) for one that is not there."""
        ...

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises UserError, one line with its name, if it cannot be read or is over 512 MiB."""
        ...


@dataclass(frozen=True, eq=False)
class Folder:
    """A `Tree` of the files in a folder and below."""

    location: Path
    names: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    stored_names: Mapping[str, str] = field(default_factory=dict)
    """What the disk calls the files whose names are not valid UTF-8."""

    def __getstate__(self) -> dict[str, Any]:
        """Without what reading does not need: of a million files it would take long to pickle."""
        return self.__dict__ | {"names": (), "folders": (), "left_out": ()}

    def state(self, name: str) -> tuple[int, ...]:
        try:
            status = os.stat(os.path.join(self.location, self.stored_names.get(name, name)))
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            return (0,)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def read(self, name: str) -> bytes:
        try:
            return read_file(os.path.join(self.location, self.stored_names.get(name, name)))
        except UserError as error:
            raise UserError(f"{name} cannot be read: {error}") from error


class Zip:
    """A `Tree` of the members of a zip file."""

    def __init__(self, location: Path, members: dict[str, zipfile.ZipInfo], folders: tuple[str, ...]) -> None:
        self.location = location
        self.members = {
            name: info for name, info in members.items() if not stat.S_ISLNK(info.external_attr >> 16)
        }
        self.names = tuple(sorted(self.members))
        self.folders = folders
        self.left_out = tuple((name, LINK_IN_ZIP) for name in members if name not in self.members)
        self._opened: dict[int, zipfile.ZipFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def state(self, name: str) -> tuple[int, ...]:
        info = self.members.get(name)
        return (0,) if info is None else (info.file_size, info.CRC, info.header_offset)

    def read(self, name: str) -> bytes:
        info = self.members.get(name)
        if info is None:
            raise UserError(f"{name} cannot be read: it is not in the zip")
        if info.file_size > LARGEST_FILE_BYTES:
            size, most = info.file_size / 2**20, LARGEST_FILE_BYTES // 2**20
            raise UserError(f"{name} is too large: {size:.0f} MiB; at most {most} MiB are read")
        try:
            with self._archive().open(info) as file:
                return file.read(LARGEST_FILE_BYTES)
        except (
            zipfile.BadZipFile,
            zlib.error,
            lzma.LZMAError,
            EOFError,
            NotImplementedError,
            RuntimeError,
            OSError,
        ) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{name} cannot be read: {reason}") from error

    def _archive(self) -> zipfile.ZipFile:
        """Opened once in each process: a forked one must not share the position in the file."""
        process = os.getpid()
        if process not in self._opened:
            self._opened[process] = zipfile.ZipFile(self.location)
        return self._opened[process]


def open_tree(location: Path) -> Tree:
    """The files in a folder or in a zip. Raises UserError if it is neither, or cannot be read."""
    return open_folder(location) if location.is_dir() else open_zip(location)


def parent_of(name: str) -> str:
    return name.rpartition("/")[0]


# --- folders ---


def open_folder(location: Path) -> Folder:
    """The files below a folder, links followed, each folder listed once, however links lead round.

    Raises UserError for a folder that cannot be read.
    """
    names, folders, left_out = [], [], []
    stored: dict[str, str] = {}
    for name, kind in _walk(location):
        shown = name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")
        if shown != name:
            stored[shown] = name
        if kind == "file":
            names.append(shown)
        elif kind == "folder":
            folders.append(shown)
        else:
            left_out.append((shown, kind))
    return Folder(location, tuple(sorted(names)), tuple(sorted(folders)), tuple(sorted(left_out)), stored)


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    """(relative name, "file" | "folder" | why it is left out): the folders that are really there first, so that a link
    to one of them never takes its place, then those behind links."""
    reached: set[tuple[int, int]] = set()
    real, linked = deque([""]), deque[str]()
    while real or linked:
        is_link = not real
        folder = (real or linked).popleft()
        status = (root / folder).stat()
        identity = status.st_dev, status.st_ino
        if identity in reached or (is_link and _holds(root / folder, root)):
            yield folder, LISTED_ALREADY if identity in reached else LEADS_UP
            continue
        reached.add(identity)
        if folder:
            yield folder, "folder"
        for item in _items(root / folder):
            name = f"{folder}/{item.name}" if folder else item.name
            try:
                is_folder = item.is_dir()
            except OSError:
                yield name, LEADS_NOWHERE
                continue
            if not is_folder:
                yield name, "file"
            else:
                (linked if item.is_symlink() else real).append(name)


def _items(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return sorted((item for item in items if not _is_clutter(item.name)), key=attrgetter("name"))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror or error}") from error


def _holds(outer: Path, inner: Path) -> bool:
    return inner.resolve().is_relative_to(outer.resolve())


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


# --- zip files ---


def open_zip(location: Path) -> Zip:
    """The members of a zip file.

    Raises UserError if it is missing, damaged, cut short, encrypted, or has a member whose name leads out of it.
    """
    try:
        with zipfile.ZipFile(location) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise UserError(f"{location} is damaged or cut short: not a whole zip ({error})") from error
    except OSError as error:
        raise UserError(f"cannot read {location}: {error.strerror or error}") from error
    members: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for info in infos:
        name = _member_name(location, info)
        parts = name.rstrip("/").split("/")
        if parts == [""] or any(_is_clutter(part) for part in parts):  # "": `./`, the root itself
            continue
        if info.flag_bits & ENCRYPTED:
            raise UserError(f"{location} is encrypted ({name}): make one without a password")
        inside = parts if name.endswith("/") else parts[:-1]
        folders.update("/".join(inside[:depth]) for depth in range(1, len(inside) + 1))
        if not name.endswith("/"):
            members[name] = info
    return Zip(location, members, tuple(sorted(folders)))


def _member_name(location: Path, info: zipfile.ZipInfo) -> str:
    """With `/` between parts. Names without the flag of UTF-8 are UTF-8 all the same where they can be, as many
    programs write them."""
    name = info.filename
    if not info.flag_bits & NAME_IS_UTF8:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    name = name.replace("\\", "/")
    parts = name.rstrip("/").split("/")
    if ".." in parts or name.startswith("/") or parts[0].endswith(":"):
        raise UserError(
            f"{location} has a member whose name leads out of it: {info.filename!r}; it is not read"
        )
    return "/".join(part for part in parts if part not in ("", ".")) + "/" * name.endswith("/")
