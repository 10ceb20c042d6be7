"""Layers and initial values with the semantics of Keras, which the published systems were written in."""

from torch import Tensor, nn


class Flatten(nn.Module):
    """(N, C, H, W) -> (N, H * W * C): Keras flattens height, width, channels in that order.

    A view, without a copy, for tensors in channels-last memory format.
    """

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).flatten(1)


def keras_batch_norm(channels: int, *, dimensions: int) -> nn.Module:
    """Keras's momentum 0.99 is PyTorch's 0.01; its epsilon is 1e-3. The running variance is n/(n-1) of the batch's, as in Keras 2."""
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




Dropout = nn.Dropout
