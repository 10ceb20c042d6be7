"""VGG16's convolutional base with a small head: see `cifarlab.models.specs.VGG16`."""

from collections import OrderedDict

from torch import Tensor, nn

from cifarlab.errors import UserError
from cifarlab.models.layers import Dropout, Flatten, LayerSequence, keras_initialise
from cifarlab.models.specs import VGG16

BLOCKS = (
    (64, 2),
    (128, 2),
    (256, 3),
    (512, 3),
    (512, 3),
)  # filters, convolutions: table 1 of the paper, column D
SMALLEST_SIDE = 32  # pixels: five pools leave one


class Upsample(nn.Module):
    """(N, C, H, W) -> (N, C, size, size), bilinearly, pixel centres aligned as in `tf.image.resize`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def extra_repr(self) -> str:
        return f"size={self.size}"

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)


def build_vgg16(spec: VGG16, classes: int, input_shape: tuple[int, int, int]) -> nn.Sequential:
    """A network from float32 (N, 3, H, W) pictures to (N, classes) logits, `glorot_uniform` kernels.

    The weights that `spec.weights` names are not in it yet: `cifarlab.pretrained` reads them where training begins.

    Raises:
        UserError: when pictures of `input_shape` are too small.
    """
    channels, height, width = input_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if spec.upsample is not None:
        layers["upsample"] = Upsample(spec.upsample)
        height = width = spec.upsample
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"vgg16 needs at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, {height}x{width} given:"
            f" set model.upsample to {SMALLEST_SIDE} or more"
        )
    for block, (filters, convolutions) in enumerate(BLOCKS, start=1):
        for index in range(1, convolutions + 1):
            layers[f"block{block}_conv{index}"] = nn.Conv2d(channels, filters, 3, padding=1)
            channels = filters
            if index < convolutions:
                layers[f"block{block}_conv{index}_relu"] = nn.ReLU(inplace=True)
        # ReLU stands after the pool, which gives the same values for a quarter of the work.
        layers[f"block{block}_pool"] = nn.MaxPool2d(2)
        layers[f"block{block}_conv{convolutions}_relu"] = nn.ReLU(inplace=True)
        height, width = height // 2, width // 2
    layers["flatten"] = Flatten()
    layers["dense"] = nn.Linear(height * width * channels, spec.dense)
    layers["dense_relu"] = nn.ReLU(inplace=True)
    if spec.dense_dropout > 0.0:
        layers["dense_dropout"] = Dropout(spec.dense_dropout)
    layers["output"] = nn.Linear(spec.dense, classes)
    for layer in layers.values():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            keras_initialise(layer, kind="glorot_uniform")
    return LayerSequence(layers)


def base_of(model: nn.Sequential) -> nn.Sequential:
    """The convolutional base alone, which shares its weights with `model`."""
    return nn.Sequential(
        OrderedDict((name, layer) for name, layer in model.named_children() if name.startswith("block"))
    )
