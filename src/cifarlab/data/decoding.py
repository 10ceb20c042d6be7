"""Blocks of picture files decoded into a file of pixels: here, or in processes of their own where that is worth it.

The processes are plain interpreters at the other end of a pipe: no fork of a process that may have threads, and, unlike
the standard library's pool, no second run of the script or notebook that asked.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

import numpy as np

from cifarlab.data.duplicates import difference_hashes
from cifarlab.data.trees import Tree
from cifarlab.errors import UserError
from cifarlab.files import opened_for_update, write_all
from cifarlab.pictures import Fit, Picture, examine_picture
from cifarlab.plain_png import PlainPng, pixels_of, read_plain_png

CHANNELS = 3
# Isolated from the folder it is started in, then given the places where this process finds its modules.
WORKER = (
    "import sys; from multiprocessing.connection import Connection; link = Connection(int(sys.argv[1]));"
    " sys.path[:] = link.recv(); from cifarlab.data.decoding import serve; serve(link)"
)
# Of NumPy's matrix products, whichever library multiplies: there is a process for each core.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",  # Apple's Accelerate
}


@dataclass(frozen=True, eq=False)
class Work:
    """What to decode and where its pixels go: the same for all blocks."""

    tree: Tree
    size_pixels: int
    fit: Fit
    path: Path
    header_bytes: int


@dataclass(frozen=True, eq=False)
class Block:
    """What the files from place `first` on came to: see `cifarlab.data.decoded.Decoded`."""

    first: int
    reasons: dict[int, str]
    sizes: np.ndarray
    modes: list[str]
    sha256: np.ndarray
    hashes: np.ndarray
    pixels_sha256: bytes


Names = tuple[int, Sequence[str]]  # the first place of a block, and the names of its files


def decode_block(work: Work, first: int, names: Sequence[str]) -> Block:
    """Decode the files called `names`, at the places from `first` on, and write their pixels to their place.

    Raises OSError or UserError if they cannot be written.
    """
    n, side = len(names), work.size_pixels
    pixels, sizes = np.zeros((n, side, side, CHANNELS), np.uint8), np.zeros((n, 2), np.int32)
    modes, digests, reasons = [""] * n, [bytes(32)] * n, {}
    plain: dict[str, list[tuple[int, PlainPng]]] = defaultdict(list)  # of the size wanted, by mode
    for row, name in enumerate(names):
        digests[row], picture = _examine(work, name)
        if isinstance(picture, str):
            reasons[first + row] = picture
            continue
        modes[row], sizes[row] = picture.mode, (picture.width, picture.height)
        if isinstance(picture, PlainPng):
            plain[picture.mode].append((row, picture))
        else:
            pixels[row] = picture.pixels
    for found in plain.values():
        rows, files = zip(*found, strict=True)
        pixels[list(rows)] = pixels_of(files)
    with opened_for_update(work.path) as file:
        os.lseek(file, work.header_bytes + first * pixels[0].nbytes, os.SEEK_SET)
        write_all(file, pixels.data)
    return Block(
        first=first,
        reasons=reasons,
        sizes=sizes,
        modes=modes,
        sha256=np.frombuffer(b"".join(digests), np.uint8).reshape(n, 32),
        hashes=difference_hashes(pixels),
        pixels_sha256=hashlib.sha256(pixels.data).digest(),
    )


def _examine(work: Work, name: str) -> tuple[bytes, PlainPng | Picture | str]:
    """SHA-256 of the file called `name`, zeros if it cannot be read, and its picture or why there is none."""
    digest, side = bytes(32), work.size_pixels
    try:
        data = work.tree.read(name)
        digest = hashlib.sha256(data).digest()
        return digest, read_plain_png(data, (side, side)) or examine_picture(data, name, side, side, work.fit)
    except UserError as error:
        return digest, str(error).removeprefix(f"{name} ")


def decode_in_processes(work: Work, blocks: Iterable[Names], processes: int) -> Generator[Block, None, None]:
    """As `decode_block`, for all of `blocks`, in the order in which they are done.

    When it ends, however it ends, so have the processes. Raises UserError if one was ended from outside.
    """
    waiting = iter(blocks)
    with _started(processes) as links:
        try:
            for link in links:
                link.send(work)
            busy = [link for link in links if _give_next(link, waiting)]
            while busy:
                for link in wait(busy):
                    assert isinstance(link, Connection)
                    block = _received(link)
                    if not _give_next(link, waiting):
                        busy.remove(link)
                    yield block
        except (EOFError, ConnectionError) as error:
            raise UserError(
                "a process that decoded pictures was ended from outside, for want of memory?"
            ) from error


@contextmanager
def _started(processes: int) -> Iterator[list[Connection]]:
    links: list[Connection] = []
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(processes):
            ours, theirs = Pipe()
            links.append(ours)
            with theirs:
                command = [sys.executable, "-I", "-c", WORKER, str(theirs.fileno())]
                # Of a group of its own: Ctrl-C is for the process that asked, which ends those it has started.
                process = subprocess.Popen(
                    command, env=os.environ | ONE_THREAD, pass_fds=[theirs.fileno()], process_group=0
                )
                started.append(process)
            ours.send(sys.path)
        yield links
    finally:
        for process in started:
            process.kill()
            process.wait()
        for link in links:
            link.close()


def _give_next(link: Connection, waiting: Iterator[Names]) -> bool:
    """Whether the process has been given a block: not where none are left.

    It has none yet, so that it reads what is sent: two that send each other more than a pipe holds would wait for ever.
    """
    block = next(waiting, None)
    if block is not None:
        link.send(block)
    return block is not None


def _received(link: Connection) -> Block:
    answer = link.recv()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def serve(link: Connection) -> None:
    """What a process does: block after block, until nobody is at the other end any more."""
    try:
        work = link.recv()
        while True:
            first, names = link.recv()
            try:
                answer: Block | Exception = decode_block(work, first, names)
            except Exception as error:
                answer = error
            link.send(answer)
    except (EOFError, ConnectionError):
        return
