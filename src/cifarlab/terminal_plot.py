"""Curves in a terminal: lines of braille characters (2 x 4 dots a cell), each with its mark: colour is not needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.text import Text

BRAILLE = 0x2800  # the empty cell; the bits of its dots by (row, column) are Unicode's
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
MARKS = "oxs+*v#%"
COLOURS = (
    "#56B4E9",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#D55E00",
    "#F0E442",
    "#0072B2",
    "#999999",
)  # Okabe and Ito
MARK_EVERY = 9  # cells between two marks of a line
AXIS_CELLS = 9  # at the left, for the values


@dataclass(frozen=True)
class Line:
    """Points (x, y) in the order of x; those that are not finite leave a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]

    @property
    def finite(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


def plot(
    lines: Sequence[Line], *, width: int, height: int, title: str, x_name: str, form: Callable[[float], str]
) -> Text:
    """`lines` over each other in `width` x `height` cells, with axes; values of y are written by `form`."""
    text = Text(no_wrap=True)
    text.append(title.rjust(AXIS_CELLS - 1), style="bold")
    for index, line in enumerate(lines):
        text.append(f"  {MARKS[index % len(MARKS)]} {line.name}", style=COLOURS[index % len(COLOURS)])
    text.append("\n")
    points = [point for line in lines for point in line.finite]
    if not points:
        return text.append(f"{' ' * AXIS_CELLS}nothing to draw yet")
    area = _Area(points, width - AXIS_CELLS, height - 3)
    for index, line in enumerate(lines):
        area.draw(line.finite, index)
    for row in range(area.rows):
        value = area.top - (area.top - area.bottom) * row / max(1, area.rows - 1)
        labelled = row in (0, area.rows // 2, area.rows - 1)
        text.append((form(value) if labelled else "").rjust(AXIS_CELLS - 2), style="dim")
        text.append(" │", style="dim")
        for cell, index in area.row(row):
            text.append(cell, style="" if index is None else COLOURS[index % len(COLOURS)])
        text.append("\n")
    first, last = f"{area.left:g}", f"{area.right:g}"
    text.append(" " * (AXIS_CELLS - 1) + "└" + "─" * area.columns + "\n", style="dim")
    between = x_name.center(area.columns - len(first) - len(last))
    text.append(f"{' ' * AXIS_CELLS}{first}{between}{last}", style="dim")
    return text


class _Area:
    """The cells between the axes."""

    def __init__(self, points: Sequence[tuple[float, float]], columns: int, rows: int) -> None:
        self.columns, self.rows = max(columns, 2), max(rows, 2)
        xs, ys = [x for x, _ in points], [y for _, y in points]
        self.left, self.right = min(xs), max(max(xs), min(xs) + 1)
        self.bottom, self.top = min(ys), max(ys)
        if self.top - self.bottom < 1e-9:
            self.bottom, self.top = self.bottom - 0.5, self.top + 0.5
        self.bits: dict[tuple[int, int], int] = {}
        self.owner: dict[tuple[int, int], int] = {}
        self.marks: dict[tuple[int, int], int] = {}

    def draw(self, points: Sequence[tuple[float, float]], index: int) -> None:
        dots = [self._dot(x, y) for x, y in points]
        for start, end in pairwise(dots):
            for dot in _between(start, end):
                self._set(dot, index)
        last_marked = -math.inf
        for column, row in dots:
            cell = (row // 4, column // 2)
            if column // 2 - last_marked >= MARK_EVERY and cell not in self.marks:
                self.marks[cell] = index
                last_marked = column // 2

    def row(self, row: int) -> Iterator[tuple[str, int | None]]:
        """The cells of a row: a character, and the line that gives it its colour."""
        for column in range(self.columns):
            cell = (row, column)
            marked, bits = self.marks.get(cell), self.bits.get(cell, 0)
            if marked is not None:
                yield MARKS[marked % len(MARKS)], marked
            else:
                yield (chr(BRAILLE + bits) if bits else " "), self.owner.get(cell)

    def _dot(self, x: float, y: float) -> tuple[int, int]:
        across = (x - self.left) / (self.right - self.left) * (2 * self.columns - 1)
        down = (self.top - y) / (self.top - self.bottom) * (4 * self.rows - 1)
        return round(across), round(down)

    def _set(self, dot: tuple[int, int], index: int) -> None:
        column, row = dot
        cell = (row // 4, column // 2)
        self.bits[cell] = self.bits.get(cell, 0) | DOTS[row % 4][column % 2]
        self.owner[cell] = index


def _between(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    for step in range(steps + 1):
        part = step / steps
        yield round(start[0] + part * (end[0] - start[0])), round(start[1] + part * (end[1] - start[1]))
