"""Residual networks for small pictures: see `cifarlab.models.specs.ResNet`."""

from torch import Tensor, nn

from cifarlab.errors import UserError
from cifarlab.models.specs import ResNet


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to what came in; a 1x1 convolution where the shapes differ."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters)
        self.activation = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != filters:
            projection = nn.Conv2d(channels, filters, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(filters))

    def forward(self, images: Tensor) -> Tensor:
        values = self.activation(self.norm1(self.conv1(images)))
        values = self.norm2(self.conv2(values))
        values += self.shortcut(images)
        return self.activation(values)


class ResidualNet(nn.Module):
    def __init__(self, spec: ResNet, channels: int, classes: int) -> None:
        super().__init__()
        width = spec.widths[0]
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.activation = nn.ReLU(inplace=True)
        self.stages = nn.ModuleList()
        for stage, (filters, blocks) in enumerate(zip(spec.widths, spec.blocks, strict=True)):
            strides = [2 if stage else 1] + [1] * (blocks - 1)
            inputs = [width] + [filters] * (blocks - 1)
            self.stages.append(
                nn.Sequential(*(BasicBlock(i, filters, s) for i, s in zip(inputs, strides, strict=True)))
            )
            width = filters
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        values = self.activation(self.norm(self.stem(images)))
        for stage in self.stages:
            values = stage(values)
        return self.head(self.pool(values).flatten(1))


def build_resnet(spec: ResNet, classes: int, input_shape: tuple[int, int, int]) -> ResidualNet:
    """A network from float32 (N, C, H, W) pictures to (N, classes) logits, with PyTorch's initial values.

    Raises:
        UserError: when pictures of `input_shape` are too small.
    """
    channels, height, width = input_shape
    smallest = 2 ** (len(spec.widths) - 1)
    if min(height, width) < smallest:
        raise UserError(
            f"resnet with {len(spec.widths)} stages needs at least {smallest}x{smallest} pixels, {height}x{width} given"
        )
    return ResidualNet(spec, channels, classes)
