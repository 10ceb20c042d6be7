"""Test-time augmentation: the mean answer over views of a picture: itself, its mirror image, copies moved by a pixel.

Source of the rules and their weights: K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498),
and its code, cifar10-airbench: half the weight is on the picture and its mirror image, half on both moved.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cifarlab.data.augment import shift_pixels
from cifarlab.data.loader import Images
from cifarlab.preparation import Preparation
from cifarlab.training import predict_logits

Rule = Literal["none", "mirror", "mirror-shift"]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class View:
    """A copy of a picture: moved down and right by `step` pixels, its edges reflected, then mirrored left to right."""

    mirrored: bool = False
    step: int = 0

    def of(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> the same of the copies."""
        pixels = images.permute(0, 2, 3, 1)
        if self.step:
            pixels = shift_pixels(pixels, self.step, self.step, edges="reflected")
        if self.mirrored:
            pixels = pixels.flip(2)
        return pixels.permute(0, 3, 1, 2)


# Each rule's views begin with those of the rule before it, and the first is the picture as it is.
UNMOVED = (View(), View(mirrored=True))
MOVED = (View(step=-1), View(mirrored=True, step=-1), View(step=1), View(mirrored=True, step=1))
RULES: dict[Rule, dict[View, float]] = {
    "none": {View(): 1.0},
    "mirror": dict.fromkeys(UNMOVED, 0.5),
    "mirror-shift": dict.fromkeys(UNMOVED, 0.25) | dict.fromkeys(MOVED, 0.125),
}
IN_WORDS: dict[Rule, str] = {
    "none": "as it is",
    "mirror": "with its mirror image",
    "mirror-shift": "with both moved by one pixel too",
}


def view_logits(
    model: nn.Module,
    preparation: Preparation,
    images: Images,
    rule: Rule,
    progress: Progress | None = None,
) -> Tensor:
    """float32 (views, N, classes) for uint8 (N, H, W, 3): the answer to each of the rule's views, in their order.

    `progress` is called with the number of pictures each time so many were looked at.
    """
    answers = []
    for view in RULES[rule]:
        answers.append(predict_logits(model, lambda batch, view=view: preparation(view.of(batch)), images))
        if progress is not None:
            progress(len(images))
    return torch.stack(answers).float()


def averaged(logits: Tensor, rule: Rule) -> Tensor:
    """(N, classes): the mean of the answers (views, N, classes) to the rule's views, by their weights."""
    weights = torch.tensor(list(RULES[rule].values()), dtype=logits.dtype, device=logits.device)
    return torch.einsum("v,vnc->nc", weights, logits[: len(weights)])


@dataclass(frozen=True, eq=False)
class Averaged:
    """Of the mean over `views` copies: bool (N,), whether each picture's answer is right."""

    name: str
    views: int
    right: np.ndarray


def measure_tta(
    model: nn.Module,
    preparation: Preparation,
    images: np.ndarray,
    labels: np.ndarray,
    progress: Progress | None = None,
) -> tuple[Averaged, ...]:
    """Each of `RULES`, the first of them without augmentation, on uint8 (N, H, W, 3) with labels int (N,)."""
    device = next(model.parameters()).device
    pictures = torch.from_numpy(images).to(device)
    logits = view_logits(model, preparation, pictures, "mirror-shift", progress).double().cpu()
    return tuple(
        Averaged(IN_WORDS[rule], len(views), averaged(logits, rule).argmax(1).numpy() == labels)
        for rule, views in RULES.items()
    )
