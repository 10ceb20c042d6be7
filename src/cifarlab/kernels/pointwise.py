"""Dropout and ELU: see pointwise.c. Dropout gives the same values where that was not compiled."""

import ctypes
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_unary

from cifarlab.kernels.compiled import first_of, parallel_region

ODDS = 65_536  # a value is dropped or not by 16 random bits
KERNELS = ("pointwise-avx512", "pointwise-avx2")  # the first that can run is taken


class _Task(ctypes.Structure):
    """As in pointwise.c."""

    _fields_ = [
        ("parallel", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("threads", "count")),
        *((name, ctypes.c_void_p) for name in ("from_", "outputs", "to")),
        ("seed", ctypes.c_uint64),
        ("dropped", ctypes.c_uint),
        ("taken", ctypes.c_long),
    ]


@cache
def _functions() -> ctypes.CDLL | None:
    chosen = first_of(KERNELS, _Task, "dropout", "elu", "elu_gradient")
    return None if chosen is None else chosen.functions


def dropout(values: Tensor, rate: float, seed: int | None = None) -> Tensor:
    """Zero each of `values`, on the CPU, with probability `rate`, and divide the others by 1 - rate.

    Which ones is a function of `seed`, 0 to 2^64 - 1, and of their place in memory; None draws the seed from torch's
    global generator. The probability is exact to 1 / 65,536, and the division is by the probability that is used, so
    that the mean is kept exactly.
    """
    if has_torch_function_unary(values):  # would be asked about each call and attribute below
        return handle_torch_function(dropout, (values,), values, rate, seed)
    return _Dropout.apply(values, round(rate * ODDS), drawn_seed() if seed is None else seed)


def drawn_seed() -> int:
    """From torch's global generator."""
    return int(torch.randint(2**62, ()).item())


class _Dropout(torch.autograd.Function):
    """Without a mask that is kept, where the kernel draws it again for the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, dropped: int, seed: int) -> Tensor:
        ctx.dropped, ctx.seed, ctx.format = dropped, seed, _format(values)
        values = values.contiguous(memory_format=ctx.format)
        if _has_kernel(values):
            return _drop(values, dropped, seed)
        kept = _kept(values, dropped, seed)
        ctx.save_for_backward(kept)
        return _drop_others(values, kept, dropped)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept = next(iter(ctx.saved_tensors), None)
        gradient = gradient.contiguous(memory_format=ctx.format)
        if kept is None:
            return _drop(gradient, ctx.dropped, ctx.seed), None, None
        return _drop_others(gradient, kept, ctx.dropped), None, None


def _format(values: Tensor) -> torch.memory_format:
    last = torch.channels_last
    if values.ndim == 4 and not values.is_contiguous() and values.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def _has_kernel(values: Tensor) -> bool:
    return _functions() is not None and values.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _drop(values: Tensor, dropped: int, seed: int) -> Tensor:
    """By the kernel, in float32: a factor in bfloat16 would change the mean."""
    if values.dtype != torch.float32:
        return _drop(values.float(), dropped, seed).to(values.dtype)
    result = torch.empty_like(values)
    _functions().dropout(_task(values, result, seed=seed, dropped=dropped))  # type: ignore[union-attr]
    return result


def _kept(values: Tensor, dropped: int, seed: int) -> Tensor:
    """bool, in the shape of `values` and in the order of their memory."""
    kept = torch.from_numpy(_draws(values.numel(), seed) >= dropped)
    if values.is_contiguous():
        return kept.view(values.shape)
    return kept.view(len(values), *values.shape[2:], values.shape[1]).permute(0, 3, 1, 2)


def _drop_others(values: Tensor, kept: Tensor, dropped: int) -> Tensor:
    factor = float(np.float32(ODDS) / np.float32(ODDS - dropped))  # as the kernel has it
    exact = values.to(torch.promote_types(values.dtype, torch.float32)) * factor
    return torch.where(kept, exact, 0.0).to(values.dtype)


def _draws(count: int, seed: int) -> np.ndarray:
    """`count` uniform uint16: those of `random_words` in kernels.h."""
    words = np.arange(1, -(-count // 4) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(
        seed
    )
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (words ^ (words >> np.uint64(31))).view(np.uint16)[:count]


def own_elu(values: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor | None:
    """`torch.nn.functional.elu` by our kernel; None where that does not suit."""
    dense = values.is_contiguous() or (
        values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)
    )
    if _functions() is None or values.dtype != torch.float32 or alpha != 1.0 or not dense:
        return None
    return _Elu.apply(values, inplace)


class _Elu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, inplace: bool) -> Tensor:
        result = values if inplace else torch.empty_like(values)
        if inplace:
            ctx.mark_dirty(values)
        _functions().elu(_task(values, result))  # type: ignore[union-attr]
        ctx.save_for_backward(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (outputs,) = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=_format(outputs))
        result = torch.empty_like(outputs)
        _functions().elu_gradient(_task(gradient, result, outputs))  # type: ignore[union-attr]
        return result, None


def _task(
    values: Tensor, result: Tensor, outputs: Tensor | None = None, seed: int = 0, dropped: int = 0
) -> _Task:
    return _Task(
        parallel_region(),
        torch.get_num_threads(),
        values.numel(),
        values.data_ptr(),
        None if outputs is None else outputs.data_ptr(),
        result.data_ptr(),
        seed,
        dropped,
    )
