"""The process: how many cores it has, and settings that make training faster on CPUs and change no result."""

import ctypes
import os
import sys
from pathlib import Path

# From glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_LARGEST_MMAP_THRESHOLD_BYTES = 32 << 20


def available_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_field(name: str) -> str | None:
    """What Linux says of the first core in /proc/cpuinfo under `name`; None where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def prepare_environment() -> None:
    """Variables that are read when torch is loaded: call it before the first `import torch`. Those set already stay."""
    # Transparent huge pages for large tensors (PyTorch, c10/core/impl/alloc_cpu.cpp).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # A thread that waits for another one spins for microseconds, then sleeps: by default it spins for milliseconds, and
    # where other programs want the cores too a training comes almost to a stand (libgomp manual, GOMP_SPINCOUNT).
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def keep_freed_memory(largest_gradient_bytes: int = 0) -> None:
    """Let malloc reuse the large blocks that every step frees, in place of giving them back and faulting them in again.

    Without it a step of vgg3 takes 5,000 to 9,600 page faults. Blocks above 32 MB are mapped on their own whatever the
    threshold, unless no block is: so it is where a gradient is that large (8 of alexnet-small's 105 ms a step). Does
    nothing where malloc is not glibc's.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    if largest_gradient_bytes > _LARGEST_MMAP_THRESHOLD_BYTES:
        mallopt(_M_MMAP_MAX, 0)
