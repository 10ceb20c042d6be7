"""Which of the compiled kernels this machine can run."""

import ctypes
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from cifarlab.process import processor_field

AVX2 = frozenset({"fma", "avx2"})  # as /proc/cpuinfo names them
AVX512 = frozenset({"fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"})
LANES = {"avx512_bf16": 16, "avx512": 16, "avx2": 8}  # floats of a vector
PLANS_KEPT = 1024  # of each kind of call
INSTRUCTIONS = {"avx512_bf16": AVX512 | {"avx512_bf16"}, "avx512": AVX512, "avx2": AVX2}


class Phase(ctypes.Structure):
    """As in kernels.h."""

    _fields_ = [("taken", ctypes.c_long), ("done", ctypes.c_long)]


@cache
def kernels_here() -> tuple[str, ...]:
    """The names of the kernels that this machine's processor runs, and that were compiled; () if none."""
    return tuple(name for name in _names() if library(name) is not None)


def functions_of(name: str, task: type[ctypes.Structure], *names: str) -> ctypes.CDLL | None:
    """`library(name)`, whose functions `names` take a pointer to a `task` and return a long, or nothing of use."""
    functions = library(name)
    for function in () if functions is None else (getattr(functions, each) for each in names):
        function.argtypes, function.restype = [ctypes.POINTER(task)], ctypes.c_long
    return functions


class Chosen(NamedTuple):
    functions: ctypes.CDLL
    lanes: int


def first_of(names: Iterable[str], task: type[ctypes.Structure], *functions: str) -> Chosen | None:
    """`functions_of` the first of the kernels `names` that there are, and the floats of their vectors."""
    for name in names:
        if (found := functions_of(name, task, *functions)) is not None:
            return Chosen(found, LANES[name.split("-")[1]])
    return None


def first_of_each_type(
    names: Sequence[str], task: type[ctypes.Structure], *functions: str
) -> dict[torch.dtype, Chosen]:
    """`first_of` those for float32 and of those for bfloat16, where there are some."""
    found = {}
    for dtype, is_bfloat16 in ((torch.float32, False), (torch.bfloat16, True)):
        of_type = [name for name in names if name.endswith("_bf16") == is_bfloat16]
        if (chosen := first_of(of_type, task, *functions)) is not None:
            found[dtype] = chosen
    return found


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The kernels `name`, for example `winograd-avx512-3x3`; None where they were not compiled, or cannot run here."""
    runs = INSTRUCTIONS[name.split("-")[1]] <= set((processor_field("flags") or "").split())
    if not runs or parallel_region() is None:
        return None
    try:
        return ctypes.CDLL(str(_file(name)))
    except OSError:
        return None


def _names() -> list[str]:
    return sorted(path.stem.rpartition("-")[0] for path in Path(__file__).parent.glob(f"*-{_digest()}.so"))


def _file(name: str) -> Path:
    """Named by the sources as well, so that what older ones were compiled to is not taken."""
    return Path(__file__).parent / f"{name}-{_digest()}.so"


@cache
def _digest() -> str:
    sources = sorted(Path(__file__).parent.glob("*.[ch]"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]


@cache
def parallel_region() -> int | None:
    """The address of `team_parallel`: see team.c."""
    try:
        return ctypes.cast(ctypes.CDLL(str(_file("team-avx2"))).team_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
