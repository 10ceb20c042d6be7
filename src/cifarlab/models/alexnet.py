"""T4's small AlexNet: see `cifarlab.models.specs.AlexNet`."""

from collections import OrderedDict

from torch import nn

from cifarlab.errors import UserError
from cifarlab.models.layers import (
    Dropout,
    Flatten,
    LayerSequence,
    keras_batch_norm,
    keras_convolution,
    keras_initialise,
)
from cifarlab.models.specs import AlexNet

SMALLEST_SIDE = 27  # pixels: fewer leave nothing after the third pool


def build_alexnet(spec: AlexNet, classes: int, input_shape: tuple[int, int, int]) -> nn.Sequential:
    """A network from float32 (N, C, H, W) pictures to (N, classes) logits; `glorot_uniform` kernels.

    Raises:
        UserError: when pictures of `input_shape` are too small.
    """
    channels, height, width = input_shape
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"alexnet needs at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, {height}x{width} given:"
            " take another model.name"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    # ReLU stands after the pool, which gives the same values for a quarter of the work.
    layers["conv1"] = keras_convolution(channels, 96, 3, padding="same", stride=2)
    layers["conv1_pool"] = nn.MaxPool2d(2)
    layers["conv1_relu"] = nn.ReLU(inplace=True)
    layers["conv1_bn"] = keras_batch_norm(96, dimensions=4, variance=spec.batch_norm_variance)
    layers["conv2"] = keras_convolution(96, 256, 5, padding="same")
    layers["conv2_pool"] = nn.MaxPool2d(3, stride=2)
    layers["conv2_relu"] = nn.ReLU(inplace=True)
    layers["conv2_bn"] = keras_batch_norm(256, dimensions=4, variance=spec.batch_norm_variance)
    layers["conv3"] = keras_convolution(256, 384, 3, padding="same")
    layers["conv3_relu"] = nn.ReLU(inplace=True)
    layers["conv4"] = keras_convolution(384, 384, 3, padding="same")
    layers["conv4_relu"] = nn.ReLU(inplace=True)
    layers["conv5"] = keras_convolution(384, 256, 3, padding="same")
    layers["conv5_pool"] = nn.MaxPool2d(3, stride=2)
    layers["conv5_relu"] = nn.ReLU(inplace=True)
    layers["conv5_bn"] = keras_batch_norm(256, dimensions=4, variance=spec.batch_norm_variance)
    layers["flatten"] = Flatten()
    features = 256 * _side_after(height) * _side_after(width)
    for index in (1, 2):
        layers[f"dense{index}"] = nn.Linear(features, spec.dense)
        layers[f"dense{index}_relu"] = nn.ReLU(inplace=True)
        if spec.dense_dropout > 0.0:
            layers[f"dense{index}_dropout"] = Dropout(spec.dense_dropout)
        features = spec.dense
    layers["output"] = nn.Linear(features, classes)
    for layer in layers.values():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            keras_initialise(layer, kind="glorot_uniform")
    return LayerSequence(layers)


def _side_after(side: int) -> int:
    """Pixels a side after the stride of 2 and the three pools."""
    halved = -(-side // 2) // 2
    return ((halved - 3) // 2 + 1 - 3) // 2 + 1
