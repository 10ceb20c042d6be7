"""How much of a network's accuracy small changes of the pictures cost: shifts, flips, noise, blur, brightness, JPEG."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import nn

from cifarlab.data.augment import shift_pixels
from cifarlab.preparation import Preparation
from cifarlab.training import predict_logits

NOISE_SEED = 1_000_003
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Change:
    """A kind of change. `apply` takes uint8 (N, H, W, 3) and a level and gives changed pictures of the same form.

    `as_it_is` is the level that changes nothing.
    """

    name: str
    unit: str
    levels: tuple[float, ...]
    as_it_is: float
    apply: Callable[[np.ndarray, float], np.ndarray]
    words: tuple[str, ...] = ()  # the levels' names, where they are not numbers
    is_scale: bool = True  # levels follow each other from less to more


@dataclass(frozen=True)
class Curve:
    """Of one kind of change: how many of n pictures are right at each level, the unchanged one among them."""

    change: Change
    right: tuple[int, ...]
    n: int


def shifted(images: np.ndarray, pixels: float) -> np.ndarray:
    """By whole pixels: the first picture to the right, the next to the left, then down, then up, and so on."""
    result = images.copy()
    for first, (down, right) in enumerate(((0, 1), (0, -1), (1, 0), (-1, 0))):
        part = torch.from_numpy(images[first::4])
        result[first::4] = shift_pixels(part, down * int(pixels), right * int(pixels)).numpy()
    return result


def flipped(images: np.ndarray, kind: float) -> np.ndarray:
    """0: as it is; 1: left and right exchanged; 2: upside down."""
    axes: dict[float, tuple[int, ...]] = {0: (), 1: (2,), 2: (1,)}
    return np.ascontiguousarray(np.flip(images, axes[kind])) if axes[kind] else images


def noisy(images: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian noise of that deviation in pixel units, apart for each pixel and channel; the same noise every time."""
    noise = np.random.default_rng(NOISE_SEED).standard_normal(images.shape, dtype=np.float32)
    return _as_pixels(images + np.float32(deviation) * noise)


def blurred(images: np.ndarray, deviation: float) -> np.ndarray:
    """A Gaussian blur of that deviation in pixels, edges repeated."""
    sigma = (0, deviation, deviation, 0)
    return _as_pixels(gaussian_filter(images.astype(np.float32), sigma, mode="nearest"))


def brightened(images: np.ndarray, factor: float) -> np.ndarray:
    """Every pixel times `factor`, cut off at 255."""
    return _as_pixels(images.astype(np.float32) * np.float32(factor))


def compressed(images: np.ndarray, quality: float) -> np.ndarray:
    """Through JPEG at that quality, 1..95, colours at half resolution, as cameras and websites do; 100: as it is."""
    if quality == 100:
        return images
    return np.stack([_through_jpeg(image, int(quality)) for image in images])


CHANGES = (
    Change("Shift", "pixels, in one of four directions", (0, 1, 2, 3, 4), 0, shifted),
    Change("Flip", "", (0, 1, 2), 0, flipped, ("as it is", "left–right", "upside down"), is_scale=False),
    Change("Noise", "deviation, of 255", (0, 8, 16, 32, 48), 0, noisy),
    Change("Blur", "deviation, pixels", (0, 0.5, 1, 1.5, 2), 0, blurred),
    Change("Brightness", "factor", (0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6), 1, brightened),
    Change(
        "JPEG", "quality", (100, 90, 70, 50, 30, 10), 100, compressed, ("none", "90", "70", "50", "30", "10")
    ),
)


def passes() -> int:
    """How often `measure_robustness` looks at the sample."""
    return 1 + sum(len(change.levels) - 1 for change in CHANGES)


def measure_robustness(
    model: nn.Module,
    preparation: Preparation,
    images: np.ndarray,
    labels: np.ndarray,
    progress: Progress | None = None,
) -> tuple[Curve, ...]:
    """A curve for each kind of change, on pictures uint8 (N, H, W, 3) with labels int (N,).

    `progress` is called with the number of pictures each time so many were looked at.
    """
    device = next(model.parameters()).device

    def count_right(changed: np.ndarray) -> int:
        logits = predict_logits(model, preparation, torch.from_numpy(changed).to(device))
        if progress is not None:
            progress(len(changed))
        return int((logits.argmax(1).cpu().numpy() == labels).sum())

    unchanged = count_right(images)
    return tuple(
        Curve(
            change,
            tuple(
                unchanged if level == change.as_it_is else count_right(change.apply(images, level))
                for level in change.levels
            ),
            len(labels),
        )
        for change in CHANGES
    )


def _as_pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file).convert("RGB"))
