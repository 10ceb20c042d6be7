"""Pictures in rows and columns: with their names, by class, beside their changed copies, with what was predicted.

Places are whole pixels of 1/144 inch, and a picture is 192 or 96 of them a side, so that each pixel of a picture of 32
or 64 a side is a square of the same size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cifarlab.data.mapped import Pictures
from cifarlab.figures.style import (
    GREEN,
    NAME,
    ORANGE,
    PALE_INK,
    RESOLUTION_DPI,
    add_title,
    canvas,
    place_picture,
    shortened,
)

SIDE, GAP, MARGIN = 192, 24, 24
SMALL_SIDE, SMALL_GAP = 96, 8
TITLE, LINE_OF_NAMES = 72, 34
RIGHT, WRONG = "✓", "✗"  # colour is never the only sign


def picture_grid(
    images: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    rows: int = 3,
    columns: int = 3,
    title: str = "",
) -> Figure:
    """The first `rows` x `columns` of `images`, uint8 (N, H, W, 3), each with its class name beneath it.

    `labels` is int (N,), an index into `classes`. With fewer images than places the last places stay empty.
    """
    figure, axes, places = _grid(rows, columns, title, lines=1)
    for image, label, (left, top) in zip(images, labels, places, strict=False):
        place_picture(axes, image, left, top, SIDE)
        name = shortened(classes[int(label)])
        axes.text(left + SIDE / 2, top + SIDE + 6, name, ha="center", va="top", **NAME)
    return figure


def predicted_pictures(
    images: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    classes: Sequence[str],
    rows: int = 4,
    columns: int = 8,
    title: str = "",
) -> Figure:
    """The first `rows` x `columns` of `images` with "predicted (true)": green and ticked, or red and crossed.

    `images` is uint8 (N, H, W, 3); `labels` and `predicted` are int (N,), indices into `classes`.
    """
    figure, axes, places = _grid(rows, columns, title, lines=2)
    for image, label, answer, (left, top) in zip(images, labels, predicted, places, strict=False):
        place_picture(axes, image, left, top, SIDE)
        mark, colour = (RIGHT, GREEN) if answer == label else (WRONG, ORANGE)
        axes.add_patch(
            Rectangle((left - 3, top - 3), SIDE + 6, SIDE + 6, fill=False, edgecolor=colour, linewidth=3)
        )
        name = shortened(classes[int(answer)])
        middle, below = left + SIDE / 2, top + SIDE + 8
        style = {**NAME, "color": colour, "weight": "bold", "fontsize": 11 if len(name) <= 11 else 9}
        axes.text(middle, below, f"{mark} {name}", ha="center", va="top", **style)
        true = f"({shortened(classes[int(label)])})"
        axes.text(middle, below + LINE_OF_NAMES - 6, true, ha="center", va="top", **NAME)
    return figure


def class_rows(
    images: Pictures,
    labels: np.ndarray,
    classes: Sequence[str],
    per_class: int = 10,
    seed: int = 0,
    title: str = "",
) -> Figure:
    """`per_class` images of each class in a row of its own, drawn by `seed`; the class name at the left.

    `images` is uint8 (N, H, W, 3), `labels` int (N,), an index into `classes`. A class with fewer shows all.
    """
    step = SMALL_SIDE + SMALL_GAP
    names = MARGIN + 20 + 14 * max(len(shortened(name)) for name in classes)
    above = TITLE if title else MARGIN
    width, height = names + per_class * step + MARGIN, above + len(classes) * step + MARGIN
    figure, axes = canvas(width, height)
    generator = np.random.default_rng(seed)
    for row, name in enumerate(classes):
        top = above + row * step
        axes.text(names - 16, top + SMALL_SIDE / 2, shortened(name), ha="right", va="center", **NAME)
        chosen = generator.permutation(np.flatnonzero(labels == row))[:per_class]
        for column, index in enumerate(chosen):
            place_picture(axes, images[index], names + column * step, top, SMALL_SIDE)
    _title(figure, title)
    return figure


def picture_blocks(blocks: Mapping[str, np.ndarray], rows: int, columns: int, title: str = "") -> Figure:
    """Blocks of `rows` x `columns` pictures side by side, each under its caption: the same places, to compare.

    Each block is uint8 (N, H, W, 3).
    """
    step, between = SIDE + 8, 40
    above = (TITLE if title else MARGIN) + LINE_OF_NAMES
    block_width = columns * step - 8
    width = 2 * MARGIN + len(blocks) * (block_width + between) - between
    figure, axes = canvas(max(width, 3 * SIDE), above + rows * step - 8 + MARGIN)
    for number, (caption, images) in enumerate(blocks.items()):
        start = MARGIN + number * (block_width + between)
        axes.text(start, above - 10, caption, ha="left", va="bottom", **{**NAME, "color": PALE_INK})
        for index, image in enumerate(images[: rows * columns]):
            row, column = divmod(index, columns)
            place_picture(axes, image, start + column * step, above + row * step, SIDE)
    _title(figure, title)
    return figure


def _grid(rows: int, columns: int, title: str, lines: int) -> tuple[Figure, Axes, list[tuple[int, int]]]:
    """A canvas, and the left and top of each place on it, with `lines` lines of names beneath each."""
    step, above = SIDE + GAP, TITLE if title else MARGIN
    step_down = SIDE + lines * LINE_OF_NAMES + 8
    width = 2 * MARGIN + columns * step - GAP
    figure, axes = canvas(width, above + rows * step_down + 8)
    _title(figure, title)
    places = [
        (MARGIN + column * step, above + row * step_down) for row in range(rows) for column in range(columns)
    ]
    return figure, axes, places


def _title(figure: Figure, title: str) -> None:
    if title:
        width, height = figure.get_size_inches() * RESOLUTION_DPI
        add_title(figure, title, left=MARGIN / width, top=1 - 22 / height)
