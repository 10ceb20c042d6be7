"""Grad-CAM: where in a picture the evidence for a class lies, as far as the last convolution can tell.

Source: Selvaraju and others, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
arXiv 1610.02391, section 3, equations 1 and 2.
"""

from typing import Any

import torch
from torch import Tensor, nn

BATCH = 64


def last_convolution(model: nn.Module) -> nn.Conv2d | None:
    """The convolution nearest to the answer; None in a network that has none."""
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    return convolutions[-1] if convolutions else None


def grad_cam(model: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    """Maps float32 (N, h, w), 0..1: how much each place speaks for the class asked about, 1 where it does most.

    A map of zeros says that no place speaks for that class. The feature maps are the last convolution's output, before
    its activation: most of our networks pool before they activate, and rectified maps of that resolution do not exist.

    Args:
        model: float (N, C, H, W) -> logits (N, classes), in evaluation mode, with a convolution.
        inputs: prepared pictures (N, C, H, W).
        classes: int64 (N,), the class asked about for each picture.
    """
    layer = last_convolution(model)
    assert layer is not None, "a network without convolutions has no Grad-CAM"
    assert not model.training
    parts = zip(inputs.split(BATCH), classes.split(BATCH), strict=True)
    return torch.cat([_maps(model, layer, batch, asked) for batch, asked in parts])


def _maps(model: nn.Module, layer: nn.Conv2d, inputs: Tensor, classes: Tensor) -> Tensor:
    captured: list[Tensor] = []

    def capture(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # from here on: nothing of the layers before it is kept
        captured.append(output.detach().requires_grad_())
        return captured[0].clone()  # an activation may write over what it is given

    handle = layer.register_forward_hook(capture)
    try:
        with torch.no_grad():
            scores = model(inputs).gather(1, classes[:, None]).sum()  # pictures do not mix in evaluation mode
            (gradients,) = torch.autograd.grad(scores, captured)
    finally:
        handle.remove()
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    maps = torch.relu((weights * captured[0].detach()).sum(dim=1))
    largest = maps.amax(dim=(1, 2), keepdim=True)
    return (maps / largest.where(largest > 0, torch.ones_like(largest))).float()
