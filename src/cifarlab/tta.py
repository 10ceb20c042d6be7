"""Test-time augmentation: the mean answer over a picture, its mirror image and copies moved by one pixel.

Source of averaging over shifted and mirrored copies: Krizhevsky, Sutskever and Hinton, "ImageNet Classification with
Deep Convolutional Neural Networks" (2012), section 4.1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cifarlab.data.augment import shift_pixels
from cifarlab.preparation import Preparation
from cifarlab.training import predict_logits

SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # pixels down, right
VIEWS = tuple((mirrored, shift) for mirrored in (False, True) for shift in SHIFTS)
MEANS = {
    "as it is": [view for view in VIEWS if view == (False, (0, 0))],
    "with its mirror image": [view for view in VIEWS if view[1] == (0, 0)],
    "with four shifts of one pixel": [view for view in VIEWS if not view[0]],
    "with both": list(VIEWS),
}
Progress = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Averaged:
    """Of the mean probabilities over `views` copies: bool (N,), whether each picture's answer is right."""

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
    """Each of `MEANS`, the first of them without augmentation, on uint8 (N, H, W, 3) with labels int (N,).

    `progress` is called with the number of pictures each time so many were looked at.
    """
    device = next(model.parameters()).device
    pictures = torch.from_numpy(images).to(device)
    answers: dict[tuple[bool, tuple[int, int]], Tensor] = {}
    for view in VIEWS:
        logits = predict_logits(model, preparation, _seen(pictures, *view))
        answers[view] = torch.softmax(logits.double().cpu(), dim=1)
        if progress is not None:
            progress(len(images))
    return tuple(
        Averaged(name, len(views), _mean_answer([answers[view] for view in views]) == labels)
        for name, views in MEANS.items()
    )


def _seen(pictures: Tensor, mirrored: bool, shift: tuple[int, int]) -> Tensor:
    return shift_pixels(pictures.flip(2) if mirrored else pictures, *shift)


def _mean_answer(answers: list[Tensor]) -> np.ndarray:
    return torch.stack(answers).mean(0).argmax(1).numpy()
