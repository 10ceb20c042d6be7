"""Batch normalisation in training, and the 2x2 pool that follows it: see normalise.c."""

import ctypes
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_unary

from cifarlab.kernels.compiled import Phase, functions_of, parallel_region
from cifarlab.kernels.convolution import is_pool_of_four
from cifarlab.kernels.replacing import Replacing

KERNELS = {
    "normalise-avx512": 16,
    "normalise-avx2": 8,
}  # channels come in whole ones; the first that can run is taken
MOST_CHANNELS = 2048  # see normalise.c
PARTS = 64  # likewise


class _Task(ctypes.Structure):
    """As in normalise.c."""

    _fields_ = [
        ("parallel", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("threads", "n", "h", "w", "channels", "pooled")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "y", "marks")),
        *((name, ctypes.c_void_p) for name in ("dx", "dweight", "dbias", "mean", "variance", "sums")),
        ("epsilon", ctypes.c_float),
        *((name, Phase) for name in ("first_phase", "second_phase")),
    ]


@cache
def _chosen() -> tuple[ctypes.CDLL, int] | None:
    """The functions, and how many channels they take at once."""
    for name, lanes in KERNELS.items():
        if (functions := functions_of(name, _Task, "normalise", "normalise_gradient")) is not None:
            return functions, lanes
    return None


def normalise(images: Tensor, layer: nn.BatchNorm2d, pool: nn.MaxPool2d) -> Tensor:
    """pool(layer(images)); one operation within `own_kernels`, where it gains and the pool is of 2x2."""
    if has_torch_function_unary(images):
        return handle_torch_function(normalise, (images,), images, layer, pool)
    return pool(layer(images))


def own_normalise(images: Tensor, layer: nn.BatchNorm2d, pool: nn.MaxPool2d) -> Tensor:
    """`normalise` by our kernels; the pool, or both, by PyTorch where those do not suit."""
    of_layer = (layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.training)
    pooled = layer.track_running_stats and is_pool_of_four(pool) and _suits(images, *of_layer, pooled=True)
    with Replacing({nn.functional.batch_norm: partial(own_batch_norm, pooled=pooled)}):
        normalised = layer(images)  # which keeps its statistics as it does
    return normalised if pooled else pool(normalised)


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
) -> Tensor | None:
    """`torch.nn.functional.batch_norm`, and 2x2 max-pooling after it, by our kernels; None where those do not suit."""
    if not _suits(input, running_mean, running_var, weight, bias, training, pooled=pooled):
        return None
    assert running_mean is not None and running_var is not None
    statistics = torch.empty(2, input.shape[1], dtype=torch.float32, device="cpu")
    output = _BatchNorm.apply(input, weight, bias, statistics, eps, pooled)
    n = input.numel() // input.shape[1]
    running_mean.lerp_(statistics[0], momentum)
    running_var.lerp_(statistics[1] * (n / (n - 1)), momentum)
    return output


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
    chosen, parts = _chosen(), (values, running_mean, running_var, weight, bias)
    if (
        chosen is None
        or not training
        or any(part is None or part.dtype != torch.float32 for part in parts)
        or values.ndim not in (2, 4)
    ):
        return False
    channels, size = values.shape[1], values.shape[2:]
    last = torch.channels_last if values.ndim == 4 else torch.contiguous_format
    return (
        channels % chosen[1] == 0
        and channels <= MOST_CHANNELS
        and values.is_contiguous(memory_format=last)
        and values.numel() > channels
        and all(side > 0 and side % (1 + pooled) == 0 for side in size)
    )


class _BatchNorm(torch.autograd.Function):
    """Of (N, C, H, W) in channels_last or (N, C); and max_pool2d by 2x2, if `pooled`.

    The mean and the variance of each channel, without Bessel's correction, go to `statistics` (2, C). Of four equal
    outputs the first one gets the gradient, as in PyTorch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor,
        bias: Tensor,
        statistics: Tensor,
        epsilon: float,
        pooled: bool,
    ) -> Tensor:
        output, marks = torch.empty_like(values), None
        if pooled:
            n, channels, height, width = values.shape
            shape = (n, channels, height // 2, width // 2)
            output = torch.empty(shape, dtype=values.dtype, device="cpu", memory_format=torch.channels_last)
            marks = torch.empty_like(output, dtype=torch.uint8)
        ctx.save_for_backward(values, weight, statistics, marks)
        ctx.epsilon = epsilon
        task, _sums = _task(values, weight, statistics, output, marks, epsilon)
        task.bias = bias.data_ptr()
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
        _functions().normalise_gradient(task)
        return of_values, of_weight, of_bias, None, None, None


def _functions() -> ctypes.CDLL:
    chosen = _chosen()
    assert chosen is not None
    return chosen[0]


def _task(
    values: Tensor,
    weight: Tensor,
    statistics: Tensor,
    outputs: Tensor,
    marks: Tensor | None,
    epsilon: float,
) -> tuple[_Task, Tensor]:
    """And the memory for its sums, to be kept as long."""
    n, channels, *size = values.shape
    height, width = size or (1, 1)
    sums = torch.empty(PARTS * 2 * channels, dtype=torch.float64, device="cpu")
    task = _Task(
        parallel=parallel_region(),
        threads=torch.get_num_threads(),
        n=n,
        h=height,
        w=width,
        channels=channels,
        pooled=marks is not None,
        x=values.data_ptr(),
        weight=weight.data_ptr(),
        y=outputs.data_ptr(),
        marks=None if marks is None else marks.data_ptr(),
        mean=statistics[0].data_ptr(),
        variance=statistics[1].data_ptr(),
        sums=sums.data_ptr(),
        epsilon=epsilon,
    )
    return task, sums
