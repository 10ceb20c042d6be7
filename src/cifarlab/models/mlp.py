"""Dense layers alone: see `cifarlab.models.specs.MLP`."""

from collections import OrderedDict

from torch import nn

from cifarlab.models.layers import Dropout, Flatten, LayerSequence, keras_initialise
from cifarlab.models.specs import MLP


def build_mlp(spec: MLP, classes: int, input_shape: tuple[int, int, int]) -> nn.Sequential:
    """A network from float32 (N, C, H, W) pictures to (N, classes) logits; `glorot_uniform` kernels."""
    channels, height, width = input_shape
    features = channels * height * width
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=Flatten())
    for index, units in enumerate(spec.widths, start=1):
        layers[f"dense{index}"] = nn.Linear(features, units)
        layers[f"dense{index}_relu"] = nn.ReLU(inplace=True)
        if spec.dropout > 0.0:
            layers[f"dense{index}_dropout"] = Dropout(spec.dropout)
        features = units
    layers["output"] = nn.Linear(features, classes)
    for layer in layers.values():
        if isinstance(layer, nn.Linear):
            keras_initialise(layer, kind="glorot_uniform")
    return LayerSequence(layers)
