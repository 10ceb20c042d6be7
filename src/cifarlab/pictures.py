"""Picture files into arrays, safely: what strangers' files hold is checked before it is decoded.

JPEG, PNG, WebP, GIF (first frame) and BMP are read through Pillow. Everything that uses a network on picture files
reads them here, so that the same file is the same input everywhere.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cifarlab.errors import UserError, nearest, one_of
from cifarlab.plain_png import pixels_of, read_plain_png

MEGAPIXEL = 1_000_000
FULL_SCALE_PIXELS = 25 * MEGAPIXEL  # above it a JPEG is decoded at reduced scale, other formats are refused
LARGEST_PIXELS = 200 * MEGAPIXEL  # above it every picture is refused
LARGEST_FILE_BYTES = (
    512 * 2**20
)  # a file is read whole; the largest JPEG allowed has fewer than 2.7 bytes a pixel
JPEG_REDUCTIONS = (2, 4, 8)  # of width and of height, as libjpeg offers them
RESIZING = Image.Resampling.BILINEAR  # a triangle filter, widened when shrinking, so that it is antialiased
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"})

LETTERBOX_GREY = (128, 128, 128)

PictureSource = str | os.PathLike[str] | bytes | Image.Image
Fit = Literal["squash", "crop", "letterbox"]


class _Jpeg(JpegImageFile):
    """Pillow's JPEG reader without its search for dots per inch, which warns of every broken EXIF tag."""

    def _read_dpi_from_exif(self) -> None:
        return


# Opened by class: `Image.open` would warn of "bombs" at a limit of its own that is global to the process.
OPENERS: dict[str, Callable[[BytesIO], ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
}

# EXIF 2.32, tag 0x0112: what must be done to the stored picture to see it upright.
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {5, 6, 7, 8}

_one_large_at_a_time = (
    threading.Lock()
)  # a progressive JPEG of 200 megapixels takes over 1 GB while it is decoded


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture at the size asked for, and what its file was.

    Attributes:
        pixels: uint8 (height, width, 3), RGB.
        width, height: pixels of the file as it is stored, before it is turned.
        mode: Pillow's name of its colours, such as RGB, L, CMYK or I;16.
    """

    pixels: np.ndarray
    width: int
    height: int
    mode: str


def read_picture(source: PictureSource, height: int, width: int, fit: Fit = "squash") -> np.ndarray:
    """A picture as uint8 (height, width, 3), RGB, whatever its own size, colours and orientation.

    `source` is a path, the bytes of a picture file, or a Pillow image. The picture is turned as its EXIF orientation
    says, transparency is laid on white, 16 bits are scaled to 8, grey and CMYK become RGB (colour profiles are not
    applied), and it is brought to the size asked for with an antialiased triangle filter (Pillow's BILINEAR): squashed
    as the write-ups squash, or the largest part in its middle that has the shape (`crop`), or the whole between grey
    bars (`letterbox`). A picture of that size already keeps its pixels exactly.

    Its size is read from the header: above 25 megapixels a JPEG is decoded at 1/2, 1/4 or 1/8 of its scale, the least
    that brings it to 25 or fewer, and other formats are refused; above 200 megapixels every picture is refused.

    Raises UserError, one line that names the file, if it is missing, unreadable, empty, a folder, not a picture, cut
    short, damaged, without pixels or too large.
    """
    with _loaded(source, _name_of(source)) as loaded:
        return loaded.fitted(height, width, fit)


def examine_picture(data: bytes, name: str, height: int, width: int, fit: Fit = "squash") -> Picture:
    """As `read_picture`, for the bytes of the file called `name`, and what the file was."""
    with _loaded(data, name) as loaded:
        return Picture(loaded.fitted(height, width, fit), *loaded.size, loaded.mode)


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A decoded picture, not turned yet. `size` (width, height) and `mode` are those of its file."""

    rgb: Image.Image
    orientation: int
    size: tuple[int, int]
    mode: str

    def fitted(self, height: int, width: int, fit: Fit) -> np.ndarray:
        size = self._stored(height, width)
        rgb = self.rgb if self.rgb.size == size else _FITTED[fit](self.rgb, size)
        upright = self._upright(rgb)
        return np.frombuffer(upright.tobytes(), np.uint8).reshape(upright.height, upright.width, 3)

    def _stored(self, height: int, width: int) -> tuple[int, int]:
        return (height, width) if self.orientation in SIDEWAYS else (width, height)

    def _upright(self, rgb: Image.Image) -> Image.Image:
        return rgb.transpose(UPRIGHT[self.orientation]) if self.orientation in UPRIGHT else rgb


def _squash(rgb: Image.Image, size: tuple[int, int]) -> Image.Image:
    return rgb.resize(size, RESIZING)


def _crop(rgb: Image.Image, size: tuple[int, int]) -> Image.Image:
    scale = min(rgb.width / size[0], rgb.height / size[1])
    width, height = size[0] * scale, size[1] * scale
    left, top = (rgb.width - width) / 2, (rgb.height - height) / 2
    right, bottom = min(left + width, rgb.width), min(top + height, rgb.height)
    return rgb.resize(size, RESIZING, box=(left, top, right, bottom))


def _letterbox(rgb: Image.Image, size: tuple[int, int]) -> Image.Image:
    scale = min(size[0] / rgb.width, size[1] / rgb.height)
    inside = max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale))
    whole = Image.new("RGB", size, LETTERBOX_GREY)
    whole.paste(rgb.resize(inside, RESIZING), ((size[0] - inside[0]) // 2, (size[1] - inside[1]) // 2))
    return whole


_FITTED: dict[str, Callable[[Image.Image, tuple[int, int]], Image.Image]] = {
    "squash": _squash,
    "crop": _crop,
    "letterbox": _letterbox,
}


def _name_of(source: PictureSource) -> str:
    if isinstance(source, Image.Image):
        return "the image given"
    return "the picture given as bytes" if isinstance(source, bytes) else os.fspath(source)


@contextmanager
def _loaded(source: PictureSource, name: str) -> Iterator[_Loaded]:
    """The picture decoded; the large ones one at a time."""
    if isinstance(source, Image.Image):
        _check_size(name, source.size, LARGEST_PIXELS)
        yield _load(name, source, source.size)
        return
    data = source if isinstance(source, bytes) else read_file(Path(source))
    if not data:
        raise UserError(f"{name} is empty (0 bytes)")
    image = _open(name, data)
    size = image.size
    if image.width * image.height <= FULL_SCALE_PIXELS:
        yield _load(name, image, size)
        return
    with _one_large_at_a_time:
        _reduce(image)
        yield _load(name, image, size)


def find_pictures(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The picture files meant by `paths`: a file as given; for a folder, those in it and below, sorted by path.

    In folders only JPEG, PNG, WebP, GIF and BMP files are taken, by suffix in any case; hidden files and folders (a
    leading dot) are left out. Links are followed, each folder once. Raises UserError for a path that does not exist, a
    folder that cannot be read, and a folder without pictures.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise UserError(f"no such file or folder: {path}{nearest_sibling(path)}")
            found.append(path)
            continue
        inside = sorted(_pictures_below(path))
        if not inside:
            raise UserError(
                f"no pictures in the folder {path}: {one_of(OPENERS)} files are looked for, by suffix"
            )
        found.extend(inside)
    return found


def _pictures_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(parent, name)


def nearest_sibling(path: Path) -> str:
    """The end of a message about a path that does not exist: what beside it has a name like that."""
    try:
        return nearest(path.name, os.listdir(path.parent))
    except OSError:
        return ""


def read_file(path: str | Path) -> bytes:
    """The bytes of a regular file of at most 512 MiB. Raises UserError, one line, for anything else."""
    try:
        status = os.stat(path)  # before opening: a named pipe would block
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path} is a folder; a picture file is needed")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file; a picture file is needed")
        if status.st_size > LARGEST_FILE_BYTES:
            size, most = status.st_size / 2**20, LARGEST_FILE_BYTES // 2**20
            raise UserError(f"{path} is too large: {size:.0f} MiB; at most {most} MiB are read")
        with open(path, "rb", buffering=0) as file:
            data = file.read(status.st_size + 1)  # one call for all of it, where `readall` takes five
            return data if len(data) == status.st_size else data + file.readall()
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error


def _open(name: str, data: bytes) -> Image.Image:
    """The picture with its header read and its size checked, not decoded yet unless it is a small plain PNG."""
    format = _format_of(data)
    if format is None:
        raise UserError(f"{name} is not a picture that can be read: {one_of(OPENERS)} is needed")
    most = LARGEST_PIXELS if format == "JPEG" else FULL_SCALE_PIXELS
    if format in SIZE_READERS:
        _check_size(name, SIZE_READERS[format](data), most, format)
    if format == "PNG" and (plain := read_plain_png(data)) is not None:
        pixels = pixels_of([plain])[0]
        return Image.fromarray(pixels if plain.mode == "RGB" else pixels[:, :, 0])
    try:
        image = OPENERS[format](BytesIO(data))
    except Exception as error:
        raise _damaged(name, format, error) from error
    _check_size(name, image.size, most, format)
    return image


def _format_of(data: bytes) -> str | None:
    """The format that the first bytes declare; names and suffixes are not trusted."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return "BMP" if data.startswith(b"BM") else None


def _check_size(name: str, size: tuple[int, int] | None, most_pixels: int, format: str | None = None) -> None:
    if size is None:  # the header is cut short: its reader will say so
        return
    width, height = size
    if width <= 0 or height <= 0:
        raise UserError(f"{name} has no pixels: it is {width} x {height}")
    if width * height > most_pixels:
        given = f"{width} x {height}, {width * height / MEGAPIXEL:.1f} megapixels"
        allowed = f"at most {most_pixels // MEGAPIXEL}" + (f" for {format}" if format else "")
        jpeg = f" ({LARGEST_PIXELS // MEGAPIXEL} for JPEG)" if most_pixels < LARGEST_PIXELS else ""
        raise UserError(f"{name} is too large: {given}; {allowed} are allowed{jpeg}")


def _gif_size(data: bytes) -> tuple[int, int] | None:
    """The screen, widened by the first frame as Pillow widens it. Pillow may fill such a frame when it opens the file.

    GIF89a specification, sections 18 to 26: https://www.w3.org/Graphics/GIF/spec-gif89a.txt
    """
    try:
        width, height, flags = struct.unpack_from("<HHB", data, 6)
        at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        while data[at] not in b",;":
            at += 1
            if (
                data[at - 1] == 0x21
            ):  # an extension: its label, then blocks that start with their length, then a 0
                at += 1
                while data[at]:
                    at += data[at] + 1
        left, top, frame_width, frame_height = struct.unpack_from("<4H", data, at + 1)
    except (struct.error, IndexError):
        return None
    return max(width, left + frame_width), max(height, top + frame_height)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """The canvas, which libwebp allocates when it opens the file. RFC 9649, sections 2.5 to 2.7."""
    if len(data) < 30:
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


# Formats that take memory for their pixels as soon as they are opened.
SIZE_READERS: dict[str, Callable[[bytes], tuple[int, int] | None]] = {"GIF": _gif_size, "WebP": _webp_size}


def _reduce(image: Image.Image) -> None:
    """Ask libjpeg for the least reduction that brings the picture to FULL_SCALE_PIXELS or fewer."""
    for reduction in JPEG_REDUCTIONS:
        if image.width * image.height <= FULL_SCALE_PIXELS * reduction**2:
            image.draft(None, (image.width // reduction, image.height // reduction))
            return


def _load(name: str, image: Image.Image, size: tuple[int, int]) -> _Loaded:
    format = "WebP" if image.format == "WEBP" else image.format or "image"
    mode = image.mode
    try:
        image.load()
        orientation = _orientation(image.info.get("exif"))
        return _Loaded(_on_white(name, image), orientation, size, mode)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every kind there is
        raise _damaged(name, format, error) from error


def _on_white(name: str, image: Image.Image) -> Image.Image:
    """The picture as RGB, with what is behind its transparent parts white."""
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and transparent is None:
        return image
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(name, image, transparent)
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        image.info["transparency"] = tuple(
            value >> 8 for value in transparent
        )  # 16 bits, as Pillow read the pixels
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _to_8_bits(name: str, image: Image.Image, transparent: int | None) -> Image.Image:
    """Grey of 16 bits (modes I;16 and I, 0..65535) scaled to 0..255; grey in floats (mode F) must be 0..255 already.

    `transparent` is the value, of 16 bits, that a PNG declares to be transparent.
    """
    values = np.asarray(image)
    most = 255 if image.mode == "F" else 65535
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= most):
        raise UserError(f"{name} has values from {low} to {high}; 0 to {most} is needed in mode {image.mode}")
    grey = np.rint(values * (255 / most)).astype(np.uint8)
    if transparent is None:
        return Image.fromarray(grey)
    return Image.merge(
        "LA", [Image.fromarray(grey), Image.fromarray(np.uint8(255) * (values != transparent))]
    )


def _orientation(exif: object) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where there is none or the block is broken.

    Read from the first directory of the TIFF structure (EXIF 2.32, 4.6.2) rather than by Pillow, which parses every tag
    and warns of the broken ones.
    """
    if not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "L", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for at in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, value = struct.unpack_from(order + "H6xH", tiff, at)
            if tag == ORIENTATION_TAG:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _damaged(name: str, format: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if reason == "not identified by this driver":  # Pillow's words for a width or a height of 0
        reason = "its header gives it no size"
    return UserError(f"{name} is damaged or cut short: not a whole {format} ({reason})")
