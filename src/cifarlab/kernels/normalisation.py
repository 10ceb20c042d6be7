"""Batch normalisation in training, and the 2x2 pool that follows it: see normalise.c."""

import ctypes
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cifarlab.kernels.compiled import PLANS_KEPT, Chosen, Phase, first_of, parallel_region
from cifarlab.kernels.convolution import empty_pooled, is_pool_of_four, own_convolve
from cifarlab.kernels.pointwise import own_elu
from cifarlab.kernels.replacing import Replacing

# Channels come in whole vectors; the first that can run is taken.
KERNELS = ("normalise-avx512", "normalise-avx2")
MOST_CHANNELS = 2048  # see normalise.c
PARTS = 64  # likewise


class _Task(ctypes.Structure):
    """As in normalise.c."""

    _fields_ = [
        ("parallel", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("threads", "n", "h", "w", "channels", "after_elu", "pooled")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "y", "marks")),
        *((name, ctypes.c_void_p) for name in ("dx", "dweight", "dbias", "mean", "variance")),
        *((name, ctypes.c_void_p) for name in ("running_mean", "running_variance", "sums")),
        ("momentum", ctypes.c_double),
        ("epsilon", ctypes.c_float),
        *((name, Phase) for name in ("first_phase", "second_phase")),
    ]


@cache
def _chosen() -> Chosen | None:
    return first_of(KERNELS, _Task, "normalise", "normalise_gradient")


def normalise(images: Tensor, layer: nn.BatchNorm2d, pool: nn.MaxPool2d | None = None) -> Tensor:
    """pool(layer(images)), or layer(images) if `pool` is None: see `run_operations`."""
    images = layer(images)
    return images if pool is None else pool(images)


def own_normalise(
    images: Tensor, layer: nn.BatchNorm2d, pool: nn.MaxPool2d | None = None, *, after_elu: bool = False
) -> Tensor:
    """`normalise` by our kernels; the pool, or both, by PyTorch where those do not suit.

    With `after_elu` the gradient is of what ELU was given, and our kernels have to suit.
    """
    of_layer = (layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.training)
    pooled = (
        pool is not None
        and is_pool_of_four(pool)
        and layer.track_running_stats
        and _suits(images, *of_layer, pooled=True)
    )
    ours = partial(own_batch_norm, pooled=pooled, after_elu=after_elu)
    with Replacing({nn.functional.batch_norm: ours}):
        normalised = layer(images)  # which keeps its statistics as it does
    return normalised if pool is None or pooled else pool(normalised)


def convolve_and_normalise(
    images: Tensor,
    convolution: nn.Conv2d,
    elu: nn.ELU,
    norm: nn.BatchNorm2d,
    pool: nn.MaxPool2d | None = None,
) -> Tensor:
    """pool(norm(elu(convolution(images)))), without the pool if it is None: see `run_operations`. Our kernels do ELU
    with the convolution, and its gradient with the norm."""
    return normalise(elu(convolution(images)), norm, pool)


def own_convolve_and_normalise(
    images: Tensor,
    convolution: nn.Conv2d,
    elu: nn.ELU,
    norm: nn.BatchNorm2d,
    pool: nn.MaxPool2d | None = None,
) -> Tensor:
    """`convolve_and_normalise` by our kernels; what they do not suit by itself."""
    together = (
        elu.alpha == 1.0
        and norm.track_running_stats
        and not torch.is_autocast_enabled("cpu")
        and norm.training
        and _parts_suit(convolution.out_channels, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    values = own_convolve(images, convolution, elu=together)
    if values is None:
        values, together = convolution(images), False
    if not together:
        with Replacing({nn.functional.elu: own_elu}):
            values = elu(values)
    return own_normalise(values, norm, pool, after_elu=together)


def own_batch_norm(
    input: Tensor,  # named as PyTorch's are
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    pooled: bool = False,
    after_elu: bool = False,
) -> Tensor | None:
    """`torch.nn.functional.batch_norm`, and 2x2 max-pooling after it, by our kernels; None where those do not suit.

    `after_elu` as for `own_normalise`.
    """
    if not _suits(input, running_mean, running_var, weight, bias, training, pooled=pooled):
        assert not after_elu or input.numel() == input.shape[1]  # PyTorch refuses one value of each channel
        return None
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps, pooled, after_elu)


def _suits(
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    *,
    pooled: bool,
) -> bool:
    if not training or values.dtype != torch.float32 or values.ndim not in (2, 4):
        return False
    _, channels, *size = values.shape
    last = torch.channels_last if values.ndim == 4 else torch.contiguous_format
    return (
        _parts_suit(channels, running_mean, running_var, weight, bias)
        and values.is_contiguous(memory_format=last)
        and values.numel() > channels
        and all(side > 0 and side % (1 + pooled) == 0 for side in size)
    )


def _parts_suit(channels: int, *parts: Tensor | None) -> bool:
    chosen = _chosen()
    return (
        chosen is not None
        and channels % chosen.lanes == 0
        and channels <= MOST_CHANNELS
        and all(part is not None and _is_plain(part, channels) for part in parts)
    )


def _is_plain(part: Tensor, channels: int) -> bool:
    return part.dtype == torch.float32 and part.numel() == channels and part.is_contiguous()


class _BatchNorm(torch.autograd.Function):
    """Of (N, C, H, W) in channels_last or (N, C); and max_pool2d by 2x2, if `pooled`.

    The running mean and variance (C,) are changed, and of four equal outputs the first one gets the gradient, as in
    PyTorch. With `after_elu` the gradient is of what ELU was given.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_variance: Tensor,
        momentum: float,
        epsilon: float,
        pooled: bool,
        after_elu: bool,
    ) -> Tensor:
        if pooled:
            output, marks = empty_pooled(values)
        else:
            output, marks = torch.empty_like(values), None
        statistics = torch.empty(2 * len(weight), dtype=torch.float32, device="cpu")
        ctx.save_for_backward(values, weight, statistics, marks)
        ctx.epsilon, ctx.after_elu = epsilon, after_elu
        task, _sums = _task(values, weight, statistics, output, marks, epsilon)
        task.bias, task.momentum = bias.data_ptr(), momentum
        task.running_mean, task.running_variance = running_mean.data_ptr(), running_variance.data_ptr()
        _functions().normalise(task)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, statistics, marks = ctx.saved_tensors
        last = torch.channels_last if values.ndim == 4 else torch.contiguous_format
        gradient = gradient.contiguous(memory_format=last)
        of_values, of_weight, of_bias = (torch.empty_like(part) for part in (values, weight, weight))
        task, _sums = _task(values, weight, statistics, gradient, marks, ctx.epsilon)
        task.dx, task.dweight, task.dbias = (part.data_ptr() for part in (of_values, of_weight, of_bias))
        task.after_elu = ctx.after_elu
        _functions().normalise_gradient(task)
        return of_values, of_weight, of_bias, None, None, None, None, None, None


def _functions() -> ctypes.CDLL:
    chosen = _chosen()
    assert chosen is not None
    return chosen.functions


def _task(
    values: Tensor,
    weight: Tensor,
    statistics: Tensor,
    outputs: Tensor,
    marks: Tensor | None,
    epsilon: float,
) -> tuple[_Task, Tensor]:
    """And the memory for its sums, to be kept as long. `statistics` are the means, then the variances."""
    sums = torch.empty(PARTS * len(statistics), dtype=torch.float64, device="cpu")
    kind = _kind_of_task(values.shape, marks is not None, torch.get_num_threads())
    task = _Task.from_buffer_copy(kind)
    task.x, task.y, task.weight = values.data_ptr(), outputs.data_ptr(), weight.data_ptr()
    task.marks = None if marks is None else marks.data_ptr()
    task.mean = statistics.data_ptr()
    task.variance = task.mean + statistics.nbytes // 2
    task.sums, task.epsilon = sums.data_ptr(), epsilon
    return task, sums


@lru_cache(PLANS_KEPT)
def _kind_of_task(shape: torch.Size, pooled: bool, threads: int) -> _Task:
    """What is the same in every step: a copy costs less than a new one."""
    n, channels, *size = shape
    height, width = size or (1, 1)
    return _Task(
        parallel=parallel_region(),
        threads=threads,
        n=n,
        h=height,
        w=width,
        channels=channels,
        pooled=pooled,
    )
