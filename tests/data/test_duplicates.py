"""Duplicates: what is found, what is not, and that looking for them does not take the square of the time."""

import time
from io import BytesIO

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from tests.data.drawn_pictures import draw

from cifarlab.data.duplicates import (
    MOST_BITS,
    difference_hashes,
    exact_groups,
    near_groups,
    near_pairs,
)


def _pixels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture.convert("RGB").resize((32, 32), 2)) for picture in pictures])


def _groups(pictures: list[Image.Image]) -> list[int]:
    pixels = _pixels(pictures)
    sha256 = np.arange(1, len(pixels) + 1, dtype=np.uint8)[:, None].repeat(32, axis=1)
    return near_groups(pixels, sha256, difference_hashes(pixels), np.ones(len(pixels), bool)).tolist()


def _as_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


def test_the_same_picture_saved_otherwise_is_near() -> None:
    pictures = [draw(seed, 300, 200) for seed in range(20)]
    same = [
        _as_jpeg(pictures[3], 60),
        pictures[3].resize((90, 70)),
        ImageEnhance.Brightness(pictures[7]).enhance(1.05),
    ]
    assert _groups(pictures + same) == [*range(20), 3, 3, 7]


def test_plain_pictures_are_not_taken_for_each_other() -> None:
    plain = [Image.new("RGB", (40, 40), colour) for colour in ("white", "black", "red", "navy")]
    assert _groups(plain) == [0, 1, 2, 3]


def test_files_of_the_same_bytes_are_one_group_whatever_is_in_them() -> None:
    sha256 = np.array([[1] * 32, [2] * 32, [1] * 32, [0] * 32, [0] * 32], np.uint8)
    assert exact_groups(sha256).tolist() == [0, 1, 0, 3, 4]
    pixels = _pixels([draw(seed) for seed in range(5)])
    readable = np.array([True, True, True, False, False])
    assert near_groups(pixels, sha256, difference_hashes(pixels), readable).tolist() == [0, 1, 0, 3, 4]


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 60))
def test_every_pair_within_the_distance_is_found(seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    hashes = generator.integers(0, 2**64, n, dtype=np.uint64)
    for place in range(n // 2, n):  # the second half: one of the first with up to 6 bits turned
        bits = generator.choice(64, generator.integers(0, 7), replace=False)
        hashes[place] = hashes[generator.integers(0, n // 2)]
        for bit in bits:
            hashes[place] ^= np.uint64(1) << np.uint64(bit)
    distances = np.bitwise_count(hashes[:, None] ^ hashes)
    expected = {(a, b) for a, b in np.argwhere(distances <= MOST_BITS).tolist() if a < b}
    found = {(a, b) for a, b in near_pairs(hashes).tolist()}
    assert found <= expected
    assert _closed(found, n) == _closed(expected, n)


def _closed(pairs: set[tuple[int, int]], n: int) -> list[int]:
    group = list(range(n))
    for a, b in sorted(pairs):
        low, high = sorted((group[a], group[b]))
        group = [low if each == high else each for each in group]
    return group


@settings(max_examples=50)
@given(st.permutations(range(10)), st.lists(st.booleans(), min_size=9, max_size=9))
def test_what_is_linked_through_others_is_one_group(order: list[int], linked: list[bool]) -> None:
    """Hashes of which each is 3 bits from the next and 6 from the one after, but for breaks, which are of 6 bits."""
    turned = [0, *((0b111 if link else 0b111111) << 6 * place for place, link in enumerate(linked))]
    hashes = np.bitwise_xor.accumulate(np.array(turned, np.uint64))[order]
    chains = np.cumsum([0, *(not link for link in linked)])[order].tolist()
    pixels = np.full((10, 32, 32, 3), 128, np.uint8)
    sha256 = np.arange(1, 11, dtype=np.uint8)[:, None].repeat(32, axis=1)
    found = near_groups(pixels, sha256, hashes, np.ones(10, bool))
    assert found.tolist() == [chains.index(chain) for chain in chains]


def test_thirty_thousand_hashes_take_seconds() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 30_000, dtype=np.uint64)
    hashes[-1] = hashes[0] ^ np.uint64(0b1001)
    began = time.process_time()
    assert near_pairs(hashes).tolist() == [[0, 29_999]]
    assert time.process_time() - began < 5
