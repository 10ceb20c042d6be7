"""Batch normalisation in training, ELU before it and the 2x2 pool that follows it: see normalise.c."""

import ctypes
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_unary

from cifarlab.kernels.compiled import Phase, functions_of, parallel_region
from cifarlab.kernels.convolution import is_pool_of_four
from cifarlab.kernels.pointwise import own_elu
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
        *((name, ctypes.c_long) for name in ("threads", "n", "h", "w", "channels", "elu", "pooled")),
        *((name, ctypes.c_void_p) for name in ("before", "x", "weight", "bias", "y", "marks")),
        *((name, ctypes.c_void_p) for name in ("dx", "dweight", "dbias", "mean", "variance")),
        *((name, ctypes.c_void_p) for name in ("running_mean", "running_variance", "sums")),
        ("momentum", ctypes.c_double),
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


def normalise(
    images: Tensor, layer: nn.BatchNorm2d, pool: nn.MaxPool2d | None = None, elu: nn.ELU | None = None
) -> Tensor:
    """pool(layer(elu(images))), without those that are None; one operation within `own_kernels`, where it gains and the
    pool is of 2x2."""
    alone = pool is None and elu is None  # then `layer` itself is replaced
    if not alone and has_torch_function_unary(images):
        return handle_torch_function(normalise, (images,), images, layer, pool, elu)
    for following in (elu, layer, pool):
        images = images if following is None else following(images)
    return images


def own_normalise(
    images: Tensor, layer: nn.BatchNorm2d, pool: nn.MaxPool2d | None = None, elu: nn.ELU | None = None
) -> Tensor:
    """`normalise` by our kernels; ELU, the pool, or all, by themselves where those do not suit."""
    of_layer = (layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.training)
    suits = partial(_suits, images, *of_layer) if layer.track_running_stats else lambda *, pooled: False
    pooled = pool is not None and is_pool_of_four(pool) and suits(pooled=True)
    if elu is not None and not (_elu_suits(images, elu) and (pooled or suits(pooled=False))):
        with Replacing({nn.functional.elu: own_elu}):
            images, elu = elu(images), None
    with Replacing({nn.functional.batch_norm: partial(own_batch_norm, pooled=pooled, elu=elu)}):
        normalised = layer(images)  # which keeps its statistics as it does
    return normalised if pool is None or pooled else pool(normalised)


def _elu_suits(images: Tensor, elu: nn.ELU) -> bool:
    """A function of two outputs, one of them written in place, may not be given a view."""
    return elu.alpha == 1.0 and not (elu.inplace and images._is_view())


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
    elu: nn.ELU | None = None,
) -> Tensor | None:
    """`torch.nn.functional.batch_norm`, ELU before and 2x2 max-pooling after it, by our kernels; None where those do
    not suit."""
    if not _suits(input, running_mean, running_var, weight, bias, training, pooled=pooled):
        return None
    assert running_mean is not None and running_var is not None
    inplace = None if elu is None else elu.inplace
    outputs = _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps, pooled, inplace)
    return outputs[0] if isinstance(outputs, tuple) else outputs


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
    chosen, parts = _chosen(), (running_mean, running_var, weight, bias)
    if chosen is None or not training or values.dtype != torch.float32 or values.ndim not in (2, 4):
        return False
    _, channels, *size = values.shape
    for part in parts:
        if (
            part is None
            or part.dtype != torch.float32
            or part.numel() != channels
            or not part.is_contiguous()
        ):
            return False
    last = torch.channels_last if values.ndim == 4 else torch.contiguous_format
    return (
        channels % chosen[1] == 0
        and channels <= MOST_CHANNELS
        and values.is_contiguous(memory_format=last)
        and values.numel() > channels
        and all(side > 0 and side % (1 + pooled) == 0 for side in size)
    )


class _BatchNorm(torch.autograd.Function):
    """Of (N, C, H, W) in channels_last or (N, C); ELU before it, unless `inplace` is None; and max_pool2d by 2x2 after
    it, if `pooled`.

    The running mean and variance (C,) are changed, and of four equal outputs the first one gets the gradient, as in
    PyTorch. What ELU writes in place is an output, too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        before: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_variance: Tensor,
        momentum: float,
        epsilon: float,
        pooled: bool,
        inplace: bool | None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        values = torch.empty_like(before) if inplace is False else before
        output, marks = torch.empty_like(values), None
        if pooled:
            n, channels, height, width = values.shape
            shape = (n, channels, height // 2, width // 2)
            output = torch.empty(shape, dtype=values.dtype, device="cpu", memory_format=torch.channels_last)
            marks = torch.empty_like(output, dtype=torch.uint8)
        statistics = torch.empty(2 * len(weight), dtype=torch.float32, device="cpu")
        ctx.save_for_backward(values, weight, statistics, marks)
        ctx.epsilon, ctx.elu = epsilon, inplace is not None
        task, _sums = _task(values, weight, statistics, output, marks, epsilon, elu=ctx.elu)
        task.before, task.bias, task.momentum = before.data_ptr(), bias.data_ptr(), momentum
        task.running_mean, task.running_variance = running_mean.data_ptr(), running_variance.data_ptr()
        _functions().normalise(task)
        if not inplace:
            return output
        ctx.mark_dirty(before)
        ctx.set_materialize_grads(False)
        if not ctx.needs_input_grad[0]:
            ctx.mark_non_differentiable(before)
        return output, before

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor | None, of_elu: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        values, weight, statistics, marks = ctx.saved_tensors
        if gradient is None:
            gradient = torch.zeros_like(values if marks is None else marks, dtype=values.dtype)
        last = torch.channels_last if values.ndim == 4 else torch.contiguous_format
        gradient = gradient.contiguous(memory_format=last)
        of_values, of_weight, of_bias = (torch.empty_like(part) for part in (values, weight, weight))
        task, _sums = _task(values, weight, statistics, gradient, marks, ctx.epsilon, elu=ctx.elu)
        task.dx, task.dweight, task.dbias = (part.data_ptr() for part in (of_values, of_weight, of_bias))
        _functions().normalise_gradient(task)
        if of_elu is not None:  # of what was written in place, by others
            of_values += torch.ops.aten.elu_backward(of_elu, 1.0, 1.0, 1.0, True, values)
        return of_values, of_weight, of_bias, None, None, None, None, None, None


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
    *,
    elu: bool,
) -> tuple[_Task, Tensor]:
    """And the memory for its sums, to be kept as long. `statistics` are the means, then the variances."""
    sums = torch.empty(PARTS * len(statistics), dtype=torch.float64, device="cpu")
    kind = _kind_of_task(values.shape, elu, marks is not None, torch.get_num_threads())
    task = _Task.from_buffer_copy(kind)
    task.x, task.y, task.weight = values.data_ptr(), outputs.data_ptr(), weight.data_ptr()
    task.marks = None if marks is None else marks.data_ptr()
    task.mean = statistics.data_ptr()
    task.variance = task.mean + statistics.nbytes // 2
    task.sums, task.epsilon = sums.data_ptr(), epsilon
    return task, sums


@cache
def _kind_of_task(shape: torch.Size, elu: bool, pooled: bool, threads: int) -> _Task:
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
        elu=elu,
        pooled=pooled,
    )
