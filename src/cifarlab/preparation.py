"""The one thing that turns pictures into a network's inputs: in training, evaluation and prediction alike."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from cifarlab.data.mapped import Pictures
from cifarlab.pictures import Fit

Channels = tuple[float, float, float]
ChannelOrder = Literal["rgb", "bgr"]

# What ImageNet networks subtract and divide by: keras/src/applications/imagenet_utils.py, modes "caffe" and "torch".
IMAGENET_BGR_MEAN: Channels = (103.939, 116.779, 123.68)
IMAGENET_RGB_MEAN: Channels = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_RGB_STD: Channels = (0.229 * 255, 0.224 * 255, 0.225 * 255)

COUNTED_AT_ONCE = 2_000  # pictures


@dataclass(frozen=True)
class Preparation:
    """(pixels - mean) / std, in pixel units 0..255, for RGB pictures of `height` x `width` pixels.

    With `channel_order` "bgr" the channels are turned round first, and `mean` and `std` are in that order. `fit` is how
    picture files of another shape come to that size (`cifarlab.pictures.read_picture`).
    """

    height: int
    width: int
    mean: Channels
    std: Channels
    channel_order: ChannelOrder = "rgb"
    fit: Fit = "squash"

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 or float (N, 3, H, W) in 0..255 -> float32 (N, 3, H, W), same device and memory format."""
        if self.channel_order == "bgr":
            images = images.flip(1)
        images = images.to(torch.float32, copy=True)  # changed in place, and float pictures are the caller's
        if any(self.mean):
            images -= _per_channel(self.mean, images)
        images /= _per_channel(self.std, images)
        return images

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Preparation":
        """Raises ValueError, KeyError or TypeError when `content` is not what `dataclasses.asdict` gave."""
        mean, std = _channels(content["mean"]), _channels(content["std"])
        order = content.get("channel_order", "rgb")  # runs of before there was another have none
        fit = content.get("fit", "squash")
        if order not in get_args(ChannelOrder) or fit not in get_args(Fit):
            raise ValueError(f"channel_order {order!r}, fit {fit!r}")
        return cls(content["height"], content["width"], mean, std, order, fit)

    @classmethod
    def from_training_images(cls, kind: str, images: Pictures, fit: Fit = "squash") -> "Preparation":
        """Fit to `images`, uint8 (N, H, W, 3): the pictures that are trained on, validation left out.

        `kind` is the recipe's `data.preparation`.
        """
        height, width = images.shape[1:3]
        if kind == "scale":
            return cls(height, width, (0.0, 0.0, 0.0), (255.0, 255.0, 255.0), fit=fit)
        if kind == "imagenet-bgr":
            return cls(height, width, IMAGENET_BGR_MEAN, (1.0, 1.0, 1.0), "bgr", fit)
        if kind == "imagenet-rgb":
            return cls(height, width, IMAGENET_RGB_MEAN, IMAGENET_RGB_STD, fit=fit)
        mean, std = _pixel_statistics(images)
        if kind == "center":
            return cls(height, width, _channels(mean), (255.0, 255.0, 255.0), fit=fit)
        if kind == "standardize":
            # One mean and one deviation over all pixels and channels; T2 adds 1e-7 to the deviation of raw pixels.
            overall = float(mean.mean())
            deviation = float(np.sqrt((std**2 + (mean - overall) ** 2).mean())) + 1e-7
            return cls(height, width, _channels([overall] * 3), _channels([deviation] * 3), fit=fit)
        assert kind == "standardize-channels", kind
        return cls(height, width, _channels(mean), _channels(np.maximum(std, 1e-7)), fit=fit)


def _per_channel(values: Channels, images: Tensor) -> Tensor | float:
    if len(set(values)) == 1:
        return values[0]  # type: ignore[return-value]
    return torch.tensor(values, dtype=torch.float32).to(images.device, non_blocking=True).view(1, 3, 1, 1)


def _pixel_statistics(images: Pictures) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel, float64 (3,), from counts of the 256 values: exact, and in little memory."""
    values = np.arange(256, dtype=np.float64)
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), COUNTED_AT_ONCE):
        some = images[start : start + COUNTED_AT_ONCE].reshape(-1, 3)
        counts += np.stack([np.bincount(some[:, channel], minlength=256) for channel in range(3)])
    pixels = counts.sum(axis=1)
    mean = counts @ values / pixels
    return mean, np.sqrt(np.maximum(counts @ values**2 / pixels - mean**2, 0.0))


def _channels(values: Iterable[float]) -> Channels:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
