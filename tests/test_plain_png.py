"""Small plain PNG files: the pixels that Pillow's own reader gives, and nothing read that is damaged."""

import struct
import zlib
from io import BytesIO

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cifarlab.pictures import examine_picture
from cifarlab.plain_png import SIGNATURE, pixels_of, read_plain_png

SEEDS = st.integers(0, 2**32 - 1)


def _png(header: bytes, rows: bytes) -> bytes:
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND")
    framed = (struct.pack(">L", len(c) - 4) + c + struct.pack(">L", zlib.crc32(c)) for c in chunks)
    return SIGNATURE + b"".join(framed)


@given(
    st.sampled_from(["L", "RGB", "RGBA", "LA", "P", "1", "I;16"]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 9),
    SEEDS,
)
def test_a_small_png_is_what_pillow_reads(mode: str, width: int, height: int, level: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 256, (height, width, 4), np.uint8) // np.uint8(
        generator.choice([1, 16, 255])
    )
    image = Image.fromarray(values).convert("RGBA" if mode == "LA" else "RGB")
    file = BytesIO()
    (image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)).save(
        file, "PNG", compress_level=level
    )
    data = file.getvalue()
    plain = mode in ("L", "RGB")
    assert (read_plain_png(data) is not None) == plain
    ours = examine_picture(data, "x", height, width)
    with Image.open(BytesIO(data)) as theirs:
        assert (ours.mode, ours.width, ours.height) == (theirs.mode, *theirs.size)
        if plain:
            assert np.array_equal(ours.pixels, np.asarray(theirs.convert("RGB")))


@settings(max_examples=30)
@given(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9), st.integers(1, 70), SEEDS)
def test_many_at_once_are_what_pillow_reads_one_by_one(
    channels: int, width: int, height: int, n: int, seed: int
) -> None:
    """Rows of any filter, the first too, where what is above counts as zeros."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, 256, (n, height, 1 + width * channels), np.uint8)
    rows[:, :, 0] = generator.integers(0, 5, (n, height))
    header = struct.pack(">2L5B", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    files = [_png(header, each.tobytes()) for each in rows]
    found = [each for data in files if (each := read_plain_png(data, (width, height)))]
    assert len(found) == n and read_plain_png(files[0], (width + 1, height)) is None
    for data, pixels in zip(files, pixels_of(found), strict=True):
        with Image.open(BytesIO(data)) as theirs:
            assert np.array_equal(pixels, np.asarray(theirs).reshape(height, width, channels))


def test_a_filter_that_there_is_not_is_pillows_to_judge() -> None:
    header = struct.pack(">2L5B", 2, 2, 8, 0, 0, 0, 0)
    assert read_plain_png(_png(header, b"\4ab\4cd")) is not None
    assert read_plain_png(_png(header, b"\4ab\5cd")) is None


@given(st.data())
def test_a_damaged_small_png_is_pillows_to_judge(data) -> None:
    file = BytesIO()
    Image.fromarray(np.arange(9 * 7 * 3, dtype=np.uint8).reshape(9, 7, 3)).save(file, "PNG")
    content = bytearray(file.getvalue())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    assert read_plain_png(bytes(content)) is None
