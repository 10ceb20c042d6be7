"""Memory of large outputs, taken again once they are freed.

Returned to the system, as malloc does, every step gets it back page by page and filled with zeros, which is a tenth of
`airbench94`'s time and more; kept by malloc, small blocks between the large ones keep it from fitting again.
"""

import ctypes
import math
import mmap
import os
import resource
import threading
import weakref
from bisect import insort
from collections import deque
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor

LEAST_BYTES = 4 << 20  # of an output: two huge pages; smaller ones are malloc's
PAGE_BYTES = 2 << 20  # a huge one
LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
_MAP_NORESERVE = 0x4000  # of Linux's mman.h: pages are counted when they are written


class Arena:
    """Addresses for blocks, in the smallest gap that fits; pages of it are there once they were written."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        with suppress(OSError):  # of a kernel without huge pages
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.gaps = [(0, size)]  # beginning and end, in order
        self.taking = threading.Lock()
        self.freed: deque[tuple[int, int]] = deque()  # by any thread, at any time: also while that is held

    def block(self, size: int) -> ctypes.Array[ctypes.c_char] | None:
        """As many bytes, until nothing refers to them any more; None if there is no room."""
        whole = -(-size // PAGE_BYTES) * PAGE_BYTES
        with self.taking:
            begin = self._take(whole)
        if begin is None:
            return None
        block = (ctypes.c_char * size).from_buffer(self.memory, begin)
        weakref.finalize(block, self.freed.append, (begin, begin + whole)).atexit = False
        return block

    def return_gaps(self) -> None:
        """Their pages go back to the system, unless some are being taken: even by this thread, where a training that is
        given up is collected meanwhile."""
        if not self.taking.acquire(blocking=False):
            return
        try:
            self._close_gaps()
            for begin, end in self.gaps:
                with suppress(OSError):  # of memory that may not be swapped out
                    self.memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)
        finally:
            self.taking.release()

    def _take(self, whole: int) -> int | None:
        """Where so many bytes begin."""
        self._close_gaps()
        fitting = [gap for gap in self.gaps if gap[1] - gap[0] >= whole]
        if not fitting:
            return None
        begin, end = min(fitting, key=lambda gap: gap[1] - gap[0])
        self.gaps.remove((begin, end))
        if begin + whole < end:
            insort(self.gaps, (begin + whole, end))
        return begin

    def _close_gaps(self) -> None:
        while self.freed:
            insort(self.gaps, self.freed.popleft())
        joined = self.gaps[:1]
        for begin, end in self.gaps[1:]:
            if begin == joined[-1][1]:
                joined[-1] = joined[-1][0], end
            else:
                joined.append((begin, end))
        self.gaps = joined


@cache
def _arena() -> Arena | None:
    """As large as the machine's memory; None where the system does not want to, or the process may have so much alone:
    the arena would take the addresses that all else needs."""
    if any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in LIMITS):
        return None
    try:
        return Arena(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // PAGE_BYTES * PAGE_BYTES)
    except (OSError, ValueError):
        return None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_arena.cache_clear)  # another thread may have been taking


def return_free_memory() -> None:
    """To the system, at the end of a training: the memory of outputs that are no more."""
    arena = _arena() if _arena.cache_info().currsize else None
    if arena is not None:
        arena.return_gaps()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Of four dimensions in channels_last."""
    size, arena = math.prod(shape) * dtype.itemsize, _arena()
    last = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    if size < LEAST_BYTES or arena is None or (block := arena.block(size)) is None:
        return torch.empty(shape, dtype=dtype, device="cpu", memory_format=last)
    storage = torch.frombuffer(block, dtype=torch.uint8).untyped_storage()
    strides = torch.empty(shape, device="meta", memory_format=last).stride()
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, shape, strides)


def empty_pooled(images: Tensor) -> tuple[Tensor, Tensor]:
    """For the outputs of a 2x2 pool, and a byte of each that says where its gradient goes."""
    n, channels, height, width = images.shape
    shape = (n, channels, height // 2, width // 2)
    return empty(shape, images.dtype), empty(shape, torch.uint8)
