"""What strangers' files hold becomes the right pixels, or one clear line."""

import os
import stat
import struct
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cifarlab import pictures
from cifarlab.errors import UserError
from cifarlab.pictures import find_pictures, read_picture

SOURCE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
EXIF_ORIENTATION = 0x0112


def encoded(image: Image.Image, format: str, **settings: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **settings)  # type: ignore[arg-type]
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, transparency: bytes = b"") -> bytes:
    """A PNG as its specification builds it, for what Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    extra = chunk(b"tRNS", transparency) if transparency else b""
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pixel(data: bytes | Image.Image) -> list[int]:
    return read_picture(data, 1, 1)[0, 0].tolist()


# Pixels


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP"])
def test_a_picture_of_the_networks_size_keeps_its_pixels(format: str, tmp_path: Path) -> None:
    path = tmp_path / "misnamed.jpg"  # what counts is inside
    path.write_bytes(encoded(Image.fromarray(SOURCE), format, lossless=True))
    got = read_picture(path, 24, 40)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, SOURCE)


def test_every_format_is_read_and_squashed_to_size() -> None:
    flat = Image.new("RGB", (50, 20), (200, 30, 90))
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        got = read_picture(encoded(flat, format), 32, 16)
        assert got.shape == (32, 16, 3)
        np.testing.assert_allclose(got, np.broadcast_to([200, 30, 90], got.shape), atol=3)


def test_shrinking_is_antialiased() -> None:
    checks = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    np.testing.assert_allclose(read_picture(encoded(Image.fromarray(checks), "PNG"), 32, 32), 127.5, atol=4)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    quadrants = np.zeros((64, 128, 3), np.uint8)
    quadrants[:32, 64:], quadrants[32:, :64], quadrants[32:, 64:] = 80, 160, 240
    # EXIF 2.32, table of tag 0x0112: where the stored first row and column are seen.
    upright = {
        1: quadrants,
        2: quadrants[:, ::-1],
        3: quadrants[::-1, ::-1],
        4: quadrants[::-1],
        5: quadrants.transpose(1, 0, 2),
        6: np.rot90(quadrants, -1),
        7: quadrants[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(quadrants),
    }[orientation]
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    data = encoded(Image.fromarray(quadrants), format, exif=exif, quality=95)
    height, width = upright.shape[:2]
    centres = np.s_[8::16, 8::16]
    np.testing.assert_allclose(read_picture(data, height, width)[centres], upright[centres], atol=6)
    in_memory = Image.open(BytesIO(data))
    np.testing.assert_array_equal(read_picture(in_memory, 32, 32), read_picture(data, 32, 32))


@pytest.mark.parametrize(
    "junk", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 20]
)
def test_broken_exif_is_tolerated_in_silence(junk: bytes) -> None:
    # Pillow warns of such blocks when it opens the file, and warnings are errors here.
    whole = encoded(Image.fromarray(SOURCE), "JPEG", exif=b"Exif\0\0" + junk)
    no_density = whole.replace(b"JFIF\0", b"JFIX\0")  # Pillow then looks for the density in EXIF
    for data in (whole, no_density):
        assert read_picture(data, 24, 40).shape == (24, 40, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128)).convert(mode)
    assert pixel(clear) == [255, 255, 255]
    assert pixel(half) == pytest.approx([127, 127, 127], abs=1)


def test_transparent_colours_of_palettes_greys_and_16_bits_are_white() -> None:
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert pixel(encoded(palette, "PNG")) == [0, 255, 0]
    assert pixel(encoded(palette, "PNG", transparency=1)) == [255, 255, 255]
    assert pixel(encoded(palette, "PNG", transparency=b"\xff\x00")) == [255, 255, 255]
    assert pixel(encoded(palette, "GIF", transparency=1)) == [255, 255, 255]
    grey = png(1, 1, 16, 0, b"\0" + struct.pack(">H", 30000), struct.pack(">H", 30000))
    assert pixel(grey) == [255, 255, 255]
    colour = struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)
    assert pixel(png(1, 1, 16, 2, b"\0" + colour)) == [0x12, 0x56, 0x9A]
    assert pixel(png(1, 1, 16, 2, b"\0" + colour, colour)) == [255, 255, 255]


def test_grey_of_every_depth_is_scaled_not_clipped() -> None:
    assert pixel(Image.new("L", (2, 2), 77)) == [77] * 3
    assert pixel(Image.new("1", (2, 2), 1)) == [255] * 3
    values = np.array([[0, 7 * 257, 30000, 65535]], np.uint16)
    expected = [0, 7, 117, 255]
    sixteen = png(4, 1, 16, 0, b"\0" + values.astype(">u2").tobytes())
    for picture in (sixteen, Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        assert read_picture(picture, 1, 4)[0, :, 1].tolist() == expected
    assert pixel(Image.fromarray(np.full((2, 2), 99.6, np.float32))) == [100] * 3
    with pytest.raises(UserError, match=r"values from 0.5 to 70000.0; 0 to 255 is needed"):
        pixel(Image.fromarray(np.array([[0.5, 70000.0]], np.float32)))


def test_cmyk_becomes_rgb() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert pixel(encoded(cyan, "JPEG", quality=95)) == pytest.approx([0, 255, 255], abs=4)


def test_the_first_frame_of_a_gif_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert pixel(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]


# Limits


def test_limits_by_format(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []
    load = pictures._Jpeg.load
    monkeypatch.setattr(pictures._Jpeg, "load", lambda image: (decoded.append(image.size), load(image))[1])
    # 92 megapixels: above the size where Pillow's own check would warn.
    large = encoded(Image.new("L", (10_000, 9_200), 140), "JPEG")
    np.testing.assert_allclose(read_picture(large, 32, 32), 140, atol=2)
    assert decoded[0] == (5_000, 4_600)  # half the scale brings it under 25 megapixels
    with pytest.raises(
        UserError, match=r"too large: 20000 x 20000, 400.0 megapixels; at most 200 for JPEG are allowed"
    ):
        read_picture(
            large.replace(struct.pack(">HH", 9_200, 10_000), struct.pack(">HH", 20_000, 20_000), 1), 32, 32
        )


def test_other_formats_are_refused_from_their_header_alone() -> None:
    small = Image.fromarray(SOURCE)
    gif = encoded(small, "GIF")
    frame = gif.index(b",\0\0\0\0" + struct.pack("<HH", 40, 24))
    headers = {
        "PNG": png(5_001, 5_000, 8, 2, b"")[:60],
        "BMP": encoded(small, "BMP").replace(struct.pack("<ii", 40, 24), struct.pack("<ii", 5_001, 5_000)),
        "GIF": gif.replace(struct.pack("<HH", 40, 24), struct.pack("<HH", 5_001, 5_000), 1),
        "GIF frame": gif[: frame + 1] + struct.pack("<4H", 40_000, 40_000, 20_000, 20_000) + gif[frame + 9 :],
        "WebP": b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0"
        + bytes([0x88, 0x13, 0, 0x87, 0x13, 0])
        + bytes(9),
    }
    for name, data in headers.items():
        with pytest.raises(
            UserError, match=rf"too large: .* megapixels; at most 25 for {name[:4].strip()} .*200 for JPEG"
        ):
            read_picture(data, 32, 32)
    for lossless in (True, False):  # the two small headers of WebP, of 30 megapixels' worth
        data = encoded(Image.new("RGB", (6_000, 5_000)), "WEBP", lossless=lossless, method=0)
        with pytest.raises(UserError, match="too large: 6000 x 5000, 30.0 megapixels"):
            read_picture(data[:40], 32, 32)


def test_files_are_not_read_beyond_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "LARGEST_FILE_BYTES", 2**20)
    path = tmp_path / "large.png"
    path.write_bytes(b"\x89PNG")
    os.truncate(path, 2**20 + 1)
    with pytest.raises(UserError, match=r"large.png is too large: 1 MiB; at most 1 MiB are read"):
        read_picture(path, 32, 32)


@pytest.mark.parametrize("stated_bytes", [0, 40, 100_000])
def test_a_file_is_read_whole_whatever_length_is_stated(
    stated_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of what is in /proc, or while somebody writes it."""
    path = tmp_path / "1.png"
    path.write_bytes(encoded(Image.fromarray(SOURCE), "PNG"))
    status = SimpleNamespace(st_mode=stat.S_IFREG, st_size=stated_bytes)
    with monkeypatch.context() as patch:  # pytest itself needs the real one where this fails
        patch.setattr(pictures.os, "stat", lambda *_, **__: status)
        got = read_picture(path, 24, 40)
    np.testing.assert_array_equal(got, SOURCE)


# Files that are no good


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    image = Image.fromarray(SOURCE)
    files = [encoded(image, format) for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP")]
    files.append(encoded(image, "JPEG", progressive=True))
    path = tmp_path / "cut"
    for data in files:
        for length in range(1, len(data) - 12, 37):
            path.write_bytes(data[:length])
            with pytest.raises(UserError, match=r"^\S*cut is (damaged or cut short|not a picture)") as caught:
                read_picture(path, 32, 32)
            assert "\n" not in str(caught.value)


def test_flipped_bytes_never_surprise() -> None:
    image, generator = Image.fromarray(SOURCE), np.random.default_rng(1)
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        data = encoded(image, format)
        for _ in range(200):
            flipped = bytearray(data)
            for position in generator.integers(0, min(len(data), 400), 3):
                flipped[position] = generator.integers(0, 256)
            try:
                assert read_picture(bytes(flipped), 8, 8).shape == (8, 8, 3)
            except UserError as error:
                assert "\n" not in str(error)


def test_each_bad_file_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture at all")
    (tmp_path / "old.tiff").write_bytes(encoded(Image.fromarray(SOURCE), "TIFF"))
    (tmp_path / "flat.png").write_bytes(png(0, 5, 8, 2, b""))
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    expected = {
        "empty.png": r"is empty \(0 bytes\)",
        "text.jpg": "is not a picture that can be read: JPEG, PNG, WebP, GIF or BMP is needed",
        "old.tiff": "is not a picture that can be read",
        "flat.png": "its header gives it no size",
        "folder.png": "is a folder; a picture file is needed",
        "pipe.png": "is not a regular file",
        "missing.png": "^no such file: ",
        "zero\0byte.png": "cannot read .*null",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=message) as caught:
            read_picture(tmp_path / name, 32, 32)
        assert name[:4] in str(caught.value)


def test_an_unreadable_file_has_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "secret.png").write_bytes(b"x")
    monkeypatch.setattr(pictures, "open", refuse, raising=False)
    with pytest.raises(UserError, match=r"cannot read '\S*secret.png': Permission denied"):
        read_picture(tmp_path / "secret.png", 32, 32)


# Finding


def test_folders_are_searched_in_order_and_files_taken_as_given(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "g.bmp").touch()
    names = [
        "b.JPG",
        "a.png",
        "sub/c.webp",
        "sub/deep/d.gif",
        ".hidden.png",
        ".cache/e.png",
        "notes.txt",
        "sub/f.jpeg",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "sub" / "linked").symlink_to(outside, target_is_directory=True)
    found = find_pictures([tmp_path / "notes.txt", tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "notes.txt",
        "a.png",
        "b.JPG",
        "sub/c.webp",
        "sub/deep/d.gif",
        "sub/f.jpeg",
        "sub/linked/g.bmp",
    ]


def test_what_cannot_be_found_is_named(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(
        UserError, match=r"no such file or folder: \S*holyday.jpg; did you mean 'holiday.jpg'\?"
    ):
        find_pictures([str(tmp_path / "holyday.jpg")])
    (tmp_path / "none").mkdir()
    with pytest.raises(
        UserError, match=r"no pictures in the folder \S*none: JPEG, PNG, WebP, GIF or BMP files"
    ):
        find_pictures([tmp_path / "none"])
