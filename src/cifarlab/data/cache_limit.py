"""How much room decoded pictures may take on the disk, and which go when it is more: those that were used longest ago.

A cache that a process has open is locked by it (`held_open`), and is never removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import IO

from cifarlab.errors import UserError
from cifarlab.files import opened_for_update

LIMIT_VARIABLE = "CIFARLAB_CACHE_GB"
LIMIT_GB = 50.0


def limit_bytes() -> int:
    """Of $CIFARLAB_CACHE_GB, else 50 GB (of 10^9 bytes). Raises UserError if it is no number of 0 or more."""
    given = os.environ.get(LIMIT_VARIABLE, "").strip() or str(LIMIT_GB)
    try:
        limit_gb = float(given)
    except ValueError:
        limit_gb = -1.0
    if not 0 <= limit_gb < float("inf"):
        raise UserError(f"{LIMIT_VARIABLE} is '{given}'; a number of gigabytes is needed, 0 or more")
    return round(limit_gb * 1e9)


def held_open(file: IO[bytes]) -> None:
    """Keep its cache from being removed for as long as `file`, or a mapping of it, is open.

    Raises OSError while another process removes it.
    """
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def mark_used(cache: Path) -> None:
    """Its turn to go comes after all that were used before."""
    now_ns = time.time_ns()  # finer than the clock that the system stamps files with
    try:
        os.utime(cache, ns=(now_ns, now_ns))
    except OSError:  # read-only, or another user's: who made it decides
        return


def remove_oldest(folder: Path, most_bytes: int, locked_name: str) -> int:
    """Remove caches below `folder` until what stays takes `most_bytes` or less; the bytes that were freed.

    Those in use stay, whose file `locked_name` somebody has open. What a killed process left goes in any case, and
    notes of listings whose cache is gone.
    """
    freed_bytes = sum(_remove_left(unfinished) for unfinished in folder.glob(".*.tmp"))
    caches = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    sizes = {cache: _size_bytes(cache) for cache in caches}
    too_much = sum(sizes.values()) - most_bytes
    for cache in sorted(caches, key=_last_used):
        if too_much <= 0:
            break
        if removed := _remove_unused(cache, locked_name):
            too_much -= sizes[cache]
            freed_bytes += removed
    for note in folder.glob("*.known"):
        if not _leads_to_a_cache(note):
            note.unlink(missing_ok=True)
    return freed_bytes


def _leads_to_a_cache(note: Path) -> bool:
    try:
        return (note.parent / note.read_text()).is_dir()
    except (OSError, ValueError):  # removed by another process, or damaged
        return False


def _remove_left(unfinished: Path) -> int:
    """Unless somebody is decoding into it, who holds the lock of its listing."""
    with opened_for_update(unfinished.with_name(f"{unfinished.stem.removeprefix('.')}.lock")) as lock:
        return _remove(unfinished) if _is_free(lock) else 0


def _remove_unused(cache: Path, locked_name: str) -> int:
    try:
        with (cache / locked_name).open("rb") as file:
            return _remove(cache) if _is_free(file.fileno()) else 0
    except OSError:  # without its file it is of no use
        return _remove(cache)


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(folder: Path) -> int:
    size_bytes = _size_bytes(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return size_bytes - _size_bytes(folder)


def _size_bytes(folder: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    except OSError:
        return 0


def _last_used(cache: Path) -> int:
    try:
        return cache.stat().st_mtime_ns
    except OSError:
        return 0
