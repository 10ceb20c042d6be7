"""Random changes of training pictures: drawn for many pictures at once, applied to whole batches on any device.

Every change is one affine map of the sampling grid about the picture's centre, so that all of rotation, zoom, shift and
flip cost one bilinear look-up, in float32. Keras's conventions: the centre is (size - 1) / 2, offsets are real-valued, and
places outside take the nearest edge (keras.preprocessing.image.apply_affine_transform with fill_mode="nearest").
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifarlab.recipe import Augment


@dataclass(frozen=True, eq=False)
class Draws:
    """What happens to each of N pictures. All tensors have shape (N,)."""

    shift_y: Tensor  # float32, pixels, downwards
    shift_x: Tensor  # float32, pixels, to the right
    angle: Tensor  # float32, radians
    scale: Tensor  # float32, above 1 shows more of the scene, smaller, as in Keras
    flip: Tensor  # bool, left to right, after everything else

    def __len__(self) -> int:
        return len(self.flip)

    def slice(self, start: int, stop: int) -> "Draws":
        return Draws(*[getattr(self, field.name)[start:stop] for field in fields(self)])

    def to(self, device: torch.device | str) -> "Draws":
        return Draws(*[getattr(self, field.name).to(device) for field in fields(self)])


def draw(augment: Augment, n: int, height: int, width: int, seed: int) -> Draws | None:
    """Changes for `n` pictures of `height` x `width` pixels; None where `augment` changes nothing.

    The same seed gives the same draws on every platform, and each kind of change its own, whichever others are on.
    """
    if augment == Augment():
        return None
    uniform = np.random.Generator(np.random.PCG64(seed)).random((5, n))  # float64, [0, 1)
    symmetric = 2.0 * uniform - 1.0
    angle = math.radians(augment.rotation)
    return Draws(
        shift_y=_float32(augment.shift * height * symmetric[0]),
        shift_x=_float32(augment.shift * width * symmetric[1]),
        angle=_float32(angle * symmetric[2]),
        scale=_float32(1.0 + augment.zoom * symmetric[3]),
        flip=torch.from_numpy(uniform[4] < augment.flip),
    )


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def apply(images: Tensor, draws: Draws) -> Tensor:
    """`images` changed as drawn.

    Args:
        images: (N, C, H, W), uint8 or float, contiguous or channels_last; channels_last is the fast one.
        draws: N draws on the same device.

    Returns:
        float32 (N, C, H, W) in the units and the memory format of `images`.
    """
    n, channels, height, width = images.shape
    y, x = _sampling_grid(draws, height, width)
    y0, x0 = y.floor().clamp_(max=max(height - 2, 0)), x.floor().clamp_(max=max(width - 2, 0))
    down, right = y.sub_(y0).flatten(), x.sub_(x0).flatten()
    both = down * right
    weights = torch.stack([1.0 - down - right + both, right - both, down - both, both], dim=1)

    picture = torch.arange(n, dtype=torch.int32, device=images.device).view(n, 1, 1)
    top_left = ((picture * height + y0.int()) * width + x0.int()).flatten()
    next_x, next_y = int(width > 1), width * int(height > 1)
    taps = torch.stack([top_left, top_left + next_x, top_left + next_y, top_left + next_y + next_x], dim=1)

    pixels = images.permute(0, 2, 3, 1).reshape(n * height * width, channels).float()
    result = F.embedding_bag(
        taps, pixels, per_sample_weights=weights, mode="sum"
    )  # a weighted sum of four rows
    memory_format = torch.contiguous_format if images.is_contiguous() else torch.channels_last
    return result.view(n, height, width, channels).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)


def _sampling_grid(draws: Draws, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each pixel of the result is looked up: y (N, H, W) and x (N, H, W), within the picture.

    A picture that is rotated, zoomed, then shifted is looked up through the inverse: rotation @ scale @ (place - shift).
    """
    device = draws.flip.device
    center_y, center_x = (height - 1) / 2, (width - 1) / 2
    rows = torch.arange(height, device=device) - center_y
    columns = torch.arange(width, device=device) - center_x
    mirror = 1.0 - 2.0 * draws.flip
    rows = rows[None, :] - draws.shift_y[:, None]
    columns = columns[None, :] * mirror[:, None] - draws.shift_x[:, None]
    cos = (draws.scale * draws.angle.cos())[:, None]
    sin = (draws.scale * draws.angle.sin())[:, None]
    y = (rows * cos + center_y)[:, :, None] - (columns * sin)[:, None, :]
    x = (rows * sin + center_x)[:, :, None] + (columns * cos)[:, None, :]
    return y.clamp_(0, height - 1), x.clamp_(0, width - 1)
