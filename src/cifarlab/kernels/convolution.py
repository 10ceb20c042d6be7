"""Convolutions with fewer multiplications than PyTorch's, and what follows them, as one operation: see winograd.c."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cifarlab.kernels.compiled import library
from cifarlab.kernels.memory import empty
from cifarlab.kernels.winograd import GROUP, Geometry, computed_in, geometry, odd, suited


def convolve(
    images: Tensor, layer: nn.Conv2d, pool: nn.MaxPool2d | None = None, relu: nn.ReLU | None = None
) -> Tensor:
    """relu(pool(layer(images))), without those that are None: see `run_operations`."""
    for following in (layer, pool, relu):
        images = images if following is None else following(images)
    return images


def is_pool_of_four(layer: nn.Module) -> bool:
    """Whether it is 2x2 max-pooling, of whole squares."""
    return (
        isinstance(layer, nn.MaxPool2d)
        and layer.kernel_size == layer.stride == 2
        and layer.padding == 0
        and layer.dilation == 1
        and not (layer.ceil_mode or layer.return_indices)
    )


def own_convolve(
    images: Tensor,
    layer: nn.Conv2d,
    pool: nn.MaxPool2d | None = None,
    relu: nn.ReLU | None = None,
    *,
    elu: bool = False,
) -> Tensor | None:
    """`convolve` by our kernels; None where those do not suit.

    With `elu`, in place of the pool, whoever takes the output gives the gradient of what is before ELU.
    """
    if (pool is not None and not is_pool_of_four(pool)) or layer.padding_mode != "zeros":
        return None
    return own_conv2d(
        images,
        layer.weight,
        layer.bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        pooled=pool is not None,
        relu=relu is not None,
        elu=elu,
    )


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
    elu: bool = False,
) -> Tensor | None:
    """`torch.conv2d`, and 2x2 max-pooling and ReLU after it, by our kernels; None where those do not suit.

    `elu` as for `own_convolve`.
    """
    dtype = computed_in(input)
    size = weight.shape[2] if weight.ndim == 4 else 0
    kernel_size = odd(size) if padding == "same" else size
    rows, columns = _both(_in_pixels(padding, kernel_size))
    if (
        [*_both(stride), *_both(dilation), groups, rows] != [1, 1, 1, 1, 1, columns]
        or not _suits(input, weight, bias)
        or (kernels := suited(dtype, kernel_size, input.shape, weight.shape, rows, pooled)) is None
    ):
        return None
    input = input.to(dtype)
    shape = geometry(
        kernels, input.shape, weight.shape, weight.stride(), rows, pooled, relu, elu, torch.get_num_threads()
    )
    return _Convolution.apply(input, weight, bias, shape)


def _suits(images: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    last = torch.channels_last
    return (
        images.ndim == 4
        and (images.shape[1] % GROUP == 0 or not images.requires_grad)
        and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
        and (torch.is_autocast_enabled("cpu") or _are_of(images.dtype, weight, bias))
        and images.is_contiguous(memory_format=last)
        and (weight.is_contiguous(memory_format=last) or weight.is_contiguous())
    )


def _both(value: Any) -> tuple[Any, ...]:
    if isinstance(value, int):
        return value, value
    return tuple(value) * 2 if len(value) == 1 else tuple(value)


def _in_pixels(padding: Any, kernel_size: int) -> Any:
    """A padding by name, in pixels on each side; less than 0 for a name that there is not."""
    return {"same": kernel_size // 2, "valid": 0}.get(padding, -1) if isinstance(padding, str) else padding


def _are_of(dtype: torch.dtype, *tensors: Tensor | None) -> bool:
    return all(tensor is None or tensor.dtype == dtype for tensor in tensors)


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
        shape: Geometry,
    ) -> Tensor:
        output = empty(shape.outputs, images.dtype)
        marks = empty(shape.outputs, torch.uint8) if shape.marked else None
        trained = any(ctx.needs_input_grad[1:3])
        ctx.save_for_backward(images if trained else None, weight, marks)
        ctx.geometry, ctx.bias_dtype = shape, None if bias is None else bias.dtype
        # Under autocast, as PyTorch's convolution is: of weights in bfloat16.
        rounded = weight.to(images.dtype).float()
        bias = None if bias is None else bias.float()
        task, _memory = shape.forward.begin()
        task.x.values, task.weight = images.data_ptr(), rounded.data_ptr()
        task.y.values, task.y.marks, task.bias = output.data_ptr(), address(marks), address(bias)
        library(shape.kernels.name).convolve(task)  # type: ignore[union-attr]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wants_images, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        images, weight, marks = ctx.saved_tensors  # once: `images` may be computed again
        of_images = of_weight = of_bias = None
        if wants_images and not (wants_weight or wants_bias):
            of_images, task, _memory = _images_gradient(ctx.geometry, weight, marks, gradient)
            library(ctx.geometry.kernels.name).convolve(task)  # type: ignore[union-attr]
        elif wants_weight or wants_bias:
            of_images, of_weight, of_bias = _gradients(
                ctx.geometry, images, weight, marks, gradient, with_images=wants_images
            )
            of_bias = of_bias.to(ctx.bias_dtype) if wants_bias else None
        return of_images, of_weight, of_bias, None


def _images_gradient(
    shape: Geometry, weight: Tensor, marks: Tensor | None, gradient: Tensor
) -> tuple[Tensor, Any, Any]:
    """The tensor that the task will write, the task, and what has to be kept until it is done."""
    of_images, weight = empty(shape.images, shape.kernels.dtype), weight.float()
    task, memory = shape.images_gradient.begin()
    task.x.values, task.x.marks, task.y.values = gradient.data_ptr(), address(marks), of_images.data_ptr()
    task.weight = weight.data_ptr() + shape.last_tap
    return of_images, task, (memory, weight)


def _gradients(
    shape: Geometry,
    images: Tensor,
    weight: Tensor,
    marks: Tensor | None,
    gradient: Tensor,
    *,
    with_images: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Of images, weight and bias (float32)."""
    of_weight = torch.empty_like(weight, dtype=torch.float32)
    of_bias = torch.empty(len(weight), dtype=torch.float32, device="cpu")
    task, _memory = shape.weight_gradient.begin()
    task.x.values, task.weight, task.bias = images.data_ptr(), of_weight.data_ptr(), of_bias.data_ptr()
    task.y.values, task.y.marks = gradient.data_ptr(), address(marks)
    of_images = beside = _kept = None
    if with_images:
        of_images, beside, _kept = _images_gradient(shape, weight, marks, gradient)
    library(shape.kernels.name).gradients(task, beside)  # type: ignore[union-attr]
    return of_images, of_weight.to(weight.dtype), of_bias


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
