"""The embedded data set: 10 shapes drawn from a seed, in the layout of CIFAR-10, the same bytes on every machine.

Only integers are used, and all chance comes from the raw bits of PCG64, whose stream NumPy promises to keep
(NEP 19; the distributions of `Generator` carry no such promise).
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from cifarlab.data import Source

CLASSES = ("circle", "ring", "square", "triangle", "star", "cross", "heart", "moon", "arrow", "house")
SIZES = {"train": 5_000, "test": 2_000}

SIDE = 32  # pixels
PIXEL = 64  # positions are in 1/64 pixel
STENCIL = 64  # cells along a stencil's side
UNIT = 1 << 10  # fixed-point 1 for rotations

# Shapes are drawn on a square from -100 to 100, y downwards.
POLYGONS = {
    "square": [(-82, -82), (82, -82), (82, 82), (-82, 82)],
    "triangle": [(0, -92), (98, 78), (-98, 78)],
    "star": [(0, -98), (25, -34), (95, -31), (40, 13), (59, 81), (0, 42), (-59, 81), (-40, 13), (-95, -31), (-25, -34)],
    "cross": [(-28, -94), (28, -94), (28, -28), (94, -28), (94, 28), (28, 28), (28, 94), (-28, 94), (-28, 28),
              (-94, 28), (-94, -28), (-28, -28)],
    "arrow": [(0, -96), (84, -4), (32, -4), (32, 94), (-32, 94), (-32, -4), (-84, -4)],
    "house": [(0, -96), (96, -12), (70, -12), (70, 90), (22, 90), (22, 30), (-22, 30), (-22, 90), (-70, 90),
              (-70, -12), (-96, -12)],
    "heart": [(-83, -4), (-44, -40), (0, -44), (44, -40), (83, -4), (0, 92)],
    "bar": [(-96, -16), (96, -16), (96, 16), (-96, 16)],
}  # fmt: skip

# Far enough apart that any two can be told from each other after the jitter.
PALETTE = np.array(
    [
        (236, 232, 218),
        (40, 44, 60),
        (206, 52, 56),
        (240, 142, 42),
        (246, 212, 76),
        (76, 156, 74),
        (34, 96, 86),
        (92, 186, 214),
        (44, 88, 172),
        (132, 78, 158),
        (232, 138, 174),
        (128, 84, 54),
    ],
    dtype=np.int32,
)


class Draws:
    """Integers from the raw bits of PCG64."""

    def __init__(self, seed: int) -> None:
        self.bits = np.random.PCG64(seed)

    def below(self, limit: int, *shape: int) -> np.ndarray:
        """int32 of `shape`, each 0..limit-1, `limit` under 2^16 (the bias is under 2^-16)."""
        high = self.bits.random_raw(int(np.prod(shape))).reshape(shape) >> np.uint64(32)
        return ((high * np.uint64(limit)) >> np.uint64(32)).astype(np.int32)

    def between(self, low: int, high: int, *shape: int) -> np.ndarray:
        """int32 of `shape`, each low..high, both included."""
        return low + self.below(high - low + 1, *shape)

    def bytes(self, *shape: int) -> np.ndarray:
        """uint8 of `shape`, each 0..255."""
        size = int(np.prod(shape))
        return self.bits.random_raw(-(-size // 8)).astype("<u8").view(np.uint8)[:size].reshape(shape)


def _inside_polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[int, int]]) -> np.ndarray:
    """Even-odd rule, in integers."""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        side = (x - ax) * (by - ay) - (y - ay) * (bx - ax)
        inside ^= ((ay > y) != (by > y)) & ((side < 0) == (by > ay))
    return inside


def _stencil(name: str) -> np.ndarray:
    """Coverage of a shape, int32 (STENCIL, STENCIL), 0..255, with soft edges about one pixel wide."""
    fine = 4 * STENCIL
    scale = 240 / fine
    del scale
    position = (2 * np.arange(fine) + 1 - fine) * 220 // fine  # twice -110..110, so that the border is empty
    x, y = position[None, :], position[:, None]

    def disc(cx: int, cy: int, radius: int) -> np.ndarray:
        return (x - 2 * cx) ** 2 + (y - 2 * cy) ** 2 <= 4 * radius * radius

    if name in POLYGONS:
        mask = _inside_polygon(x, y, [(2 * px, 2 * py) for px, py in POLYGONS[name]])
        if name == "heart":
            mask |= disc(-44, -38, 50) | disc(44, -38, 50)
    elif name == "ring":
        mask = disc(0, 0, 94) & ~disc(0, 0, 52)
    elif name == "moon":
        mask = disc(0, 0, 94) & ~disc(46, 0, 74)
    else:
        mask = disc(0, 0, 92)
    coverage = mask.astype(np.int32).reshape(STENCIL, 4, STENCIL, 4).sum((1, 3))  # 0..16
    padded = np.pad(coverage, 1)
    blurred = sum(padded[i : i + STENCIL, j : j + STENCIL] for i in range(3) for j in range(3))
    return np.asarray(blurred) * 255 // 144


STENCIL_NAMES = (*CLASSES, "bar", "dot")


def _coverage(stencils: np.ndarray, which, centre, radius, turn, mirror) -> np.ndarray:
    """Where shapes fall on pictures: int32 (N, SIDE, SIDE), 0..255.

    `which` (N,) picks stencils; `centre` (N, 2) x and y and `radius` (N,) in 1/64 pixel; `turn` (N,) is the
    tangent of half the angle in 1/256; `mirror` (N,) is 1 or -1.
    """
    # (1-t^2, 2t) / (1+t^2) is a point of the unit circle: a rotation without a sine whose last bit may differ.
    whole = 256 * 256 + turn * turn
    cosine, sine = UNIT * (256 * 256 - turn * turn) // whole, UNIT * 512 * turn // whole
    pixels = PIXEL * np.arange(SIDE, dtype=np.int32) + PIXEL // 2
    dx = pixels - centre[:, :1]  # (N, SIDE)
    dy = pixels - centre[:, 1:]
    half = STENCIL // 2
    # 16 fractional bits: |d| < 2^12, factor < 2^16 * 32 / radius with radius >= 128, so all stays under 2^31.
    a, b = (cosine * (half << 6) // radius)[:, None], (sine * (half << 6) // radius)[:, None]
    m = mirror[:, None]
    u = ((a * m * dx)[:, None, :] + (b * m * dy)[:, :, None]) >> 16
    v = ((a * dy)[:, :, None] - (b * dx)[:, None, :]) >> 16
    u = np.clip(u + half, 0, STENCIL - 1)
    v = np.clip(v + half, 0, STENCIL - 1)
    return stencils.reshape(-1)[(which * STENCIL * STENCIL)[:, None, None] + v * STENCIL + u]


def _background(draws: Draws, n: int, light: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """Waves of two colours with soft blotches, int32 (n, SIDE, SIDE, 3)."""
    pixel = np.arange(SIDE, dtype=np.int32)
    slope = draws.between(-40, 40, n, 2)
    phase = slope[:, :1, None] * pixel + slope[:, 1:, None] * pixel[:, None] + draws.below(512, n, 1, 1)
    wave = np.abs((phase & 511) - 256)  # 0..256
    cells = draws.below(256, n, 6, 6)
    start, step = pixel * 5 // SIDE, pixel * 5 % SIDE
    rows = cells[:, start] * (SIDE - step)[:, None] + cells[:, start + 1] * step[:, None]
    blotch = (rows[:, :, start] * (SIDE - step) + rows[:, :, start + 1] * step) >> 10  # 0..255
    mix = ((wave + blotch) >> 1)[..., None]
    return dark[:, None, None] + (((light - dark)[:, None, None] * mix) >> 8)


def _lay(picture: np.ndarray, colour: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    return picture + ((colour[:, None, None] - picture) * coverage[..., None] >> 8)


def draw(labels: np.ndarray, draws: Draws) -> np.ndarray:
    """Pictures of `labels`, uint8 (N, 32, 32, 3)."""
    n = len(labels)
    stencils = np.stack([_stencil(name) for name in STENCIL_NAMES])
    still = np.ones(n, dtype=np.int32)

    def colour(index: np.ndarray) -> np.ndarray:
        return PALETTE[index] + draws.between(-18, 18, n, 3)

    first = draws.below(len(PALETTE), n)
    ground = colour(first)
    picture = _background(draws, n, ground + draws.between(5, 45, n, 1), ground - draws.between(5, 45, n, 1))

    radius = draws.between(7 * PIXEL, 12 * PIXEL, n)
    room = (SIDE // 2 * PIXEL - radius * 7 // 8)[:, None]
    centre = SIDE // 2 * PIXEL + room * draws.between(-256, 256, n, 2) // 256
    figure = colour((first + 1 + draws.below(len(PALETTE) - 1, n)) % len(PALETTE))

    def clutter(kind: int, low: int, high: int, near: np.ndarray | None) -> None:
        nonlocal picture
        spot = draws.between(0, SIDE * PIXEL, n, 2)
        if near is not None:
            spot = near + draws.between(-7 * PIXEL, 7 * PIXEL, n, 2)
        shape = np.full(n, kind, dtype=np.int32)
        cover = _coverage(stencils, shape, spot, draws.between(low, high, n), draws.between(-256, 256, n), still)
        picture = _lay(picture, colour(draws.below(len(PALETTE), n)), cover)

    bar, dot = STENCIL_NAMES.index("bar"), STENCIL_NAMES.index("dot")
    clutter(bar, 6 * PIXEL, 16 * PIXEL, None)
    clutter(dot, 2 * PIXEL, 4 * PIXEL, None)
    clutter(dot, 2 * PIXEL, 4 * PIXEL, None)
    mirror = 2 * draws.below(2, n) - 1
    shape = _coverage(stencils, labels.astype(np.int32), centre, radius, draws.between(-90, 90, n), mirror)
    picture = _lay(picture, figure, shape)
    clutter(bar, 6 * PIXEL, 14 * PIXEL, centre)
    clutter(dot, 2 * PIXEL, 4 * PIXEL, centre)

    noise = draws.bytes(n, SIDE, SIDE, 3).astype(np.int32) + draws.bytes(n, SIDE, SIDE, 3) - 255
    amount = draws.between(8, 40, n, 1, 1, 1)
    return np.clip(picture + (noise * amount >> 8), 0, 255).astype(np.uint8)
