"""A convolution of few channels whose weights are not trained, and GELU after it, as one operation: see whiten.c."""

import ctypes
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cifarlab.kernels.again import say_how
from cifarlab.kernels.compiled import Chosen, first_of_each_type, parallel_region
from cifarlab.kernels.memory import empty
from cifarlab.kernels.winograd import computed_in

KERNELS = ("whiten-avx512_bf16", "whiten-avx512", "whiten-avx2")  # the first of each type that can run
MOST_CHANNELS = 8  # with more, a convolution takes longer than what our kernel saves
MOST_FILTERS, PARTS = 128, 64  # see whiten.c


class _Task(ctypes.Structure):
    """As in whiten.c."""

    _fields_ = [
        ("parallel", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("threads", "n", "h", "w", "channels", "size", "filters")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "y", "sums")),
        ("taken", ctypes.c_long),
    ]


@cache
def _chosen() -> Mapping[torch.dtype, Chosen]:
    return first_of_each_type(KERNELS, _Task, "whiten", "whiten_gradient")


def whiten(images: Tensor, layer: nn.Module, gelu: nn.GELU) -> Tensor:
    """gelu(layer(images)), where `layer` is a convolution without padding by its `weight` (filters, C, k, k), which is
    not trained, and its `bias` (filters,): see `run_operations`."""
    return gelu(layer(images))


def own_whiten(images: Tensor, layer: Any, gelu: nn.GELU) -> Tensor | None:
    """`whiten` by our kernels; None where those do not suit. Images are not rounded to bfloat16 in mixed precision."""
    dtype = computed_in(images)
    if dtype not in _chosen() or gelu.approximate != "none" or not _suits(images, layer.weight, layer.bias):
        return None
    output = _Whitening.apply(images, layer.weight, layer.bias, dtype)
    return say_how(output, _compute, images, layer.weight, layer.bias, dtype)


def _suits(images: Tensor, weight: Tensor, bias: Tensor) -> bool:
    lanes = max(chosen.lanes for chosen in _chosen().values())
    filters, channels, height, width = weight.shape
    return (
        images.dtype == weight.dtype == bias.dtype == torch.float32
        and images.ndim == 4
        and images.shape[1] == channels <= MOST_CHANNELS
        and images.is_contiguous(memory_format=torch.channels_last)
        and not (images.requires_grad or weight.requires_grad)
        and lanes <= filters <= MOST_FILTERS
        and filters % 2 == 0
        and height == width <= min(images.shape[2:])
        and len(images) > 0
    )


class _Whitening(torch.autograd.Function):
    """Of (N, C, H, W) in channels_last, float32, to `dtype`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(images, weight, bias)
        return _compute(images, weight, bias, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, bias = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        sums = torch.empty((PARTS, len(bias)), dtype=torch.float64, device="cpu")
        task, _parts = _task(images, weight, bias, gradient)
        task.sums = sums.data_ptr()
        _chosen()[gradient.dtype].functions.whiten_gradient(task)
        return None, None, sums.sum(0).float(), None


def _compute(images: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    height, width = (side - weight.shape[2] + 1 for side in images.shape[2:])
    output = empty((len(images), len(weight), height, width), dtype)
    task, _parts = _task(images, weight, bias, output)
    _chosen()[dtype].functions.whiten(task)
    return output


def _task(images: Tensor, weight: Tensor, bias: Tensor, outputs: Tensor) -> tuple[_Task, tuple[Tensor, ...]]:
    """And what has to be kept until it is done: weight and bias as the kernel reads them."""
    missing = -len(bias) % _chosen()[outputs.dtype].lanes
    parts = [nn.functional.pad(part.detach(), (0, missing)) for part in (weight.permute(2, 3, 1, 0), bias)]
    n, channels, height, width = images.shape
    task = _Task(
        parallel_region(),
        torch.get_num_threads(),
        n,
        height,
        width,
        channels,
        weight.shape[2],
        len(weight),
        images.data_ptr(),
    )
    kept = tuple(part.contiguous() for part in parts)
    task.weight, task.bias = (part.data_ptr() for part in kept)
    task.y = outputs.data_ptr()
    return task, kept
