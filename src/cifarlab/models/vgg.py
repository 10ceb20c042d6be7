"""Plain convolutional networks, most of the published ones: see `cifarlab.models.specs.VGG`."""

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
from cifarlab.models.specs import VGG

Layers = OrderedDict[str, nn.Module]


def build_vgg(spec: VGG, classes: int, input_shape: tuple[int, int, int]) -> nn.Sequential:
    """A network from float32 (N, C, H, W) pictures to (N, classes) logits.

    Initial values are drawn from torch's global generator: `spec.initializer`, `glorot_uniform` for the output.

    Raises:
        UserError: when pictures of `input_shape` are too small for the blocks.
    """
    channels, height, width = input_shape
    layers: Layers = OrderedDict()
    for block, filters in enumerate(spec.widths, start=1):
        _add_block(layers, spec, block, channels, filters)
        height, width = _side_after(spec, height), _side_after(spec, width)
        channels = filters
    if min(height, width) < 1:
        raise _too_small(spec, input_shape)
    layers["flatten"] = Flatten()
    features = height * width * channels
    if spec.dense is not None:
        layers["dense"] = nn.Linear(features, spec.dense)
        layers[f"dense_{spec.activation}"] = _activation(spec)
        if _norm_after(spec, spec.dense_dropout):
            layers["dense_bn"] = keras_batch_norm(spec.dense, dimensions=2, variance=spec.batch_norm_variance)
        if spec.dense_dropout > 0.0:
            layers["dense_dropout"] = Dropout(spec.dense_dropout)
        features = spec.dense
    layers["output"] = nn.Linear(features, classes)
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            keras_initialise(layer, kind="glorot_uniform" if name == "output" else spec.initializer)
    return LayerSequence(layers)


def _add_block(layers: Layers, spec: VGG, block: int, channels: int, filters: int) -> None:
    dropout = spec.pool_dropout[block - 1] if spec.pool_dropout else 0.0
    before_pool = dropout if spec.dropout_place == "before-pool" else 0.0
    norms_every = spec.batch_norm and spec.batch_norm_place == "activations"
    norm_of_block = _norm_after(spec, dropout) and not norms_every
    # The largest of four, then the activation: the same function as the activation first, for a quarter of the work.
    activation_last = not (
        norms_every or before_pool or (norm_of_block and spec.dropout_place == "before-pool")
    )
    for index in range(1, spec.convolutions + 1):
        name = f"block{block}_conv{index}"
        layers[name] = keras_convolution(channels, filters, spec.kernel_size, padding=spec.padding)
        channels = filters
        if index < spec.convolutions or not activation_last:
            layers[f"{name}_{spec.activation}"] = _activation(spec)
        if norms_every:
            layers[f"{name}_bn"] = keras_batch_norm(filters, dimensions=4, variance=spec.batch_norm_variance)
    norm = (
        {f"block{block}_bn": keras_batch_norm(filters, dimensions=4, variance=spec.batch_norm_variance)}
        if norm_of_block
        else {}
    )
    drop = {f"block{block}_dropout": Dropout(dropout)} if dropout > 0.0 else {}
    pool: dict[str, nn.Module] = {f"block{block}_pool": nn.MaxPool2d(2)}
    if activation_last:
        pool[f"block{block}_conv{spec.convolutions}_{spec.activation}"] = _activation(spec)
    in_order = (norm, drop, pool) if spec.dropout_place == "before-pool" else (pool, norm, drop)
    for part in in_order:
        layers.update(part)


def _norm_after(spec: VGG, dropout: float) -> bool:
    """Whether batch norm follows an activation whose dropout rate is `dropout`."""
    return spec.batch_norm and (spec.batch_norm_place == "activations" or dropout > 0.0)


def _activation(spec: VGG) -> nn.Module:
    return nn.ReLU(inplace=True) if spec.activation == "relu" else nn.ELU(inplace=True)


def _side_after(spec: VGG, side: int) -> int:
    """Pixels a side after one more block."""
    lost = 0 if spec.padding == "same" else spec.convolutions * (spec.kernel_size - 1)
    return max(side - lost, 0) // 2


def _too_small(spec: VGG, input_shape: tuple[int, int, int]) -> UserError:
    smallest = 1
    for _ in spec.widths:
        smallest = 2 * smallest + (
            0 if spec.padding == "same" else spec.convolutions * (spec.kernel_size - 1)
        )
    blocks = len(spec.widths)
    return UserError(
        f"{blocks} blocks halve the picture {blocks} times and need at least {smallest}x{smallest} pixels,"
        f" {input_shape[1]}x{input_shape[2]} given: give model.widths fewer blocks"
    )
