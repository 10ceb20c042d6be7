"""Writing files so that a reader sees the old bytes or the new ones, never half of either."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cifarlab.errors import UserError

CHUNK_BYTES = 1 << 20


def write_atomic(path: Path, data: bytes | Iterable[bytes | memoryview]) -> str:
    """Write `data` to `path` in one step and return the SHA-256 of what was written, in hex.

    The bytes go to a temporary name in the same folder, are flushed to the disk, and take their name by
    a rename, which is flushed too: after a crash at any moment `path` holds the old bytes or the new.
    `data` is bytes, or an iterable of byte chunks for what should not be copied whole.

    Raises UserError if the file cannot be written (no space, no permission, no such folder); the
    temporary file is gone then and whatever `path` held before is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    existed = os.path.lexists(path)
    digest = hashlib.sha256()
    try:
        try:
            with temporary.open("xb", buffering=0) as file:
                for chunk in [data] if isinstance(data, bytes) else data:
                    digest.update(chunk)
                    write_all(file.fileno(), chunk)
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        left = "what it held before is unchanged" if existed else "nothing was left behind"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {left}") from error
    return digest.hexdigest()


@contextmanager
def opened_for_update(path: Path) -> Iterator[int]:
    """A descriptor to read and write `path` with, for a lock or for bytes that come piece by piece.

    The file is made where there is none, and never shortened. Raises UserError if it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """`os.write` until every byte is written: a full disk may take the first part of a chunk only."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Flush a folder to the disk: a rename in it is certain only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> Path:
    """The user's cache folder for this program: $XDG_CACHE_HOME/cifarlab, else ~/.cache/cifarlab.

    It is not created here. A relative XDG_CACHE_HOME is ignored, as the XDG base directory
    specification demands (https://specifications.freedesktop.org/basedir-spec/latest/).
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "cifarlab"
