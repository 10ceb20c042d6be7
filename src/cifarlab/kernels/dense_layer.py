"""Dense layers of small batches, and ReLU after them, faster than PyTorch's: see dense.c."""

import ctypes
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cifarlab.kernels.compiled import PLANS_KEPT, Phase, first_of, parallel_region

KERNELS = ("dense-avx512", "dense-avx2")  # the first that can run is taken
LEAST_BATCH, MOST_BATCH = 4, 256  # for fewer, PyTorch fetches the weights as fast; most: see dense.c
LEAST_MULTIPLICATIONS = 4_000_000  # of a batch, below which calling our kernels costs more than they gain
LARGEST_CACHED = 6 << 20  # bytes of a gradient that may stay in the caches until it is used


class _Task(ctypes.Structure):
    """As in dense.c."""

    _fields_ = [
        ("parallel", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("threads", "batch", "inputs", "outputs", "relu")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "y", "y_gradient")),
        *((name, ctypes.c_void_p) for name in ("x_gradient", "weight_gradient", "bias_gradient")),
        *((name, ctypes.c_void_p) for name in ("packed", "workspace")),
        *((name, ctypes.c_long) for name in ("past_caches", "entered")),
        *((name, Phase) for name in ("packing", "computing")),
    ]


@cache
def _functions() -> ctypes.CDLL | None:
    names = ("packed_floats", "workspace_floats", "forward", "backward")
    chosen = first_of(KERNELS, _Task, *names)
    return None if chosen is None else chosen.functions


def dense(values: Tensor, layer: nn.Linear, relu: nn.ReLU | None = None) -> Tensor:
    """relu(layer(values)), or layer(values) if `relu` is None: see `run_operations`."""
    values = layer(values)
    return values if relu is None else relu(values)


def own_dense(values: Tensor, layer: nn.Linear, relu: nn.ReLU | None = None) -> Tensor | None:
    """`dense` by our kernels; None where those do not suit."""
    return own_linear(values, layer.weight, layer.bias, relu=relu is not None)


def own_linear(
    input: Tensor,  # named as PyTorch's is
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
) -> Tensor | None:
    """`F.linear`, and ReLU after it, by our kernels; None where those do not suit."""
    return _Dense.apply(input, weight, bias, relu) if _suits(input, weight, bias) else None


def _suits(values: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        _functions() is not None
        and values.ndim == weight.ndim == 2
        and values.shape[1] == weight.shape[1]
        and LEAST_BATCH <= len(values) <= MOST_BATCH
        and values.numel() * len(weight) >= LEAST_MULTIPLICATIONS
        and all(_is_plain(part) for part in (values, weight))
        and (bias is None or (_is_plain(bias) and bias.shape == weight.shape[:1]))
        and not torch.is_autocast_enabled("cpu")
    )


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.is_cpu


class _Dense(torch.autograd.Function):
    """linear of (N, inputs) by a weight (outputs, inputs), and then ReLU, if `relu`; float32."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        output = torch.empty((len(values), len(weight)), dtype=torch.float32, device="cpu")
        task, _memory = _begin(values, weight, relu)
        task.y = output.data_ptr()
        task.bias = None if bias is None else bias.data_ptr()
        _functions().forward(task)  # type: ignore[union-attr]
        ctx.relu = relu
        ctx.save_for_backward(values, weight, output if relu else None)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, output = ctx.saved_tensors
        gradient = gradient.contiguous()
        wants_values, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        task, _memory = _begin(values, weight, ctx.relu)
        task.y_gradient = gradient.data_ptr()
        if output is not None:
            task.y = output.data_ptr()
        of_values = of_weight = of_bias = None
        if wants_values:
            of_values = torch.empty_like(values)
            task.x_gradient = of_values.data_ptr()
        if wants_weight:
            of_weight = torch.empty_like(weight)
            task.weight_gradient = of_weight.data_ptr()
            in_lines = weight.shape[1] % 16 == 0 and of_weight.data_ptr() % 64 == 0
            task.past_caches = in_lines and 4 * weight.numel() > LARGEST_CACHED
        if wants_bias:
            of_bias = gradient.new_empty(len(weight))
            task.bias_gradient = of_bias.data_ptr()
        _functions().backward(task)  # type: ignore[union-attr]
        return of_values, of_weight, of_bias, None


@lru_cache(PLANS_KEPT)
def _plan(
    functions: ctypes.CDLL, batch: int, inputs: int, outputs: int, relu: bool, threads: int
) -> tuple[_Task, int, int]:
    """A task but for addresses; and floats of memory that it needs, packed and in all."""
    task = _Task(parallel_region(), threads, batch, inputs, outputs, relu)
    packed = functions.packed_floats(task)
    return task, packed, packed + threads * functions.workspace_floats(task)


def _begin(values: Tensor, weight: Tensor, relu: bool) -> tuple[_Task, Tensor]:
    """A task, and the memory that it has the addresses of, to be kept until it is done."""
    plan = _plan(_functions(), *values.shape, len(weight), relu, torch.get_num_threads())  # type: ignore[arg-type]
    task, packed, floats = _Task.from_buffer_copy(plan[0]), *plan[1:]
    memory = torch.empty(floats, dtype=torch.float32, device="cpu")
    task.x, task.weight, task.packed = values.data_ptr(), weight.data_ptr(), memory.data_ptr()
    task.workspace = task.packed + 4 * packed
    return task, memory
