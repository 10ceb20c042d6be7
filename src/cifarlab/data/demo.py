"""The embedded data set: 10 shapes drawn from a seed in the layout of CIFAR-10, the same bytes everywhere.

Only integers are used, and all chance comes from the raw bits of PCG64, whose stream NumPy promises to keep
(NEP 19; the distributions of `Generator` carry no such promise). No class is another's mirror image, so that
horizontal flips keep the label.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np

from cifarlab.data.sources import Source, Split, StoredSplit, content_sha256
from cifarlab.errors import UserError
from cifarlab.files import cache_dir, write_atomic

CLASSES = ("circle", "ring", "square", "triangle", "star", "cross", "heart", "moon", "arrow", "house")
SIZES = {"train": 5_000, "test": 2_000}
SEEDS = {"train": 10, "test": 11}
# SHA-256 of each split's pictures and then its labels as uint8, and of train and test one after the other.
CHECKSUMS = {
    "train": "d6a43508d2bc01700d7768d531a5070873f20d81e79980f70fd981e7e319fb02",
    "test": "fa95974c8fa6b528f903fb8b53e040ccdd44824e55ec2e1e60b7e14b96f4e626",
}
CHECKSUM = "3735a107a3be77c14f0e4a613dc15a6cc0d31e95a6db87d14c43931020a86586"

SIDE = 32  # pixels
PIXEL = 64  # lengths on a picture are in 1/64 pixel
STENCIL = 64  # cells along a stencil's side
OPAQUE = 64  # a stencil's cells are 0 (clear) to 64
CHUNK = 250  # pictures drawn at once, so that the work stays in the processor's cache

# Shapes are drawn on a square from -100 to 100, y downwards.
POLYGONS = {
    "square": [(-82, -82), (82, -82), (82, 82), (-82, 82)],
    "triangle": [(0, -92), (98, 78), (-98, 78)],
    "star": [(0, -98), (25, -34), (95, -31), (40, 13), (59, 81), (0, 42), (-59, 81), (-40, 13), (-95, -31),
             (-25, -34)],
    "cross": [(-28, -94), (28, -94), (28, -28), (94, -28), (94, 28), (28, 28), (28, 94), (-28, 94), (-28, 28),
              (-94, 28), (-94, -28), (-28, -28)],
    "arrow": [(0, -96), (84, -4), (32, -4), (32, 94), (-32, 94), (-32, -4), (-84, -4)],
    "house": [(0, -96), (96, -12), (70, -12), (70, 90), (22, 90), (22, 30), (-22, 30), (-22, 90), (-70, 90),
              (-70, -12), (-96, -12)],
    "heart": [(-83, -4), (-44, -40), (0, -44), (44, -40), (83, -4), (0, 92)],
    "bar": [(-96, -16), (96, -16), (96, 16), (-96, 16)],
}  # fmt: skip

# A picture is a light figure on deep ground or the other way round, so that any pair of colours can be read.
LIGHT = np.array(
    [(242, 236, 216), (250, 214, 84), (246, 164, 60), (244, 150, 178), (140, 214, 236), (158, 218, 112),
     (206, 172, 240)],
    dtype=np.int32,
)  # fmt: skip
DEEP = np.array(
    [(38, 46, 84), (24, 84, 76), (112, 40, 52), (94, 58, 36), (78, 44, 104), (60, 66, 74), (40, 96, 150),
     (74, 98, 40)],
    dtype=np.int32,
)  # fmt: skip


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


def stencil(name: str) -> np.ndarray:
    """A shape with edges softened over about a pixel, int16 (STENCIL, STENCIL), 0..OPAQUE, clear at the edge.

    `name` is a class, "bar" or "dot".
    """
    fine = 4 * STENCIL
    twice = (2 * np.arange(fine) + 1 - fine) * 220 // fine  # twice the coordinates -110..110
    x, y = twice[None, :], twice[:, None]

    def disc(cx: int, radius: int, cy: int = 0) -> np.ndarray:
        return (x - 2 * cx) ** 2 + (y - 2 * cy) ** 2 <= 4 * radius * radius

    if name == "ring":
        mask = disc(0, 94) & ~disc(0, 52)
    elif name == "moon":
        mask = disc(0, 94) & ~disc(46, 74)
    elif name in ("circle", "dot"):
        mask = disc(0, 92)
    else:
        mask = _inside_polygon(x, y, [(2 * cx, 2 * cy) for cx, cy in POLYGONS[name]])
        if name == "heart":
            mask |= disc(-44, 50, -38) | disc(44, 50, -38)
    cells = np.pad(mask.astype(np.int32).reshape(STENCIL, 4, STENCIL, 4).sum((1, 3)), 1)  # 0..16
    blurred = np.stack([cells[i : i + STENCIL, j : j + STENCIL] for i in range(3) for j in range(3)]).sum(0)
    return (blurred * OPAQUE // (9 * 16)).astype(np.int16)


def _cover(
    stencils: np.ndarray,
    which: np.ndarray,
    centre: np.ndarray,
    reach: np.ndarray,
    turn: np.ndarray,
    mirror: np.ndarray,
) -> np.ndarray:
    """How much of each pixel a shape covers, int16 (N, SIDE, SIDE), 0..OPAQUE.

    `which` (N,) picks from `stencils`; `centre` (N, 2), x and y, and `reach` (N,), half the stencil's side,
    are in 1/64 pixel; `turn` (N,) is the tangent of half the angle, in 1/256; `mirror` (N,) is 1 or -1.
    """
    # ((1 - t^2) / (1 + t^2), 2t / (1 + t^2)) is the cosine and sine: no function whose last bit may differ.
    half, whole = STENCIL // 2, 256 * 256 + turn * turn
    cosine = 1024 * (256 * 256 - turn * turn) // whole
    sine = 1024 * (2 * 256 * turn) // whole
    # Cells for each 1/64 pixel, with 16 fractional bits: under 2^14 as reach is 2 pixels or more.
    along, across = (cosine * (half << 6) // reach)[:, None], (sine * (half << 6) // reach)[:, None]
    pixels = PIXEL * np.arange(SIDE, dtype=np.int32) + PIXEL // 2
    dx, dy = pixels - centre[:, :1], pixels - centre[:, 1:]  # (N, SIDE), under 2^12
    flip = mirror[:, None]
    u = ((along * flip * dx)[:, None, :] + (across * flip * dy)[:, :, None] >> 16) + half
    v = ((along * dy)[:, :, None] - (across * dx)[:, None, :] >> 16) + half
    cell = v.clip(0, STENCIL - 1) * STENCIL + u.clip(0, STENCIL - 1)
    return stencils.reshape(-1)[cell + (which * STENCIL * STENCIL)[:, None, None]]


def _ground(draws: Draws, n: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Waves and soft blotches between two colours, int16 (n, SIDE, SIDE, 3)."""
    pixel = np.arange(SIDE, dtype=np.int32)
    slope = draws.between(-40, 40, n, 2)
    phase = (
        (slope[:, :1] * pixel)[:, None, :] + (slope[:, 1:] * pixel)[:, :, None] + draws.below(512, n, 1, 1)
    )
    wave = np.abs((phase & 511) - 256)  # 0..256
    knots = draws.below(256, n, 6, 6)
    knot, step = pixel * 5 // SIDE, pixel * 5 % SIDE
    rows = knots[:, knot] * (SIDE - step)[:, None] + knots[:, knot + 1] * step[:, None]
    blotch = rows[:, :, knot] * (SIDE - step) + rows[:, :, knot + 1] * step >> 10  # 0..255
    return _lay(np.broadcast_to(other[:, None, None], (n, SIDE, SIDE, 3)), one, (wave + blotch) * OPAQUE >> 9)


def _lay(picture: np.ndarray, colour: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """`colour` (N, 3) over `picture` (N, SIDE, SIDE, 3) where `cover` (N, SIDE, SIDE) says, int16."""
    cover = cover.astype(np.int16, copy=False)[..., None]
    return picture + ((colour[:, None, None] - picture) * cover >> 6)  # OPAQUE is 1 << 6


def draw(labels: np.ndarray, draws: Draws) -> np.ndarray:
    """One picture for each label, uint8 (N, SIDE, SIDE, 3)."""
    n = len(labels)
    names = (*CLASSES, "bar", "dot")
    stencils = np.stack([stencil(name) for name in names])
    figure_is_light = draws.below(2, n)
    ground_is_light = 1 - figure_is_light

    def colour(light: np.ndarray) -> np.ndarray:
        chosen = np.where(light[:, None], LIGHT[draws.below(len(LIGHT), n)], DEEP[draws.below(len(DEEP), n)])
        return (chosen + draws.between(-14, 14, n, 3)).astype(np.int16)

    def clutter(
        picture: np.ndarray, name: str, light: np.ndarray, spot: np.ndarray, longest: int
    ) -> np.ndarray:
        which = np.full(n, names.index(name))
        reach = draws.between(longest // 2, longest, n)
        cover = _cover(stencils, which, spot, reach, draws.between(-256, 256, n), np.ones_like(reach))
        return _lay(picture, colour(light), cover)

    def anywhere() -> np.ndarray:
        return draws.below(SIDE * PIXEL, n, 2)

    def over_figure() -> np.ndarray:
        return centre + draws.between(-7 * PIXEL, 7 * PIXEL, n, 2)

    reach = draws.between(8 * PIXEL, 13 * PIXEL, n)
    room = (SIDE // 2 * PIXEL - reach * 7 // 8)[:, None]  # a corner may leave the picture, no more
    centre = SIDE // 2 * PIXEL + room * draws.between(-256, 256, n, 2) // 256
    mirror = 2 * draws.below(2, n) - 1
    figure = _cover(stencils, labels.astype(np.int32), centre, reach, draws.between(-90, 90, n), mirror)

    picture = _ground(draws, n, colour(ground_is_light), colour(ground_is_light))
    picture = clutter(picture, "bar", ground_is_light, anywhere(), 16 * PIXEL)
    picture = clutter(picture, "dot", figure_is_light, anywhere(), 4 * PIXEL)
    picture = _lay(picture, colour(figure_is_light), figure)
    picture = clutter(picture, "bar", ground_is_light, over_figure(), 14 * PIXEL)
    picture = clutter(picture, "dot", ground_is_light, over_figure(), 4 * PIXEL)

    noise = draws.bytes(n, SIDE, SIDE, 3).astype(np.int16) + draws.bytes(n, SIDE, SIDE, 3) - 255  # triangular
    strength = draws.between(8, 40, n, 1, 1, 1).astype(np.int16)
    return np.clip(picture + (noise * strength >> 8), 0, 255).astype(np.uint8)


def generate(split: StoredSplit) -> tuple[np.ndarray, np.ndarray]:
    """A split drawn anew: pictures uint8 (N, 32, 32, 3) and labels uint8 (N,), each class equally often."""
    n = SIZES[split]
    draws = Draws(SEEDS[split])
    order = np.argsort(draws.bits.random_raw(n), kind="stable")
    labels = (np.arange(n) % len(CLASSES))[order].astype(np.uint8)
    images = np.concatenate([draw(labels[start : start + CHUNK], draws) for start in range(0, n, CHUNK)])
    return images, labels


def open_demo() -> Source:
    """The demo set. Nothing is drawn or read until a split is asked for.

    A split is drawn once and kept in the user's cache; where that cannot be written it is drawn each time.
    """
    return Source("demo", "drawn by cifarlab", CLASSES, f"sha256:{CHECKSUM}", _load)


def _load(split: StoredSplit) -> Split:
    path = cache_dir() / "decoded" / f"demo-{split}.npy"
    content = _read_cached(path, split)
    if content is None:
        content = generate(split)
        if content_sha256(*content) != CHECKSUMS[split]:
            raise RuntimeError(
                f"the demo pictures came out wrong with NumPy {np.__version__} on this machine"
            )
        # Without a cache the next reading is slower, that is all.
        with contextlib.suppress(OSError, UserError):
            _store(path, *content)
    images, labels = content
    return Split(images, labels.astype(np.int64))


def _read_cached(path: Path, split: StoredSplit) -> tuple[np.ndarray, np.ndarray] | None:
    """Pictures and labels if the file's content has the pinned checksum; None if it is missing or wrong."""
    try:
        # Mapped first, so that a header that lies about the size costs no memory; then copied, so that what
        # is hashed is what is used.
        records = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception:  # missing, or damaged in any way: it is drawn again
        return None
    if records.dtype != np.uint8 or records.shape != (SIZES[split], 1 + SIDE * SIDE * 3):
        return None
    images, labels = records[:, 1:].copy().reshape(-1, SIDE, SIDE, 3), records[:, 0].copy()
    return (images, labels) if content_sha256(images, labels) == CHECKSUMS[split] else None


def _store(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """One .npy file, uint8 (N, 1 + 3072): the label, then the pixels, so that the two cannot part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    np.save(file, np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1))
    write_atomic(path, file.getvalue())
