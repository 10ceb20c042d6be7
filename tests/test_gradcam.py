import numpy as np
import pytest
import torch
from torch import nn

from cifarlab.gradcam import grad_cam, last_convolution
from cifarlab.models import build_model
from cifarlab.models.specs import MLP, VGG, AlexNet

NETWORKS = [
    VGG(widths=(4, 6), dense=8),
    VGG(widths=(4, 6), dense=None, batch_norm=True, activation="elu", pool_dropout=(0.2, 0.2)),
    VGG(widths=(4,), dense=8, padding="valid", convolutions=1),
    AlexNet(dense=8),
]


def by_the_chain_rule(layers: list[nn.Module], picture: torch.Tensor, asked: int) -> np.ndarray:
    """Equations 1 and 2 for one picture: the network cut at its last convolution, gradients by finite differences."""
    last = max(place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        maps = nn.Sequential(*layers[: last + 1])(picture[None])
        rest = nn.Sequential(*layers[last + 1 :])

        def score(changed: torch.Tensor) -> float:
            return rest(changed.clone())[0, asked].item()

        heat = np.zeros(maps.shape[2:])
        for channel in range(maps.shape[1]):
            gradients = []
            for place in range(maps[0, channel].numel()):
                step = torch.zeros_like(maps)
                step[0, channel].view(-1)[place] = 1e-6
                gradients.append((score(maps + step) - score(maps - step)) / 2e-6)
            heat += np.mean(gradients) * maps[0, channel].numpy()
    heat = np.maximum(heat, 0)
    return heat / heat.max() if heat.max() > 0 else heat


@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
def test_the_same_as_finite_differences_without_hooks_or_autograd(spec) -> None:
    torch.manual_seed(0)
    side = 28 if spec.name == "alexnet" else 8
    model = build_model(spec, 3, (3, side, side)).double()
    for layer in model.modules():  # so that batch norm is not the identity
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 2)
    inputs = torch.randn(2, 3, side, side, dtype=torch.float64)
    asked = torch.tensor([2, 0])
    found = grad_cam(model.eval(), inputs, asked).numpy()
    for heat, picture, index in zip(found, inputs, asked, strict=True):
        expected = by_the_chain_rule(list(model), picture, int(index))
        assert heat == pytest.approx(expected, abs=1e-4)
    assert found.max() == 1.0


def test_weights_that_need_no_gradient_and_inference_mode_do_not_matter() -> None:
    torch.manual_seed(1)
    model = build_model(NETWORKS[0], 3, (3, 8, 8)).eval()
    inputs, asked = torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2])
    before = model(inputs)
    free = grad_cam(model, inputs, asked)
    with torch.no_grad():
        assert torch.equal(grad_cam(model.requires_grad_(False), inputs, asked), free)
    assert torch.equal(model(inputs), before)  # nothing is left hooked


def test_a_network_without_convolutions_has_none() -> None:
    assert last_convolution(build_model(MLP(widths=(4,)), 3, (3, 8, 8))) is None
