"""2x2 max-pooling, and the dropout before it: see pool.c."""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cifarlab.kernels.compiled import Chosen, first_of, parallel_region
from cifarlab.kernels.convolution import is_pool_of_four
from cifarlab.kernels.memory import empty, empty_pooled
from cifarlab.kernels.pointwise import ODDS, drawn_seed

KERNELS = ("pool-avx512", "pool-avx2")  # channels come in whole vectors; the first that can run is taken
SQUARE = (2, (2, 2), [2, 2])
LEAST_VALUES = 1 << 18  # of pictures, below which PyTorch's pool takes no longer than the call of ours


class _Task(ctypes.Structure):
    """As in pool.c."""

    _fields_ = [
        ("parallel", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("threads", "n", "h", "w", "channels")),
        *((name, ctypes.c_void_p) for name in ("x", "y", "marks")),
        ("seed", ctypes.c_uint64),
        ("dropped", ctypes.c_uint),
        ("taken", ctypes.c_long),
    ]


@cache
def _chosen() -> Chosen | None:
    return first_of(KERNELS, _Task, "pool", "pool_gradient")


def drop_and_pool(images: Tensor, layer: nn.Module, pool: nn.MaxPool2d) -> Tensor:
    """pool(layer(images)), where `layer` is a Dropout: see `run_operations`."""
    return pool(layer(images))


def own_drop_and_pool(images: Tensor, layer: Any, pool: nn.MaxPool2d) -> Tensor | None:
    """`drop_and_pool` by our kernels, with the same random numbers; None where those do not suit."""
    if not layer.training or layer.rate == 0.0 or not is_pool_of_four(pool) or not _suits(images):
        return None
    return _DropoutPool.apply(images, round(layer.rate * ODDS), drawn_seed())


def own_max_pool2d(
    input: Tensor,  # named as PyTorch's are
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,  # always: PyTorch has another function for them
) -> Tensor | None:
    """`torch.nn.functional.max_pool2d` by our kernels; None where those do not suit."""
    square = kernel_size in SQUARE and (stride is None or stride in SQUARE)
    whole = padding in (0, (0, 0), [0, 0]) and dilation in (1, (1, 1), [1, 1]) and not ceil_mode
    if not square or not whole or input.numel() < LEAST_VALUES or not _suits(input):
        return None
    return _MaxPool.apply(input, 0, 0)


def _suits(images: Tensor) -> bool:
    chosen = _chosen()
    return (
        chosen is not None
        and images.dtype == torch.float32
        and images.ndim == 4
        and images.is_cpu
        and images.shape[1] % chosen.lanes == 0
        and min(images.shape[2:]) >= 2
        and images.numel() > 0
        and images.is_contiguous(memory_format=torch.channels_last)
    )


class _DropoutPool(torch.autograd.Function):
    """Of (N, C, H, W) in channels_last, of which `dropped` in 65,536 values are dropped.

    Of four equal values after dropout the first one gets the gradient, as in PyTorch: none, if it was dropped.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, dropped: int, seed: int) -> Tensor:
        output, marks = empty_pooled(images)
        ctx.save_for_backward(marks)
        ctx.shape, ctx.dropped = images.shape, dropped
        _functions().pool(_task(images, output, marks, dropped, seed))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (marks,) = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_images = empty(ctx.shape, torch.float32)
        _functions().pool_gradient(_task(of_images, gradient, marks, ctx.dropped))
        return of_images, None, None


class _MaxPool(_DropoutPool):
    """Without dropout, and by a name of its own in profiles."""


def _functions() -> ctypes.CDLL:
    chosen = _chosen()
    assert chosen is not None
    return chosen.functions


def _task(images: Tensor, outputs: Tensor, marks: Tensor, dropped: int, seed: int = 0) -> _Task:
    n, channels, height, width = images.shape
    return _Task(
        parallel_region(),
        torch.get_num_threads(),
        n,
        height,
        width,
        channels,
        images.data_ptr(),
        outputs.data_ptr(),
        marks.data_ptr(),
        seed,
        dropped,
    )
