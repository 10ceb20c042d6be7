"""Random changes of training pictures: drawn for many pictures at once, applied to whole batches on any device.

Rotation, zoom and shift are one affine map of the places that are looked up, about the picture's centre, so that with
the flip they cost one bilinear look-up, in float32. Keras's conventions: the centre is (size - 1) / 2, offsets are
real-valued, and places outside take the nearest edge (`apply_affine_transform` of keras.preprocessing.image with
fill_mode="nearest"). Crops and flips alone move whole pixels and keep them as they are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifarlab.recipe import Augment

LARGEST_FOR_LINES = 128  # pixels a side


@dataclass(frozen=True, eq=False)
class Draws:
    """What happens to each of N pictures. All tensors have shape (N,); None: that happens to no picture."""

    shift_y: Tensor | None  # float32, pixels, downwards; None: nothing moves between pixels
    shift_x: Tensor | None  # float32, pixels, to the right
    angle: Tensor | None  # float32, radians
    scale: Tensor | None  # float32, above 1 shows more of the scene, smaller, as in Keras
    flip: Tensor  # bool, left to right, after the affine map
    crop_y: Tensor | None = None  # int64, pixels by which the crop lies lower, after the flip
    crop_x: Tensor | None = None  # int64, to the right
    cut_y: Tensor | None = None  # int64, the first row of the square that is cut out
    cut_x: Tensor | None = None  # int64, its first column

    def __len__(self) -> int:
        return len(self.flip)

    def slice(self, start: int, stop: int) -> "Draws":
        return self._each(lambda values: values[start:stop])

    def to(self, device: torch.device | str) -> "Draws":
        return self._each(lambda values: values.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: None if value is None else change(value) for name, value in values.items()}
        )


def draw(augment: Augment, n: int, height: int, width: int, seed: int) -> Draws | None:
    """Changes for `n` pictures of `height` x `width` pixels; None where `augment` changes nothing.

    The same seed gives the same draws on every platform, and each kind of change its own, whichever others are on.
    With `flip_rule="alternating"` the flips are the caller's to toggle: see `BatchStream`.
    """
    if augment.changes_nothing:
        return None
    uniform = np.random.Generator(np.random.PCG64(seed)).random((9, n))  # float64, [0, 1)
    symmetric = 2.0 * uniform - 1.0
    affine = bool(augment.shift or augment.rotation or augment.zoom)
    padding, square = augment.crop_padding, min(augment.cutout, height, width)
    return Draws(
        shift_y=_float32(augment.shift * height * symmetric[0]) if affine else None,
        shift_x=_float32(augment.shift * width * symmetric[1]) if affine else None,
        angle=_float32(math.radians(augment.rotation) * symmetric[2]) if augment.rotation else None,
        scale=_float32(1.0 + augment.zoom * symmetric[3]) if affine else None,
        flip=torch.from_numpy(uniform[4] < augment.flip),
        crop_y=_whole(uniform[5], 2 * padding + 1) - padding if padding else None,
        crop_x=_whole(uniform[6], 2 * padding + 1) - padding if padding else None,
        cut_y=_whole(uniform[7], height - square + 1) if square else None,
        cut_x=_whole(uniform[8], width - square + 1) if square else None,
    )


def _whole(uniform: np.ndarray, choices: int) -> Tensor:
    """int64 0 .. choices - 1, each as probable."""
    return torch.from_numpy((uniform * choices).astype(np.int64))


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def apply(images: Tensor, draws: Draws) -> Tensor:
    """`images` moved as drawn. Equal to scipy.ndimage.affine_transform(order=1, mode="nearest") but for rounding.

    Args:
        images: (N, C, H, W), uint8 or float, contiguous or channels_last; channels_last is the fast one.
        draws: N draws on the same device.

    Returns:
        (N, C, H, W) in the units and the memory format of `images`: float32, or their own dtype where nothing moves
        between pixels.
    """
    memory_format = torch.contiguous_format if images.is_contiguous() else torch.channels_last
    if draws.shift_y is not None:
        moved = _map_affinely(images, draws)
        if draws.crop_y is not None:
            moved = _move_whole_pixels(moved, draws, flipped=torch.zeros_like(draws.flip))
    else:
        moved = _move_whole_pixels(images, draws, flipped=draws.flip)
    return moved.contiguous(memory_format=memory_format)


def cut_out(images: Tensor, draws: Draws, square: int) -> Tensor:
    """`images`, prepared, float (N, C, H, W), with a square of `square` pixels a side of each set to 0."""
    if draws.cut_y is None or draws.cut_x is None:
        return images
    rows = torch.arange(images.shape[2], device=images.device) - draws.cut_y[:, None]
    columns = torch.arange(images.shape[3], device=images.device) - draws.cut_x[:, None]
    in_rows, in_columns = (rows >= 0) & (rows < square), (columns >= 0) & (columns < square)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


def _move_whole_pixels(images: Tensor, draws: Draws, flipped: Tensor) -> Tensor:
    """Flip, then a crop of the pictures reflected about their outermost rows and columns."""
    n, _, height, width = images.shape
    rows = torch.arange(height, device=images.device).expand(n, height)
    columns = torch.arange(width, device=images.device).expand(n, width)
    if draws.crop_y is not None and draws.crop_x is not None:
        rows = _reflected(rows + draws.crop_y[:, None], height)
        columns = _reflected(columns + draws.crop_x[:, None], width)
    columns = torch.where(flipped[:, None], width - 1 - columns, columns)
    picture = torch.arange(n, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(places: Tensor, length: int) -> Tensor:
    """Places beyond the ends folded back, the outermost line not repeated: -1 -> 1, length -> length - 2."""
    period = max(2 * (length - 1), 1)
    places = places.remainder(period)
    return torch.minimum(places, period - places).clamp_(max=length - 1)


def _map_affinely(images: Tensor, draws: Draws) -> Tensor:
    height, width = images.shape[2:]
    rows, columns = _places(draws, height, width)
    if draws.angle is None:
        y, x = rows + (height - 1) / 2, columns + (width - 1) / 2
        if max(height, width) <= LARGEST_FOR_LINES:
            return _look_up_lines(images, y, x)
        return _look_up_places(images, y[:, :, None].repeat(1, 1, width), x[:, None, :].repeat(1, height, 1))
    cos, sin = draws.angle.cos()[:, None], draws.angle.sin()[:, None]
    y = (rows * cos + (height - 1) / 2)[:, :, None] - (columns * sin)[:, None, :]
    x = (rows * sin + (width - 1) / 2)[:, :, None] + (columns * cos)[:, None, :]
    return _look_up_places(images, y, x)


def shift_pixels(
    images: Tensor, down: int, right: int, edges: Literal["nearest", "reflected"] = "nearest"
) -> Tensor:
    """(N, H, W, C) moved by whole pixels, same dtype.

    What comes in at an edge is the nearest pixel repeated, or the picture reflected about its outermost pixels.
    """
    height, width = images.shape[1:3]
    rows = torch.arange(height, device=images.device) - down
    columns = torch.arange(width, device=images.device) - right
    if edges == "reflected":
        rows, columns = _reflected(rows, height), _reflected(columns, width)
    else:
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    return images[:, rows][:, :, columns]


def _places(draws: Draws, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where the rows (N, H) and columns (N, W) of the results lie before rotation, in pixels from the centre.

    The picture is rotated, zoomed, shifted, flipped, so its places are looked up by the inverse, in reverse:
    rotation @ (scale * (flipped place - shift)).
    """
    assert draws.shift_y is not None and draws.shift_x is not None and draws.scale is not None
    device = draws.flip.device
    rows = torch.arange(height, device=device) - (height - 1) / 2
    columns = torch.arange(width, device=device) - (width - 1) / 2
    mirror = 1.0 - 2.0 * draws.flip
    rows = rows[None, :] - draws.shift_y[:, None]
    columns = columns[None, :] * mirror[:, None] - draws.shift_x[:, None]
    return rows * draws.scale[:, None], columns * draws.scale[:, None]


def _look_up_lines(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The pictures at rows y (N, H) and columns x (N, W): one matrix product down, one across.

    Its cost grows with the third power of the side: faster than `_look_up_places` on one CPU thread at 32 pixels a side
    and less so at 64. About where it stops being faster is LARGEST_FOR_LINES; the difference there is small.
    """
    n, channels, height, width = images.shape
    pixels = images.permute(0, 2, 1, 3).contiguous().float()  # (N, H, C, W)
    down = torch.bmm(_line_weights(y), pixels.view(n, height, channels * width))
    across = torch.bmm(down.view(n, height * channels, width), _line_weights(x).transpose(1, 2))
    return across.view(n, height, channels, width).permute(0, 2, 1, 3)


def _line_weights(places: Tensor) -> Tensor:
    """(N, L, L): how much of line j of L is in result i, for places (N, L) between the lines or outside them."""
    length = places.shape[1]
    distance = places.clamp(0, length - 1)[:, :, None] - torch.arange(length, device=places.device)
    return distance.abs_().neg_().add_(1.0).clamp_(min=0.0)


def _look_up_places(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The pictures at the places y, x (N, H, W): each a weighted sum of the four nearest pixels."""
    n, channels, height, width = images.shape
    y, x = y.clamp_(0, height - 1), x.clamp_(0, width - 1)
    y0, x0 = y.floor().clamp_(max=max(height - 2, 0)), x.floor().clamp_(max=max(width - 2, 0))
    pixels = images.permute(0, 2, 3, 1).reshape(n * height * width, channels).float()
    pixel_numbers = _four_nearest(y0.int(), x0.int())
    result = F.embedding_bag(
        pixel_numbers, pixels, per_sample_weights=_four_weights(y - y0, x - x0), mode="sum"
    )
    return result.view(n, height, width, channels).permute(0, 3, 1, 2)


def _four_nearest(y0: Tensor, x0: Tensor) -> Tensor:
    """int32 (N * H * W, 4): pixel y0, x0 of each picture, its right and its lower neighbour and the one between.

    Counted through all pictures, row by row. A picture of one row or column is its own neighbour.
    """
    n, height, width = y0.shape
    picture = torch.arange(n, dtype=torch.int32, device=y0.device).view(n, 1, 1)
    first = ((picture * height + y0) * width + x0).flatten()
    right, below = int(width > 1), width * int(height > 1)
    return torch.stack([first, first + right, first + below, first + below + right], dim=1)


def _four_weights(down: Tensor, right: Tensor) -> Tensor:
    """float32 (N * H * W, 4): the bilinear weights of those four pixels, `down` and `right` of the first by 0..1."""
    weights = down.new_empty((*down.shape, 4))  # filled in place: three times as fast as stacking
    both = torch.mul(down, right, out=weights[..., 3])
    lower = torch.sub(down, both, out=weights[..., 2])
    torch.sub(right, both, out=weights[..., 1])
    torch.sub(1.0 - right, lower, out=weights[..., 0])
    return weights.view(-1, 4)
