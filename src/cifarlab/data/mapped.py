"""Pictures that stay on the disk: rows of a memory-mapped array, read when they are asked for."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CONTROL_GROUPS = Path("/sys/fs/cgroup")
SHARE_OF_MEMORY = 0.25  # that the pictures of a split may take before they stay on the disk


@dataclass(frozen=True, eq=False)
class MappedPictures:
    """Pictures uint8 (N, H, W, C): those of a memory-mapped `array` at the places `rows`, int64 (N,).

    What is taken by an index, a slice or an array of indices comes as an array in memory.
    """

    array: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    @property
    def nbytes(self) -> int:
        return len(self.rows) * self.array[:1].nbytes

    def __getitem__(self, chosen: int | slice | np.ndarray) -> np.ndarray:
        rows = self.rows[chosen]
        if np.ndim(rows) == 0:
            return np.array(self.array[rows])
        if len(rows) and np.all(np.diff(rows) == 1):
            return np.array(self.array[rows[0] : rows[-1] + 1])
        order = np.argsort(rows)  # through the file in one direction
        pictures = np.empty((len(rows), *self.array.shape[1:]), np.uint8)
        pictures[order] = self.array[rows[order]]
        return pictures

    def subset(self, chosen: np.ndarray) -> MappedPictures:
        """Those at the places `chosen`, int64 or bool, still on the disk."""
        return MappedPictures(self.array, self.rows[chosen])

    def expect(self, chosen: np.ndarray) -> None:
        """Let the system begin to read those at the places `chosen`, which will be asked for next."""
        mapping = getattr(self.array, "_mmap", None)
        if mapping is None:
            return
        picture_bytes, offset = self.array[:1].nbytes, self.array.offset % mmap.ALLOCATIONGRANULARITY  # type: ignore[attr-defined]
        for row in self.rows[chosen].tolist():
            start = offset + row * picture_bytes
            first = start - start % mmap.PAGESIZE
            mapping.madvise(mmap.MADV_WILLNEED, first, start + picture_bytes - first)


Pictures = np.ndarray | MappedPictures


def choose(pictures: Pictures, chosen: np.ndarray) -> Pictures:
    """Those at the places `chosen`, int64 or bool: in memory if `pictures` are."""
    return pictures.subset(chosen) if isinstance(pictures, MappedPictures) else pictures[chosen]


def from_cache(array: np.ndarray, rows: np.ndarray) -> Pictures:
    """The rows of a memory-mapped array: in memory where there is room for them."""
    mapped = MappedPictures(array, rows)
    if mapped.nbytes <= SHARE_OF_MEMORY * memory_bytes():
        return mapped[:]
    if (mapping := getattr(array, "_mmap", None)) is not None:
        mapping.madvise(mmap.MADV_RANDOM)  # reading ahead would fetch pictures that nobody asked for
    return mapped


def memory_bytes() -> int:
    """Of this machine, or less where the process, or a control group that it is in, may not use as much."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    return min(
        machine, *(limit for limit in limits if limit >= 0), *_group_limits_bytes()
    )  # below 0: no limit


def _group_limits_bytes() -> Iterator[int]:
    """Of the process's control groups, versions 1 and 2, and of those that hold them (cgroups(7), proc(5))."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, name = group.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = CONTROL_GROUPS / controllers
        limit = "memory.limit_in_bytes" if controllers else "memory.max"
        place = top / name.lstrip("/")
        for folder in (place, *place.parents):
            with contextlib.suppress(OSError, ValueError):  # no such limit, or "max"
                yield int((folder / limit).read_text())
            if folder == top:
                break
