"""What all figures share: colours, titles, axes, places for pictures, and how a figure becomes a file.

Every figure has an opaque white face, so that it reads the same on a page of any colour. Colours are those of
Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with any kind of colour vision tell apart.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cifarlab.errors import UserError, nearest, one_of
from cifarlab.files import write_atomic

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
SERIES_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")
INK, PALE_INK, LINE, FACE = "#222222", "#5A5A5A", "#DDDDDD", "#FFFFFF"
RESOLUTION_DPI = 144
FORMATS = ("png", "svg", "pdf")
NAME: dict[str, Any] = {"fontsize": 11, "color": INK, "parse_math": False}
OWN_FONT = "DejaVu Sans"  # which comes with Matplotlib
FONTS_OF_OTHER_SCRIPTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "PingFang SC",
    "Microsoft YaHei", "Hiragino Sans", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS", "Noto Sans",
    "Noto Sans Arabic",
    "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Nirmala UI",
    "Leelawadee UI", "Noto Emoji", "Segoe UI Emoji", "Segoe UI Symbol", "Symbola",
)  # fmt: skip
LONGEST_NAME = 14  # characters of a class name that fit a picture's width
# Without dates, so that the same figure is the same file.
METADATA: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
# Text stays text, which can be searched and copied; SVG's identifiers are the same each time.
VECTOR: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "cifarlab", "pdf.fonttype": 42}


def check_format(path: str | os.PathLike[str]) -> str:
    """The format that the suffix of `path` names, in lower case. Raises UserError for any but png, svg and pdf."""
    path = Path(path)
    format = path.suffix.lower().removeprefix(".")
    if format not in FORMATS:
        allowed = one_of(f".{name}" for name in FORMATS)
        given = repr(path.suffix) if path.suffix else "none"
        raise UserError(
            f"a figure is written as {allowed}, by its suffix; {path} has {given}{nearest(format, FORMATS)}"
        )
    return format


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write `figure` in one step, as PNG, SVG or PDF by the suffix of `path`; the same figure as the same bytes.

    Raises UserError for any other suffix and if the file cannot be written.
    """
    format = check_format(path)
    buffer = BytesIO()
    with rc_context(VECTOR), fonts_for(figure):
        figure.savefig(buffer, format=format, dpi=RESOLUTION_DPI, metadata=METADATA[format])
    write_atomic(Path(path), buffer.getvalue())


@contextmanager
def fonts_for(figure: Figure) -> Iterator[None]:
    """Draw with other fonts of this machine where `figure` has characters, in names, that our own font has not.

    A character that no font here has is drawn as a box, without a warning.
    """
    own = font_manager.get_font(font_manager.findfont(OWN_FONT)).get_charmap()
    shown = {ord(character) for each in figure.findobj(Text) for character in each.get_text()}
    if shown <= own.keys() | {ord("\n")}:
        yield
        return
    installed = set(font_manager.get_font_names())
    others = [name for name in FONTS_OF_OTHER_SCRIPTS if name in installed]
    with rc_context({"font.sans-serif": [OWN_FONT, *others]}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def new_figure(width_inches: float, height_inches: float) -> Figure:
    return Figure(figsize=(width_inches, height_inches), dpi=RESOLUTION_DPI, facecolor=FACE)


def add_title(figure: Figure, title: str, left: float, top: float) -> None:
    """Bold, as large as its width allows: a letter is about 0.68 of the font's size wide."""
    room_points = 72 * figure.get_figwidth() * (0.98 - left)
    size = min(14.0, max(7.0, room_points / (0.68 * max(len(title), 1))))
    figure.text(
        left, top, title, ha="left", va="top", fontsize=size, weight="bold", color=INK, parse_math=False
    )


def plain_axes(axes: Axes) -> None:
    axes.grid(color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE_INK)
    axes.tick_params(colors=PALE_INK, labelsize=10.5)
    axes.xaxis.label.set(color=INK, fontsize=12)
    axes.yaxis.label.set(color=INK, fontsize=12)


def accuracy_axis(axes: Axes) -> None:
    """Whole percents, over at least 5 points: a flat line is shown as flat."""
    low, high = axes.get_ylim()
    if high - low < 0.05:
        middle = min(max((low + high) / 2, 0.025), 0.975)
        axes.set_ylim(middle - 0.025, middle + 0.025)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0, symbol=" %"))


def canvas(width_pixels: int, height_pixels: int) -> tuple[Figure, Axes]:
    """A figure and axes that fill it, with pixels of 1/144 inch from the top left as coordinates."""
    figure = new_figure(width_pixels / RESOLUTION_DPI, height_pixels / RESOLUTION_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width_pixels), ylim=(height_pixels, 0), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def place_picture(axes: Axes, image: np.ndarray, left: float, top: float, side: float) -> None:
    """Put `image`, uint8 (H, W, 3), on a canvas, each of its pixels as a square."""
    picture = AxesImage(
        axes, interpolation="nearest", extent=(left, left + side, top + side, top), origin="upper"
    )
    picture.set_data(image)
    axes.add_image(picture)


def shortened(name: str) -> str:
    """`name`, or its two ends: names of many words often differ in the last one."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 7]}…{name[-6:]}"
