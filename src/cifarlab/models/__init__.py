"""Networks by family, in one explicit table. The settings of each family are in `specs`, which is free of torch."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cifarlab.errors import UserError
from cifarlab.models.specs import ModelSpec

if TYPE_CHECKING:
    from torch import nn

MOST_PARAMETERS = 100_000_000
InputShape = tuple[int, int, int]


def build_model(spec: ModelSpec, classes: int, input_shape: InputShape = (3, 32, 32)) -> "nn.Module":
    """The network of `spec`: float32 (N, C, H, W) -> logits (N, classes), initial values from torch's global generator.

    Raises:
        UserError: when pictures of `input_shape` (C, H, W) are too small for it.
    """
    return _families()[spec.name](spec, classes, input_shape)


def check_parameters(spec: ModelSpec, classes: int, input_shape: InputShape) -> None:
    """Raises UserError where pictures of `input_shape` make the network too large, before memory is taken for it."""
    import torch

    with torch.device("meta"):
        model = build_model(spec, classes, input_shape)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > MOST_PARAMETERS:
        raise UserError(
            f"{spec.name} on pictures of {input_shape[1]}x{input_shape[2]} pixels would have {parameters:,} parameters,"
            f" more than {MOST_PARAMETERS:,}: set input.size lower, or take a network that pools over the picture, such"
            " as airbench94's"
        )


def _families() -> dict[str, Callable[[Any, int, InputShape], "nn.Module"]]:
    from cifarlab.models.airbench import build_airbench
    from cifarlab.models.alexnet import build_alexnet
    from cifarlab.models.mlp import build_mlp
    from cifarlab.models.resnet import build_resnet
    from cifarlab.models.vgg import build_vgg
    from cifarlab.models.vgg16 import build_vgg16

    return {
        "airbench": build_airbench,
        "alexnet": build_alexnet,
        "mlp": build_mlp,
        "resnet": build_resnet,
        "vgg": build_vgg,
        "vgg16": build_vgg16,
    }


def describe_model(model: "nn.Module", input_shape: InputShape = (3, 32, 32)) -> list[dict[str, Any]]:
    """One row for each layer that computes: {name, type, output_shape, parameters, multiply_adds}, for one picture.

    `output_shape` is without N; `multiply_adds` counts convolutions and dense layers, which are nearly all of them.
    """
    import torch
    from torch import nn

    rows: list[dict[str, Any]] = []

    def record(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            rows.append(
                {
                    "name": name,
                    "type": type(layer).__name__,
                    "output_shape": list(output.shape[1:]),
                    "parameters": sum(parameter.numel() for parameter in layer.parameters()),
                    "multiply_adds": _multiply_adds(layer, output),
                }
            )

        return hook

    leaves = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(record(name)) for name, layer in leaves]
    training = model.training
    example = next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *input_shape, device=example.device, dtype=example.dtype))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return rows


def _multiply_adds(layer: "nn.Module", output: Any) -> int:
    from torch import nn

    from cifarlab.models.airbench import Whitening

    if isinstance(layer, Whitening):
        return layer.get_buffer("weight")[0].numel() * output[0].numel()
    if isinstance(layer, nn.Conv2d):
        return layer.weight[0].numel() * output[0].numel()
    if isinstance(layer, nn.Linear):
        return layer.weight.numel()
    return 0
