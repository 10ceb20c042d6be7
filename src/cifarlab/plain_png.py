"""Small plain PNG files read many at once: several times as fast as one after the other, for the same pixels.

Plain is of 8 bits, grey or RGB, not interlaced, and of nothing but pixels. Any other file, and one with anything wrong,
is left to Pillow's own reader to judge: `cifarlab.pictures`.
PNG specification, third edition, sections 5.2 to 5.6, 9 and 11.2: https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

MOST_PIXELS = 1 << 16
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">8xL4s2L5BL")  # the header's chunk: length, name, what it says, checksum
MODES = {2: "RGB", 0: "L"}  # by colour type
LAST_FILTER = 4
AT_ONCE = 32  # more are hardly faster, and take more memory


class PlainPng(NamedTuple):
    """What a file says, and its rows as it holds them: each a filter's number, then differences to its neighbours."""

    mode: str
    width: int
    height: int
    rows: bytes


def read_plain_png(data: bytes, size: tuple[int, int] | None = None) -> PlainPng | None:
    """The file of these bytes, every checksum in it verified.

    None if it is not a plain one of MOST_PIXELS or fewer, or not of `size`, width and height, where that is given.
    """
    try:
        length, name, width, height, bits, colours, *how, checksum = HEADER.unpack_from(data)
        if (length, name, bits, how) != (13, b"IHDR", 8, [0, 0, 0]) or not data.startswith(SIGNATURE):
            return None
        if size not in (None, (width, height)) or not 0 < width * height <= MOST_PIXELS:
            return None
        if zlib.crc32(data[12:29]) != checksum:
            return None
        mode = MODES[colours]
        stride = 1 + width * len(mode)
        inflating = zlib.decompressobj()
        rows = inflating.decompress(_compressed(data), stride * height + 1)
    except (KeyError, ValueError, struct.error, zlib.error):
        return None
    if not inflating.eof or len(rows) != stride * height or max(rows[::stride]) > LAST_FILTER:
        return None
    return PlainPng(mode, width, height, rows)


def _compressed(data: bytes) -> bytes:
    """What the IDAT chunks hold. Raises ValueError if there is any other between the header and the end."""
    at, parts = HEADER.size, []
    while True:
        length, name = struct.unpack_from(">L4s", data, at)
        end = at + 8 + length
        if zlib.crc32(data[at + 4 : end]) != struct.unpack_from(">L", data, end)[0]:
            raise ValueError
        if name == b"IDAT":
            parts.append(data[at + 8 : end])
        elif name == b"IEND" and length == 0:
            return b"".join(parts)
        else:
            raise ValueError
        at = end + 4


def pixels_of(files: Sequence[PlainPng]) -> np.ndarray:
    """uint8 (N, H, W, C), C 3 or 1: of files that are all of one mode, width and height."""
    some = (files[start : start + AT_ONCE] for start in range(0, len(files), AT_ONCE))
    return np.concatenate([_pixels_of(each) for each in some])


def _pixels_of(files: Sequence[PlainPng]) -> np.ndarray:
    """Pillow's decoder is given one tall picture of them all, under each other, a row of zeros above each: what a
    filter takes to be above the first row (PNG specification, 9.2)."""
    mode, width, height = files[0].mode, files[0].width, files[0].height
    zeros = bytes(1 + width * len(mode))
    rows = zeros + zeros.join(file.rows for file in files)
    size = width, (1 + height) * len(files)
    tall = Image.frombytes(mode, size, zlib.compress(rows, 0), "zip", mode, 0)
    return np.asarray(tall).reshape(len(files), 1 + height, width, len(mode))[:, 1:]
