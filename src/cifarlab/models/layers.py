"""Layers and initial values with the semantics of Keras, which the published systems were written in."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from cifarlab.kernels import (
    convolve,
    convolve_and_normalise,
    dense,
    drop_and_pool,
    dropout,
    is_pool_of_four,
    normalise,
    run_operations,
)


class Flatten(nn.Module):
    """(N, C, H, W) -> (N, H * W * C): Keras flattens height, width, channels in that order.

    A view, without a copy, for tensors in channels-last memory format.
    """

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).flatten(1)


class Dropout(nn.Module):
    """Zeroes each value with probability `rate` in training, and divides the others by 1 - rate.

    On the CPU by our own function, many times faster than PyTorch's, which draws the values one by one. It is seeded
    from torch's global generator.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def extra_repr(self) -> str:
        return f"rate={self.rate}"

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return values
        if values.device.type != "cpu":
            return nn.functional.dropout(values, self.rate)
        return dropout(values, self.rate)


class LayerSequence(nn.Sequential):
    """nn.Sequential, with what our kernels do as one operation: a convolution, the 2x2 pool and the ReLU after it, or
    ELU and batch norm; a dense layer and the ReLU after it; batch norm or dropout and the 2x2 pool after it."""

    def forward(self, input: Tensor) -> Tensor:
        return run_operations(input, list(_operations(list(self))))


def _operations(layers: list[nn.Module]) -> Iterator[tuple[Any, ...]]:
    """Functions of the input, each with the arguments after it."""
    while layers:
        layer = layers.pop(0)
        if type(layer) in (nn.Conv2d, SameConv2d) and _begin_with_elu_and_norm(layers):
            elu, norm = layers.pop(0), layers.pop(0)
            yield convolve_and_normalise, layer, elu, norm, _pool_taken(layers)
        elif type(layer) in (nn.Conv2d, SameConv2d):
            yield convolve, layer, _pool_taken(layers), _relu_taken(layers)
        elif type(layer) is nn.Linear:
            yield dense, layer, _relu_taken(layers)
        elif isinstance(layer, nn.BatchNorm2d):
            yield normalise, layer, _pool_taken(layers)
        elif type(layer) is Dropout and layers and is_pool_of_four(layers[0]):
            yield drop_and_pool, layer, layers.pop(0)
        else:
            yield (layer,)


def _begin_with_elu_and_norm(layers: list[nn.Module]) -> bool:
    return len(layers) > 1 and type(layers[0]) is nn.ELU and isinstance(layers[1], nn.BatchNorm2d)


def _pool_taken(layers: list[nn.Module]) -> nn.MaxPool2d | None:
    """The 2x2 pool that `layers` begin with, and no longer do."""
    return layers.pop(0) if layers and is_pool_of_four(layers[0]) else None  # type: ignore[return-value]


def _relu_taken(layers: list[nn.Module]) -> nn.ReLU | None:
    return layers.pop(0) if layers and type(layers[0]) is nn.ReLU else None  # type: ignore[return-value]


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's `same` padding: an odd row or column goes to the bottom and the right."""

    def __init__(self, channels: int, filters: int, kernel_size: int, stride: int) -> None:
        super().__init__(channels, filters, kernel_size, stride)
        self.padding = "same"  # which PyTorch takes with a stride of 1 alone, and not without a warning

    def forward(self, input: Tensor) -> Tensor:
        padding = []
        for size, kernel, stride in zip(
            reversed(input.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True
        ):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [missing // 2, missing - missing // 2]
        return nn.functional.conv2d(nn.functional.pad(input, padding), self.weight, self.bias, self.stride)


def keras_convolution(
    channels: int, filters: int, kernel_size: int, *, padding: str, stride: int = 1
) -> nn.Conv2d:
    """`padding` is TensorFlow's `same` or `valid`."""
    if padding == "valid":
        return nn.Conv2d(channels, filters, kernel_size, stride=stride)
    if stride == 1 and kernel_size % 2 == 1:  # as much on every side
        return nn.Conv2d(channels, filters, kernel_size, padding=kernel_size // 2)
    return SameConv2d(channels, filters, kernel_size, stride)


class _BiasedVariance(nn.modules.batchnorm._BatchNorm):
    """The running variance takes the batch's own variance, not n/(n-1) of it."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_var is not None and self.momentum is not None
        kept = (1.0 - self.momentum) * self.running_var
        output = super().forward(input)
        n = input.numel() // input.shape[1]
        self.running_var = kept.lerp(self.running_var, (n - 1) / n)
        return output


class BiasedBatchNorm1d(_BiasedVariance, nn.BatchNorm1d):
    pass


class BiasedBatchNorm2d(_BiasedVariance, nn.BatchNorm2d):
    pass


def keras_batch_norm(channels: int, *, dimensions: int, variance: str = "unbiased") -> nn.Module:
    """Keras's momentum of 0.99 is PyTorch's 0.01; its epsilon is 1e-3.

    The running variance takes n/(n-1) of the batch's (`unbiased`), as in Keras 2, or the batch's own (`biased`), as in
    Keras 3.
    """
    if variance == "biased":
        kind = BiasedBatchNorm2d if dimensions == 4 else BiasedBatchNorm1d
    else:
        kind = nn.BatchNorm2d if dimensions == 4 else nn.BatchNorm1d
    return kind(channels, momentum=0.01, eps=1e-3)


def keras_initialise(layer: nn.Conv2d | nn.Linear, *, kind: str) -> None:
    """`he_uniform` (limit sqrt(6 / fan_in)) or `glorot_uniform` (sqrt(6 / (fan_in + fan_out))) kernels, zero biases."""
    if kind == "he_uniform":
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    else:
        assert kind == "glorot_uniform", kind
        nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
