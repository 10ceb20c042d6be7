"""The VGG-like networks of T1: see `cifarlab.models.specs.VGG`."""

from collections import OrderedDict

from torch import nn

from cifarlab.models.layers import Dropout, Flatten, keras_batch_norm, keras_initialise
from cifarlab.models.specs import VGG

BLOCK_CONVOLUTIONS = 2


def build_vgg(spec: VGG, classes: int, input_shape: tuple[int, int, int]) -> nn.Sequential:
    """A network from float32 (N, C, H, W) pictures to (N, classes) logits.

    Initial values are drawn from torch's global generator: `he_uniform` before a ReLU, `glorot_uniform` for the output.
    """
    channels, height, width = input_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block, filters in enumerate(spec.widths, start=1):
        for index in range(1, BLOCK_CONVOLUTIONS + 1):
            name = f"block{block}_conv{index}"
            layers[name] = nn.Conv2d(channels, filters, 3, padding=1)
            if spec.batch_norm:
                layers[f"{name}_relu"] = nn.ReLU(inplace=True)
                layers[f"{name}_bn"] = keras_batch_norm(filters, dimensions=4)
            elif index < BLOCK_CONVOLUTIONS:
                layers[f"{name}_relu"] = nn.ReLU(inplace=True)
            channels = filters
        layers[f"block{block}_pool"] = nn.MaxPool2d(2)
        if not spec.batch_norm:
            # The largest of four, then ReLU: the same function as ReLU first, for a quarter of the work.
            layers[f"block{block}_conv{BLOCK_CONVOLUTIONS}_relu"] = nn.ReLU(inplace=True)
        if spec.pool_dropout and spec.pool_dropout[block - 1] > 0.0:
            layers[f"block{block}_dropout"] = Dropout(spec.pool_dropout[block - 1])
        height, width = height // 2, width // 2
    layers["flatten"] = Flatten()
    layers["dense"] = nn.Linear(height * width * channels, spec.dense)
    layers["dense_relu"] = nn.ReLU(inplace=True)
    if spec.batch_norm:
        layers["dense_bn"] = keras_batch_norm(spec.dense, dimensions=2)
    if spec.dense_dropout > 0.0:
        layers["dense_dropout"] = Dropout(spec.dense_dropout)
    layers["output"] = nn.Linear(spec.dense, classes)
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            keras_initialise(layer, kind="glorot_uniform" if name == "output" else "he_uniform")
    return nn.Sequential(layers)
