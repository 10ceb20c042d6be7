"""The networks of cifar10-airbench (K. Jordan, arXiv 2404.00498): see `cifarlab.models.specs.Airbench`."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cifarlab.errors import UserError
from cifarlab.kernels import convolve, normalise, run_operations, whiten
from cifarlab.models.specs import Airbench

WHITENED_PICTURES = 5_000  # that the whitening layer is computed from
WHITENING_EPSILON = 5e-4  # added to the eigenvalues
BATCH_NORM_MOMENTUM = 0.6  # of the running statistics, in Keras's sense


class Whitening(nn.Module):
    """Patches of pixels -> their principal components at unit variance, and the negatives of those.

    The kernels are computed from training pictures by `fit` and never trained; the bias is.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        patch = channels * kernel_size**2
        self.register_buffer("weight", torch.zeros(2 * patch, channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(
            torch.empty(2 * patch).uniform_(-(patch**-0.5), patch**-0.5)
        )  # as in nn.Conv2d

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.conv2d(images, self.weight, self.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """From prepared pictures, float (N, C, H, W): eigenvectors of the patches' second moments over the square root
        of eigenvalue + 5e-4."""
        weight = self.get_buffer("weight")
        side = weight.shape[-1]
        patches = images.double().unfold(2, side, 1).unfold(3, side, 1)  # (N, C, H', W', side, side)
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, weight[0].numel())
        eigenvalues, eigenvectors = torch.linalg.eigh(flat.T @ flat / len(flat))
        scaled = (eigenvectors / (eigenvalues + WHITENING_EPSILON).sqrt()).T.reshape(-1, *weight.shape[1:])
        weight.copy_(torch.cat([scaled, -scaled]))


class BiasBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with a trained bias and no scale."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-12, momentum=1 - BATCH_NORM_MOMENTUM)
        del self.weight
        self.register_parameter("weight", None)

    def reset_parameters(
        self,
    ) -> None:  # of the base, which expects a scale; called before it is gone as well
        self.reset_running_stats()
        nn.init.zeros_(self.bias)


class Group(nn.Module):
    """Convolution, pool, more convolutions, batch norm and GELU after each; with three, a residual round the last."""

    def __init__(self, channels: int, filters: int, convolutions: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.convs = nn.ModuleList(
            _dirac_convolution(filters if index else channels, filters) for index in range(convolutions)
        )
        self.norms = nn.ModuleList(BiasBatchNorm2d(filters) for _ in range(convolutions))
        self.activation = nn.GELU()

    def operations(self) -> Iterator[tuple[Any, ...]]:
        yield convolve, self.convs[0], self.pool
        yield normalise, self.norms[0], None, self.activation
        yield convolve, self.convs[1]
        yield normalise, self.norms[1], None, self.activation
        if len(self.convs) == 3:
            yield (self._third,)

    def _third(self, values: Tensor) -> Tensor:
        return self.activation(self.norms[2](self.convs[2](values)) + values)


class AirbenchNet(nn.Module):
    def __init__(self, spec: Airbench, channels: int, classes: int) -> None:
        super().__init__()
        self.whiten = Whitening(channels, spec.whitening_kernel)
        self.whiten_activation = nn.GELU()
        self.whitening_bias_epochs = spec.whitening_bias_epochs
        width = len(self.whiten.bias)
        self.groups = nn.ModuleList()
        for filters in spec.widths:
            self.groups.append(Group(width, filters, spec.convolutions))
            width = filters
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(width, classes, bias=False)
        with torch.no_grad():
            self.head.weight /= self.head.weight.std()

    def forward(self, images: Tensor) -> Tensor:
        operations: list[tuple[Any, ...]] = [(whiten, self.whiten, self.whiten_activation)]
        for group in self.groups:
            operations += group.operations()  # type: ignore[operator]
        values = run_operations(images, operations)
        features = self.pool(values).flatten(1)
        return self.head(features) / features.shape[1]


def fit_whitening(model: nn.Module, images: Callable[[], Tensor]) -> None:
    """Compute the whitening layer, where `model` has one, from prepared training pictures, float (N, C, H, W)."""
    if isinstance(model, AirbenchNet):
        model.whiten.fit(images())


def freeze_whitening_bias(model: nn.Module, epoch: int) -> None:
    """Train the whitening layer's bias, where `model` has one, in its first epochs alone: the rest then costs less."""
    if isinstance(model, AirbenchNet) and epoch >= model.whitening_bias_epochs:
        model.whiten.bias.requires_grad_(False)


def build_airbench(spec: Airbench, classes: int, input_shape: tuple[int, int, int]) -> AirbenchNet:
    """A network from float32 (N, C, H, W) pictures to (N, classes) logits. Its first layer waits for `Whitening.fit`.

    Raises:
        UserError: when pictures of `input_shape` are too small.
    """
    channels, height, width = input_shape
    smallest = spec.whitening_kernel - 1 + 2 ** len(spec.widths)
    if min(height, width) < smallest:
        raise UserError(
            f"airbench with {len(spec.widths)} groups needs at least {smallest}x{smallest} pixels,"
            f" {height}x{width} given: give model.widths fewer groups"
        )
    return AirbenchNet(spec, channels, classes)


def _dirac_convolution(channels: int, filters: int) -> nn.Conv2d:
    """The first filters pass the channels on as they are (section 3.3 of the paper); the others are PyTorch's usual."""
    convolution = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[:channels])
    return convolution
