"""Batch normalisation in training, and the GELU or the 2x2 pool that follows it: see normalise.c."""

import ctypes
from collections.abc import Mapping
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cifarlab.kernels.again import say_how
from cifarlab.kernels.compiled import PLANS_KEPT, Chosen, Phase, first_of_each_type, parallel_region
from cifarlab.kernels.convolution import address, is_pool_of_four, own_convolve
from cifarlab.kernels.memory import empty, empty_pooled
from cifarlab.kernels.pointwise import own_elu
from cifarlab.kernels.replacing import Replacing

# Channels come in whole vectors; of each type the first that can run is taken.
KERNELS = ("normalise-avx512_bf16", "normalise-avx512", "normalise-avx2")
MOST_CHANNELS = 2048  # see normalise.c
PARTS = 64  # likewise


class _Task(ctypes.Structure):
    """As in normalise.c."""

    _fields_ = [
        ("parallel", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("threads", "n", "h", "w", "channels")),
        *((name, ctypes.c_long) for name in ("after_elu", "before_gelu", "pooled")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "y", "marks")),
        *((name, ctypes.c_void_p) for name in ("dx", "dweight", "dbias", "mean", "variance")),
        *((name, ctypes.c_void_p) for name in ("running_mean", "running_variance", "sums")),
        ("momentum", ctypes.c_double),
        ("epsilon", ctypes.c_float),
        *((name, Phase) for name in ("first_phase", "second_phase")),
    ]


@cache
def _chosen() -> Mapping[torch.dtype, Chosen]:
    return first_of_each_type(KERNELS, _Task, "normalise", "normalise_again", "normalise_gradient")


def normalise(
    images: Tensor, layer: nn.BatchNorm2d, pool: nn.MaxPool2d | None = None, gelu: nn.GELU | None = None
) -> Tensor:
    """gelu(pool(layer(images))), without those that are None: see `run_operations`."""
    for following in (layer, pool, gelu):
        images = images if following is None else following(images)
    return images


def own_normalise(
    images: Tensor,
    layer: nn.BatchNorm2d,
    pool: nn.MaxPool2d | None = None,
    gelu: nn.GELU | None = None,
    *,
    after_elu: bool = False,
) -> Tensor:
    """`normalise` by our kernels; what they do not suit by PyTorch.

    With `after_elu` the gradient is of what ELU was given, and our kernels have to suit.
    """
    of_layer = (layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.training)
    pooled = pool is not None and is_pool_of_four(pool)
    together = layer.track_running_stats and _suits(images, *of_layer, pooled=pooled)
    pooled = pooled and together
    before_gelu = together and gelu is not None and gelu.approximate == "none" and pool is None
    ours = partial(own_batch_norm, pooled=pooled, after_elu=after_elu, before_gelu=before_gelu)
    with Replacing({nn.functional.batch_norm: ours}):
        images = layer(images)  # which keeps its statistics as it does
    images = images if pool is None or pooled else pool(images)
    return images if gelu is None or before_gelu else gelu(images)


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
        and _parts_suit(
            torch.float32,
            convolution.out_channels,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
        )
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
    before_gelu: bool = False,
) -> Tensor | None:
    """`torch.nn.functional.batch_norm`, and 2x2 max-pooling or GELU after it, by our kernels; None where those do not
    suit.

    `after_elu` as for `own_normalise`.
    """
    if not _suits(input, running_mean, running_var, weight, bias, training, pooled=pooled):
        assert not after_elu or input.numel() == input.shape[1]  # PyTorch refuses one value of each channel
        return None
    statistics = torch.empty(2 * input.shape[1], dtype=torch.float32, device="cpu")
    how = _How(eps, after_elu, before_gelu)
    output = _BatchNorm.apply(
        input, weight, bias, running_mean, running_var, statistics, momentum, pooled, how
    )
    return output if pooled else say_how(output, _output_again, input, weight, bias, statistics, how)


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
    if not training or values.ndim not in (2, 4):
        return False
    _, channels, *size = values.shape
    last = torch.channels_last if values.ndim == 4 else torch.contiguous_format
    return (
        _parts_suit(values.dtype, channels, running_mean, running_var, weight, bias)
        and values.is_contiguous(memory_format=last)
        and values.numel() > channels
        and all(side > 0 and side % (1 + pooled) == 0 for side in size)
    )


def _parts_suit(
    dtype: torch.dtype,
    channels: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> bool:
    chosen = _chosen().get(dtype)
    return (
        chosen is not None
        and channels % chosen.lanes == 0
        and channels <= MOST_CHANNELS
        and all(part is not None and _is_plain(part, channels) for part in (running_mean, running_var, bias))
        and (weight is None or _is_plain(weight, channels))
    )


def _is_plain(part: Tensor, channels: int) -> bool:
    return part.dtype == torch.float32 and part.numel() == channels and part.is_contiguous()


class _How(NamedTuple):
    """Fields of a task."""

    epsilon: float
    after_elu: bool
    before_gelu: bool


class _BatchNorm(torch.autograd.Function):
    """Of (N, C, H, W) in channels_last or (N, C), float32 or bfloat16; and max_pool2d by 2x2, if `pooled`, or GELU, if
    `before_gelu`. Without a `weight` it is 1.

    The running mean and variance (C,) are changed, and of four equal outputs the first one gets the gradient, as in
    PyTorch. `statistics` (2 C,) are written, the batch's. With `after_elu` the gradient is of what ELU was given.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor,
        running_mean: Tensor,
        running_variance: Tensor,
        statistics: Tensor,
        momentum: float,
        pooled: bool,
        how: _How,
    ) -> Tensor:
        if pooled:
            output, marks = empty_pooled(values)
        else:
            output, marks = empty(values.shape, values.dtype), None
        ctx.save_for_backward(values, weight, bias, statistics, marks)
        ctx.how = how
        task, _sums = _task(how, values, weight, bias, statistics, marks, output)
        task.momentum = momentum
        task.running_mean, task.running_variance = running_mean.data_ptr(), running_variance.data_ptr()
        _functions(values).normalise(task)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, bias, statistics, marks = ctx.saved_tensors
        last = torch.channels_last if values.ndim == 4 else torch.contiguous_format
        gradient = gradient.contiguous(memory_format=last)
        of_values, of_bias = empty(values.shape, values.dtype), torch.empty_like(bias)
        of_weight = None if weight is None else torch.empty_like(weight)
        task, _sums = _task(ctx.how, values, weight, bias, statistics, marks, gradient)
        task.dx, task.dweight, task.dbias = of_values.data_ptr(), address(of_weight), of_bias.data_ptr()
        _functions(values).normalise_gradient(task)
        return of_values, of_weight, of_bias, None, None, None, None, None, None


def _output_again(
    values: Tensor, weight: Tensor | None, bias: Tensor, statistics: Tensor, how: _How
) -> Tensor:
    """To the last bit what it was."""
    output = empty(values.shape, values.dtype)
    task, _sums = _task(how, values, weight, bias, statistics, None, output)
    _functions(values).normalise_again(task)
    return output


def _functions(values: Tensor) -> ctypes.CDLL:
    return _chosen()[values.dtype].functions


def _task(
    how: _How,
    values: Tensor,
    weight: Tensor | None,
    bias: Tensor,
    statistics: Tensor,
    marks: Tensor | None,
    outputs: Tensor,
) -> tuple[_Task, Tensor]:
    """And the memory for its sums, to be kept as long. `statistics` are the means, then the variances."""
    sums = torch.empty(PARTS * len(statistics), dtype=torch.float64, device="cpu")
    kind = _kind_of_task(values.shape, marks is not None, how, torch.get_num_threads())
    task = _Task.from_buffer_copy(kind)
    task.x, task.y, task.marks = values.data_ptr(), outputs.data_ptr(), address(marks)
    task.weight, task.bias = address(weight), bias.data_ptr()
    task.mean = statistics.data_ptr()
    task.variance = task.mean + statistics.nbytes // 2
    task.sums = sums.data_ptr()
    return task, sums


@lru_cache(PLANS_KEPT)
def _kind_of_task(shape: torch.Size, pooled: bool, how: _How, threads: int) -> _Task:
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
        **how._asdict(),
    )
