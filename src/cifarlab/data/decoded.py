"""Picture files decoded once: a memory-mapped cache of their pixels at the size a network is trained at.

A cache is a folder named after the content of the files and how they were prepared. It is made in a folder of another
name, which is renamed when it is complete, and every block of its pixels is verified when it is opened. Beside the
caches lies a note for each listing of files (their names, sizes and times) that says which cache holds them, so that
unchanged files are not read again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cifarlab import text
from cifarlab.data import cache_limit
from cifarlab.data.decoding import CHANNELS, Block, Work, decode_block, decode_in_processes
from cifarlab.data.duplicates import near_groups
from cifarlab.errors import UserError
from cifarlab.files import cache_dir, opened_for_update, sync_folder, write_all, write_atomic
from cifarlab.pictures import Fit
from cifarlab.process import available_cores

if TYPE_CHECKING:
    from cifarlab.data.listing import Listing

VERSION = (
    2  # of the pixels, of what counts as a near duplicate, and of the files: another one makes other caches
)
BLOCK = 128  # pictures that are decoded, written and checked together
WORTH_PROCESSES_BYTES = 8 << 20  # of picture files: starting processes takes some tenths of a second
PIXELS, TABLE = "pixels.npy", "table.npz"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Decoded:
    """What was in N picture files, in the order of their listing.

    Attributes:
        pixels: uint8 (N, S, S, 3), memory-mapped and read-only; zeros where a file is unreadable.
        reasons: of each unreadable file, by its place, what is wrong with it, as "is empty (0 bytes)".
        sizes: int32 (N, 2), width and height of each file; zeros where it is unreadable.
        modes: Pillow's names of their colours, "" where unreadable.
        sha256: uint8 (N, 32), of each file's bytes; zeros where they could not be read.
        groups: int64 (N,), near duplicates have the same number (`cifarlab.data.duplicates.near_groups`).
    """

    pixels: np.ndarray
    reasons: dict[int, str]
    sizes: np.ndarray
    modes: np.ndarray
    sha256: np.ndarray
    groups: np.ndarray


def decode(listing: Listing, size_pixels: int, fit: Fit, progress: Progress | None = None) -> Decoded:
    """The pictures of `listing`, `size_pixels` a side: from the cache, or decoded in parallel into it.

    `progress(done, total)` is called with pictures, while they are decoded. Two processes that want the same pictures
    do not both decode them: the second waits and takes what the first one made.

    Raises:
        UserError: when the cache cannot be written or there is no space for it. A picture that cannot be read raises
            nothing: its reason is in the result.
    """
    files = _look_at(listing, size_pixels, fit)
    if (known := _open_known(files.stamp, listing)) is not None:
        return known
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror or error}") from error
    with opened_for_update(folder / f"{files.stamp}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it when its process ends, however it ends
        if (known := _open_known(files.stamp, listing)) is not None:
            return known
        return _decode(listing, size_pixels, fit, files, progress)


def find_decoded(listing: Listing, size_pixels: int, fit: Fit) -> Decoded | None:
    """What `decode` has made of these files, if it has and they have not changed since."""
    return _open_known(_look_at(listing, size_pixels, fit).stamp, listing)


def _folder() -> Path:
    return cache_dir() / "pictures"


# --- which files, unchanged ---


@dataclass(frozen=True)
class _Files:
    """What was seen of all files without reading them.

    Attributes:
        stamp: of their names, lengths and times: where it is the same, so is their content.
        size_bytes: of all of them.
    """

    stamp: str
    size_bytes: int


def _look_at(listing: Listing, size_pixels: int, fit: Fit) -> _Files:
    digest = hashlib.sha256(f"{VERSION} {size_pixels} {fit} {listing.location}".encode())
    size_bytes = 0
    for entry in listing.entries:
        state = listing.tree.state(entry.name)
        size_bytes += state[0]
        digest.update(repr((entry.name, state)).encode("utf-8", "surrogateescape"))
    return _Files(digest.hexdigest()[:40], size_bytes)


def _open_known(stamp: str, listing: Listing) -> Decoded | None:
    try:
        key = (_folder() / f"{stamp}.known").read_text()
    except (OSError, ValueError):
        return None
    cached = _open(_folder() / key)
    if cached is None or len(cached.pixels) != len(listing.entries):
        return None
    cache_limit.mark_used(_folder() / key)
    return cached


# --- the cache ---


def _open(folder: Path) -> Decoded | None:
    """A cache, if it is complete and every block of its pixels has its checksum; None otherwise."""
    try:
        with np.load(folder / TABLE, allow_pickle=False) as stored:  # a zip file, with checksums of its own
            table = {name: stored[name] for name in stored.files}
        pixels = _mapped(folder / PIXELS)
        if _blocks_sha256(pixels) != table["pixels_sha256"].tobytes():
            return None
        reasons = {int(place): reason for place, reason in json.loads(table["reasons"].tobytes()).items()}
        return Decoded(pixels, reasons, *(table[name] for name in ("sizes", "modes", "sha256", "groups")))
    except Exception:  # missing, or damaged in any way: it is made again
        return None


def _mapped(path: Path) -> np.ndarray:
    """A .npy file of uint8, memory-mapped; its cache is held open for as long as the array lives."""
    with path.open("rb") as file:
        cache_limit.held_open(file)
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        return np.memmap(file, np.uint8, "r", file.tell(), shape)


def _blocks_sha256(pixels: np.ndarray) -> bytes:
    with ThreadPoolExecutor(available_cores()) as pool:  # hashing goes on without Python's lock
        blocks = (pixels[first : first + BLOCK].data for first in range(0, len(pixels), BLOCK))
        return b"".join(pool.map(lambda block: hashlib.sha256(block).digest(), blocks))


def _decode(
    listing: Listing, size_pixels: int, fit: Fit, files: _Files, progress: Progress | None
) -> Decoded:
    most_bytes = cache_limit.limit_bytes()
    unfinished = _folder() / f".{files.stamp}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    try:
        unfinished.mkdir()
        header_bytes = _make_room(unfinished / PIXELS, len(listing.entries), size_pixels)
        work = Work(listing.tree, size_pixels, fit, unfinished / PIXELS, header_bytes)
        names = [entry.name for entry in listing.entries]
        table = _table(_decode_blocks(work, names, files.size_bytes, progress))
        table["groups"] = near_groups(
            np.load(unfinished / PIXELS, mmap_mode="r", allow_pickle=False),
            table["sha256"],
            table["hashes"],
            table["sizes"][:, 0] > 0,
        )
        write_atomic(unfinished / TABLE, _npz(table))
        content = hashlib.sha256(f"{VERSION} {size_pixels} {fit} ".encode() + table["sha256"].tobytes())
        folder = _folder() / content.hexdigest()[:40]
        _take_its_place(unfinished, folder)
    except OSError as error:
        raise UserError(f"cannot write {unfinished}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    if table["sha256"].any(axis=1).all():  # a file that could not be read may be readable the next time
        write_atomic(_folder() / f"{files.stamp}.known", folder.name.encode())
    made = _open(folder)
    if made is None:
        raise UserError(
            f"{folder} changed while it was written: is the disk damaged, or another program there?"
        )
    cache_limit.mark_used(folder)
    cache_limit.remove_oldest(_folder(), most_bytes, PIXELS)
    return made


def clear_cache() -> int:
    """Remove all decoded pictures that no process uses; the bytes that were freed."""
    return cache_limit.remove_oldest(_folder(), 0, PIXELS) if _folder().exists() else 0


def _take_its_place(unfinished: Path, folder: Path) -> None:
    """A damaged cache of the same content goes; an intact one, of the same files elsewhere, is as good."""
    if folder.exists():
        if _open(folder) is not None:
            return
        shutil.rmtree(folder)
    try:
        unfinished.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else another process was faster
            raise
    sync_folder(folder.parent)


def _make_room(path: Path, n: int, size_pixels: int) -> int:
    """An empty .npy file of full length, its space taken now rather than found missing later; its header's bytes."""
    shape = (n, size_pixels, size_pixels, CHANNELS)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    needed_bytes = int(np.prod(shape))
    with opened_for_update(path) as file:
        write_all(file, header.getvalue())
        try:
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file, len(header.getvalue()), max(1, needed_bytes))
        except OSError as error:
            free_bytes = shutil.disk_usage(path.parent).free
            raise UserError(
                f"{n:,} pictures of {size_pixels}x{size_pixels} need {text.size(needed_bytes)} in {_folder()}, and"
                f" {text.size(free_bytes)} are free ({error.strerror}): make room, or name another place with"
                " XDG_CACHE_HOME"
            ) from error
        os.ftruncate(file, len(header.getvalue()) + needed_bytes)
    return len(header.getvalue())


def _table(blocks: list[Block]) -> dict[str, np.ndarray]:
    reasons = {str(place): reason for block in blocks for place, reason in block.reasons.items()}
    return {
        "reasons": np.frombuffer(json.dumps(reasons).encode(), np.uint8),
        "sizes": np.concatenate([block.sizes for block in blocks]),
        "modes": np.array([mode for block in blocks for mode in block.modes]),
        "sha256": np.concatenate([block.sha256 for block in blocks]),
        "hashes": np.concatenate([block.hashes for block in blocks]),
        "pixels_sha256": np.frombuffer(b"".join(block.pixels_sha256 for block in blocks), np.uint8),
    }


def _npz(table: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **table)
    return file.getvalue()


# --- decoding ---


def _decode_blocks(work: Work, names: list[str], size_bytes: int, progress: Progress | None) -> list[Block]:
    """All blocks in order, their pixels written: by processes where they are worth their start."""
    starts = range(0, len(names), BLOCK)
    parts = ((first, names[first : first + BLOCK]) for first in starts)
    processes = min(available_cores(), len(starts))
    if processes == 1 or size_bytes < WORTH_PROCESSES_BYTES:
        decoding = (decode_block(work, *part) for part in parts)
    else:
        decoding = decode_in_processes(work, parts, processes)
    blocks, done = [], 0
    with contextlib.closing(decoding):
        for block in decoding:
            blocks.append(block)
            done += len(block.modes)
            if progress is not None:
                progress(done, len(names))
    return sorted(blocks, key=lambda block: block.first)
