"""3x3 convolutions of a training on CPU with fewer multiplications than PyTorch's: Winograd's F(2x2, 3x3).

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016). The kernels are in winograd.c,
which hatch_build.py compiles where it can; without them, and wherever they would not be faster, PyTorch's are used.
"""

import ctypes
import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from cifarlab.process import processor_field

GROUP = 8  # channels come in whole ones: see winograd.c
MOST_CHANNELS = 2048  # likewise
TILES_OF_A_PART = 256  # at least, of the gradient of the weights
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
G = torch.tensor(
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]], dtype=torch.float32, device="cpu"
)
WEIGHT_TRANSFORM = torch.kron(G, G)  # (16, 9): G g G^T of a flat g


@dataclass(frozen=True)
class Kernels:
    """Compiled for one type of pictures and one kind of processor."""

    name: str
    dtype: torch.dtype
    panel: int  # output channels that one product computes
    instructions: frozenset[str]  # as /proc/cpuinfo names them


AVX512 = frozenset({"fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"})
KERNELS = (  # the first that the processor has is taken
    Kernels("avx512_bf16", torch.bfloat16, 32, AVX512 | {"avx512_bf16"}),
    Kernels("avx512", torch.float32, 32, AVX512),
    Kernels("avx2", torch.float32, 16, frozenset({"fma", "avx2"})),
)


def winograd_convolutions(device: torch.device, *, wanted: bool = True) -> AbstractContextManager[Any]:
    """Within it, convolutions on `device` that gain by Winograd's method are computed by it, and so are gradients."""
    return _Convolutions() if wanted and device.type == "cpu" and kernels_here() else nullcontext()


def kernels_here() -> tuple[str, ...]:
    """The names of the kernels that this machine's processor runs, and that were compiled; () if none."""
    return tuple(kernels.name for kernels in _chosen().values())


@cache
def _chosen() -> dict[torch.dtype, Kernels]:
    if _parallel_region() is None:  # another system
        return {}
    instructions = set((processor_field("flags") or "").split())
    chosen: dict[torch.dtype, Kernels] = {}
    for kernels in KERNELS:
        if kernels.instructions <= instructions and _library(kernels) is not None:
            chosen.setdefault(kernels.dtype, kernels)
    return chosen


def _library_file(kernels: Kernels) -> Path:
    """Named by its source as well, so that what an older one was compiled to is not taken."""
    folder = Path(__file__).parent
    digest = hashlib.sha256((folder / "winograd.c").read_bytes()).hexdigest()
    return folder / f"{kernels.name}-{digest[:8]}.so"


@cache
def _library(kernels: Kernels) -> ctypes.CDLL | None:
    """None where it was not compiled, or cannot be loaded."""
    try:
        library = ctypes.CDLL(str(_library_file(kernels)))
    except OSError:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_long
    library.convolve.argtypes = [pointer, ctypes.c_uint, *[pointer] * 6, *[size] * 6]
    library.weight_gradient.argtypes = [pointer, ctypes.c_uint, *[pointer] * 4, *[size] * 7]
    library.convolve.restype = library.weight_gradient.restype = None
    return library


@cache
def _parallel_region() -> int | None:
    """The address of GOMP_parallel in the OpenMP library of PyTorch: two pools of threads would fight for cores."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"  # looks in what it needs, too
    try:
        return ctypes.cast(ctypes.CDLL(str(library)).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def convolve_then_pool(images: Tensor, layer: nn.Conv2d, pool: nn.MaxPool2d) -> Tensor:
    """pool(layer(images)); one operation within `winograd_convolutions`, where the pool is of 2x2."""
    if has_torch_function_unary(images):
        return handle_torch_function(convolve_then_pool, (images,), images, layer, pool)
    return pool(layer(images))


def is_pool_of_four(layer: nn.Module) -> bool:
    """Whether it is 2x2 max-pooling, of whole squares."""
    return isinstance(layer, nn.MaxPool2d) and all(
        getattr(layer, name) == value for name, value in POOL_OF_FOUR.items()
    )


class _Convolutions(TorchFunctionMode):
    """Takes over those calls of `conv2d` and `convolve_then_pool` that gain."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        convolution: Sequence[Any] = ()
        if func is torch.conv2d and len(args) == 7:  # as nn.Conv2d calls it
            convolution = args
        elif func is convolve_then_pool and is_pool_of_four(args[2]) and args[1].padding_mode == "zeros":
            images, layer, _ = args
            convolution = [images, *(getattr(layer, name) for name in CONV2D_ARGUMENTS)]
        if not convolution or not _suits(*convolution):
            return func(*args, **kwargs or {})
        images, weight, bias, _, padding = convolution[:5]
        images = images.to(_dtype(images))
        return _Convolution.apply(images, weight, bias, _both(padding)[0], func is convolve_then_pool)


def _suits(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> bool:
    filters, channels, *size = weight.shape
    return (
        [*size, *_both(stride), *_both(dilation), groups] == [3, 3, 1, 1, 1, 1, 1]
        and _both(padding) in ((0, 0), (1, 1))
        and images.ndim == 4
        and images.shape[1] == channels
        and channels % GROUP == filters % GROUP == 0
        and max(channels, filters) <= MOST_CHANNELS
        and _dtype(images) in _chosen()
        and images.is_contiguous(memory_format=torch.channels_last)
        and min(images.shape[2:]) >= 3
        and saving(*images.shape[2:], padding=_both(padding)[0]) >= LEAST_SAVING
    )


def _both(value: Any) -> tuple[Any, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _dtype(images: Tensor) -> torch.dtype:
    """What a convolution would compute in."""
    if torch.is_autocast_enabled("cpu") and images.dtype != torch.float64:
        return torch.get_autocast_dtype("cpu")
    return images.dtype


def saving(height: int, width: int, padding: int = 1) -> float:
    """Multiplications of a 3x3 convolution of a picture, but for those with zeros around it, over ours.

    From 2.25 for large pictures down to 0.77 for a padded one of 3x3 pixels, whose tiles reach beyond it.
    """
    plain = tiles = 1
    for side in (height + 2 * padding - 2, width + 2 * padding - 2):
        plain *= 3 * side - 2 * padding
        tiles *= -(-side // 2)
    return plain / (16 * tiles)


class _Convolution(torch.autograd.Function):
    """conv2d of (N, C, H, W) in channels_last; and max_pool2d by 2x2, if `pooled`.

    Of four equal outputs the first one gets the gradient, as in PyTorch.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, padding: int, pooled: bool
    ) -> Tensor:
        n, _, *size = images.shape
        height, width = (side + 2 * padding - 2 for side in size)
        largest = _empty((n, len(weight), height // 2, width // 2), torch.uint8) if pooled else None
        ctx.save_for_backward(images, weight, largest)
        ctx.padding, ctx.size, ctx.bias_dtype = padding, (height, width), None if bias is None else bias.dtype
        return _convolve(images, weight, bias, output_largest=largest, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, largest = ctx.saved_tensors
        wants_images, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        turned = weight.flip(2, 3).transpose(0, 1)
        return (
            _convolve(gradient, turned, None, ctx.size, largest, padding=2 - ctx.padding)
            if wants_images
            else None,
            _weight_gradient(images, gradient, largest, ctx.padding).to(weight.dtype)
            if wants_weight
            else None,
            gradient.sum((0, 2, 3), dtype=ctx.bias_dtype) if wants_bias else None,
            None,
            None,
        )


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)


def _convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    size: tuple[int, int] | None = None,
    largest: Tensor | None = None,
    output_largest: Tensor | None = None,
    *,
    padding: int,
) -> Tensor:
    """Convolve `images`, or what was pooled to them, of `size` before that.

    `largest`, uint8 (N, C, H, W), says which of the four pixels each of `images` was; into `output_largest` goes the
    same of the output, which is pooled then.
    """
    n, channels = images.shape[:2]
    height, width = size or images.shape[2:]
    filters = len(weight)
    kernels = _chosen()[images.dtype]
    points = _point_weights(weight, kernels)
    if bias is not None:
        bias = F.pad(bias.detach().float(), (0, -filters % kernels.panel))
    whole = (n, filters, height + 2 * padding - 2, width + 2 * padding - 2)
    output = _empty(whole if output_largest is None else tuple(output_largest.shape), images.dtype)
    _library(kernels).convolve(  # type: ignore[union-attr]
        _parallel_region(),
        torch.get_num_threads(),
        *map(_address, (images, largest, points, bias, output, output_largest)),
        *(n, height, width, channels, filters, padding),
    )
    return output


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _point_weights(weight: Tensor, kernels: Kernels) -> Tensor:
    """G g G^T, as winograd.c wants it: [panel][point][channel][filter of the panel], pairs of bfloat16 as one word.

    Under autocast, which is on in the forward pass, it is of weights in bfloat16, as PyTorch's convolution is.
    """
    filters, channels = weight.shape[:2]
    points = WEIGHT_TRANSFORM @ weight.detach().float().permute(2, 3, 1, 0).reshape(9, -1)
    points = F.pad(points.view(16, channels, filters), (0, -filters % kernels.panel)).to(kernels.dtype)
    per_word = 4 // kernels.dtype.itemsize
    words = points.view(16, channels // per_word, per_word, -1, kernels.panel)
    return words.permute(3, 0, 1, 4, 2).contiguous()


def _weight_gradient(images: Tensor, gradient: Tensor, largest: Tensor | None, padding: int) -> Tensor:
    """float32 (filters, channels, 3, 3), of a `gradient` that is pooled where `largest` is given."""
    n, channels, height, width = images.shape
    filters = gradient.shape[1]
    kernels, threads = _chosen()[images.dtype], torch.get_num_threads()
    part = (16, -(-filters // kernels.panel), channels // GROUP, GROUP, kernels.panel)
    tiles = n * -(-gradient.shape[2] // 2) * -(-gradient.shape[3] // 2)
    parts = max(1, min(threads, tiles // TILES_OF_A_PART, MOST_BYTES_OF_PARTS // (4 * math.prod(part))))
    sums = torch.empty(parts, *part, dtype=torch.float32, device="cpu")
    _library(kernels).weight_gradient(  # type: ignore[union-attr]
        _parallel_region(),
        threads,
        *map(_address, (images, gradient, largest, sums)),
        *(parts, n, height, width, channels, filters, padding),
    )
    points = sums.sum(0).permute(0, 2, 3, 1, 4).reshape(16, -1)
    weights = (WEIGHT_TRANSFORM.T @ points).view(3, 3, channels, -1)[..., :filters]
    return weights.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
