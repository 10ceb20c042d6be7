"""Convolutions with fewer multiplications than PyTorch's, and what follows them, by Winograd's method: see winograd.c.

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016).
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_unary

from cifarlab.kernels.compiled import Phase, functions_of, library, parallel_region

GROUP = 8  # channels come in whole ones: see winograd.c
MOST_CHANNELS = 2048  # likewise
TILES_OF_A_PART = 64  # at least, of the gradient of the weights
MOST_BYTES_OF_PARTS = 64 << 20
CONV2D_ARGUMENTS = ("weight", "bias", "stride", "padding", "dilation", "groups")  # after the pictures
POOL_OF_FOUR = {
    "kernel_size": 2,
    "stride": 2,
    "padding": 0,
    "dilation": 1,
    "ceil_mode": False,
    "return_indices": False,
}
LEAST_SAVING = 1.2  # multiplications of PyTorch's convolution over ours, below which the transforms cost more
LEAST_TILES = 64  # of a batch, below which transforming the weights costs more


@dataclass(frozen=True)
class Kernels:
    """Compiled for one type of pictures, one kind of processor and one size of a convolution's kernel."""

    name: str
    dtype: torch.dtype
    kernel_size: int
    side: int  # pixels of a tile of inputs
    panel: int  # output channels that one product computes

    @property
    def outputs(self) -> int:
        """Pixels a side of a tile of outputs."""
        return self.side - self.kernel_size + 1


KERNELS = (  # the first of its type and size that can run is taken
    Kernels("winograd-avx512_bf16-3x3", torch.bfloat16, 3, 4, 32),
    Kernels("winograd-avx512-3x3", torch.float32, 3, 6, 32),
    Kernels("winograd-avx512-5x5", torch.float32, 5, 6, 32),
    Kernels("winograd-avx2-3x3", torch.float32, 3, 6, 16),
    Kernels("winograd-avx2-5x5", torch.float32, 5, 6, 16),
)


@cache
def _chosen() -> dict[tuple[torch.dtype, int], Kernels]:
    """By type of the pictures and size of the kernel."""
    chosen: dict[tuple[torch.dtype, int], Kernels] = {}
    for kernels in KERNELS:
        names = ("plan", "workspace_bytes", "convolve", "weight_gradient")
        if functions_of(kernels.name, _Task, *names) is not None:
            chosen.setdefault((kernels.dtype, kernels.kernel_size), kernels)
    return chosen


class _Pictures(ctypes.Structure):
    """As in winograd.c."""

    _fields_ = [
        ("values", ctypes.c_void_p),
        ("marks", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("h", "w", "channels", "pooled")),
    ]


class _Task(ctypes.Structure):
    """As in winograd.c."""

    _fields_ = [
        ("parallel", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("threads", "n", "padding", "relu")),
        *((name, _Pictures) for name in ("x", "y")),
        ("weight", ctypes.c_void_p),
        ("strides", ctypes.c_long * 4),
        *((name, ctypes.c_long) for name in ("size", "first_tap")),
        *((name, ctypes.c_void_p) for name in ("bias", "transformed", "sums", "bias_sums", "workspace")),
        *((name, ctypes.c_long) for name in ("parts", "tile_rows", "tile_columns", "block", "entered")),
        *((name, Phase) for name in ("first_phase", "second_phase")),
    ]


def convolve(
    images: Tensor, layer: nn.Conv2d, pool: nn.MaxPool2d | None = None, relu: nn.ReLU | None = None
) -> Tensor:
    """relu(pool(layer(images))), without those that are None; one operation within `own_kernels`, where it gains and
    the pool is of 2x2."""
    if has_torch_function_unary(images):
        return handle_torch_function(convolve, (images,), images, layer, pool, relu)
    for following in (layer, pool, relu):
        images = images if following is None else following(images)
    return images


def is_pool_of_four(layer: nn.Module) -> bool:
    """Whether it is 2x2 max-pooling, of whole squares."""
    return isinstance(layer, nn.MaxPool2d) and all(
        getattr(layer, name) == value for name, value in POOL_OF_FOUR.items()
    )


def own_convolve(
    images: Tensor, layer: nn.Conv2d, pool: nn.MaxPool2d | None, relu: nn.ReLU | None
) -> Tensor | None:
    """`convolve` by our kernels; None where those do not suit."""
    if (pool is not None and not is_pool_of_four(pool)) or layer.padding_mode != "zeros":
        return None
    arguments = (getattr(layer, name) for name in CONV2D_ARGUMENTS)
    return own_conv2d(images, *arguments, pooled=pool is not None, relu=relu is not None)


def own_conv2d(
    input: Tensor,  # named as PyTorch's are
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    pooled: bool = False,
    relu: bool = False,
) -> Tensor | None:
    """`torch.conv2d`, and 2x2 max-pooling and ReLU after it, by our kernels; None where those do not suit."""
    if not _suits(input, weight, bias, stride, padding, dilation, groups, pooled=pooled):
        return None
    images = input.to(_dtype(input))
    padding = _in_pixels(padding, _odd(weight.shape[2]))
    return _Convolution.apply(images, weight, bias, _both(padding)[0], pooled, relu)


def _suits(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    *,
    pooled: bool,
) -> bool:
    filters, channels, size, other_size = weight.shape
    kernels = _chosen().get((_dtype(images), _odd(size) if padding == "same" else size))
    if (
        kernels is None
        or [*_both(stride), *_both(dilation), groups] != [1, 1, 1, 1, 1]
        or images.ndim != 4
        or images.shape[1] != channels
        or (channels % GROUP != 0 and images.requires_grad)
        or size != other_size
        or filters % GROUP != 0
        or (bias is not None and bias.shape != (filters,))
        or not (torch.is_autocast_enabled("cpu") or _are_of(images.dtype, weight, bias))
        or max(channels, filters) > MOST_CHANNELS
        or not images.is_contiguous(memory_format=torch.channels_last)
    ):
        return False
    rows, columns = _both(_in_pixels(padding, kernels.kernel_size))
    height, width = images.shape[2:]
    return (
        0 <= rows == columns < kernels.kernel_size
        and min(height, width) + 2 * rows >= kernels.kernel_size + pooled
        and saving(kernels, height, width, rows) >= LEAST_SAVING
        and len(images) * _tiles(kernels, height, width, rows) >= LEAST_TILES
    )


def _both(value: Any) -> tuple[Any, ...]:
    if isinstance(value, int):
        return value, value
    return tuple(value) * 2 if len(value) == 1 else tuple(value)


def _in_pixels(padding: Any, kernel_size: int) -> Any:
    """A padding by name, in pixels on each side."""
    return {"same": kernel_size // 2, "valid": 0}[padding] if isinstance(padding, str) else padding


def _are_of(dtype: torch.dtype, *tensors: Tensor | None) -> bool:
    return all(tensor is None or tensor.dtype == dtype for tensor in tensors)


def _dtype(images: Tensor) -> torch.dtype:
    """What a convolution would compute in."""
    if torch.is_autocast_enabled("cpu") and images.dtype != torch.float64:
        return torch.get_autocast_dtype("cpu")
    return images.dtype


def _tiles(kernels: Kernels, height: int, width: int, padding: int) -> int:
    """Of a picture."""
    lost = kernels.kernel_size - 1 - 2 * padding
    return -(-(height - lost) // kernels.outputs) * -(-(width - lost) // kernels.outputs)


@cache
def saving(kernels: Kernels, height: int, width: int, padding: int = 1) -> float:
    """Multiplications of a convolution of a picture, but for those with zeros around it, over ours."""
    taps = 1
    for side in (height, width):
        outputs = range(side + 2 * padding - kernels.kernel_size + 1)
        taps *= sum(min(y - padding + kernels.kernel_size, side) - max(y - padding, 0) for y in outputs)
    return taps / (kernels.side**2 * _tiles(kernels, height, width, padding))


class _Convolution(torch.autograd.Function):
    """conv2d of (N, C, H, W) in channels_last; and max_pool2d by 2x2, if `pooled`, and then ReLU, if `relu`.

    Of four equal outputs the first one gets the gradient, as in PyTorch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: int,
        pooled: bool,
        relu: bool,
    ) -> Tensor:
        n, _, *size = images.shape
        ctx.size = tuple(side + 2 * padding + 1 - _odd(weight.shape[2]) for side in size)
        shape = (n, len(weight), *(side // 2 if pooled else side for side in ctx.size))
        output = _empty(shape, images.dtype)
        marks = _empty(shape, torch.uint8) if pooled or relu else None
        ctx.save_for_backward(images, weight, marks)
        ctx.padding, ctx.pooled, ctx.bias_dtype = padding, pooled, None if bias is None else bias.dtype
        # Under autocast, as PyTorch's convolution is: of weights in bfloat16.
        rounded = weight.detach().to(images.dtype).float()
        after = _pictures(output, marks, ctx.size, pooled)
        _convolve(_pictures(images), after, rounded, bias, images.dtype, n=n, padding=padding, relu=relu)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, marks = ctx.saved_tensors
        wants_images, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        outputs = _pictures(gradient, marks, ctx.size, ctx.pooled)
        of_images = of_weight = of_bias = None
        if wants_images:
            of_images = _empty(tuple(images.shape), images.dtype)
            before = _odd(weight.shape[2]) - 1 - ctx.padding
            _convolve(
                outputs,
                _pictures(of_images),
                weight.detach().float(),
                None,
                images.dtype,
                n=len(images),
                padding=before,
                turned=True,
            )
        if wants_weight or wants_bias:
            of_weight, of_bias = _weight_gradient(images, outputs, weight, ctx.padding)
            of_weight = of_weight.to(weight.dtype)
            of_bias = of_bias.to(ctx.bias_dtype) if wants_bias else None
        return of_images, of_weight, of_bias, None, None, None


def _odd(size: int) -> int:
    """A kernel of 2x2 is one of 3x3 whose first row and column are zeros."""
    return size + (size == 2)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)


def _pictures(
    values: Tensor, marks: Tensor | None = None, size: Sequence[int] | None = None, pooled: bool = False
) -> _Pictures:
    """`size` is that before pooling."""
    height, width = size or values.shape[2:]
    return _Pictures(values.data_ptr(), _address(marks), height, width, values.shape[1], pooled)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _convolve(
    images: _Pictures,
    outputs: _Pictures,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    n: int,
    padding: int,
    relu: bool = False,
    turned: bool = False,
) -> None:
    """Write `outputs`, of `images` and a float32 `weight` (filters, channels, k, k).

    With `turned`, filters and channels change places, and rows and columns their order.
    """
    kernels = _chosen()[dtype, _odd(weight.shape[2])]
    bias = None if bias is None else bias.detach().float()
    words = kernels.side**2 * _wide(kernels, outputs) * -(-images.channels * dtype.itemsize // 4)
    transformed = torch.empty(words, dtype=torch.float32, device="cpu")
    task = _task(images, outputs, weight, bias, n=n, padding=padding)
    if turned:
        filters, channels, rows, columns = weight.stride()
        task.strides = (channels, filters, -rows, -columns)
        task.weight += (weight.shape[2] - 1) * (rows + columns) * weight.itemsize
        task.first_tap = 0
    task.relu, task.transformed = relu, transformed.data_ptr()
    _run(kernels, "convolve", task)


def _weight_gradient(
    images: Tensor, outputs: _Pictures, weight: Tensor, padding: int
) -> tuple[Tensor, Tensor]:
    """float32, in the shapes of `weight` and the bias; `outputs` has the gradient."""
    kernels = _chosen()[images.dtype, _odd(weight.shape[2])]
    n, channels = images.shape[:2]
    wide, points = _wide(kernels, outputs), kernels.side**2
    part = points * wide * -(-channels // GROUP) * GROUP
    sides = ((side // 2 * 2 if outputs.pooled else side) for side in (outputs.h, outputs.w))
    tiles = n * math.prod(-(-side // kernels.outputs) for side in sides)
    parts = max(1, min(torch.get_num_threads(), tiles // TILES_OF_A_PART, MOST_BYTES_OF_PARTS // (4 * part)))
    sums = torch.empty(parts * (part + 2 * wide), dtype=torch.float32, device="cpu")
    of_weight = torch.empty_like(weight, dtype=torch.float32, memory_format=torch.channels_last)
    of_bias = torch.empty(len(weight), dtype=torch.float32, device="cpu")
    task = _task(_pictures(images), outputs, of_weight, of_bias, n=n, padding=padding)
    task.parts, task.sums, task.bias_sums = parts, sums.data_ptr(), sums[parts * part :].data_ptr()
    _run(kernels, "weight_gradient", task)
    return of_weight, of_bias


def _wide(kernels: Kernels, outputs: _Pictures) -> int:
    """Channels of `outputs` in whole panels."""
    return -(-outputs.channels // kernels.panel) * kernels.panel


def _task(
    images: _Pictures, outputs: _Pictures, weight: Tensor, bias: Tensor | None, *, n: int, padding: int
) -> _Task:
    return _Task(
        parallel=parallel_region(),
        threads=torch.get_num_threads(),
        n=n,
        padding=padding,
        x=images,
        y=outputs,
        weight=weight.data_ptr(),
        strides=weight.stride(),
        size=weight.shape[2],
        first_tap=_odd(weight.shape[2]) - weight.shape[2],
        bias=_address(bias),
    )


def _run(kernels: Kernels, function: str, task: _Task) -> None:
    functions = library(kernels.name)
    functions.plan(task)  # type: ignore[union-attr]
    workspace_bytes = task.threads * functions.workspace_bytes(task)  # type: ignore[union-attr]
    workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device="cpu")
    task.workspace = workspace.data_ptr()
    getattr(functions, function)(task)
