"""Pictures that are in a data set twice: the same file, or the same picture at another size, quality or brightness.

Near duplicates are looked for by 64-bit perceptual hashes that differ in a few bits, and are taken for that only where
their pixels agree as well: hashes of plain pictures (sky, drawings on white) are alike without the pictures being so.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np

from cifarlab.process import available_cores

MOST_BITS = 4  # of 64 that the hashes of near duplicates differ in
BANDS = 8  # of 8 bits: hashes that differ in 4 bits are equal in 4 bands or more
LARGEST_BUCKET = 4_000  # hashes that are compared each with each
PAIRS_AT_ONCE = 1 << 20  # about 60 MB
MOST_THREADS = 4  # each has that many pairs in memory
THUMBNAIL = 16  # pixels a side of what is compared
SMALLEST_CORRELATION = 0.98  # less finds pairs among scikit-learn's digits that two hands wrote
LARGEST_DIFFERENCE = 16.0  # of 255, mean over a thumbnail's pixels
PICTURES_AT_ONCE = 2_048
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue: ITU-R BT.601


def exact_groups(sha256: np.ndarray) -> np.ndarray:
    """int64 (N,): the number of the first file with the same bytes, for SHA-256 uint8 (N, 32).

    Zeros, of a file that could not be read, are equal to nothing.
    """
    rows = np.ascontiguousarray(sha256).view("V32")[:, 0]
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    groups = first[inverse.reshape(-1)].astype(np.int64)
    unread = ~sha256.any(axis=1)
    groups[unread] = np.flatnonzero(unread)
    return groups


def near_groups(
    pixels: np.ndarray, sha256: np.ndarray, hashes: np.ndarray, readable: np.ndarray
) -> np.ndarray:
    """int64 (N,): the number of the first of the pictures that are the same or nearly so, exact duplicates among them.

    Of pixels uint8 (N, S, S, 3), the files' SHA-256 uint8 (N, 32), `difference_hashes` uint64 (N,) and whether a
    picture could be read at all, bool (N,). Groups are closed: where a is near b and b near c, all three are one group.
    """
    exact = exact_groups(sha256)
    candidates = np.flatnonzero((exact == np.arange(len(exact))) & readable)
    pairs = candidates[near_pairs(hashes[candidates])]
    pairs = pairs[_alike(pixels, pairs)]
    return _lowest_linked(len(exact), pairs)[exact]


def _lowest_linked(n: int, pairs: np.ndarray) -> np.ndarray:
    """int64 (n,): of n places, the lowest that each is linked to by pairs (P, 2), directly or through others.

    Not by SciPy's connected components: to import them takes longer than the rest of `near_groups` for 60,000 pictures.
    """
    lowest = np.arange(n)
    while True:
        ends = np.sort(lowest[pairs], axis=1)
        if np.array_equal(ends[:, 0], ends[:, 1]):
            return lowest
        np.minimum.at(lowest, ends[:, 1], ends[:, 0])
        while not np.array_equal(lowest[lowest], lowest):
            lowest = lowest[lowest]


def difference_hashes(pixels: np.ndarray) -> np.ndarray:
    """uint64 (N,), for uint8 (N, S, S, 3): of 8 rows of 9 cells, whether each cell is darker than the next of its row.

    Source: N. Krawetz, "Kind of Like That" (hackerfactor.com, 2013), there called dHash.
    """
    grey = _cells(pixels, 8, 9) @ LUMA
    bits = np.packbits(grey[:, :, :-1] < grey[:, :, 1:], axis=2)
    return np.ascontiguousarray(bits[:, :, 0]).view(">u8")[:, 0].astype(np.uint64)


def near_pairs(hashes: np.ndarray) -> np.ndarray:
    """int64 (P, 2), first below second: places in `hashes`, uint64 (N,), that differ in MOST_BITS bits or fewer.

    By the pigeonhole principle such hashes are equal in half of BANDS bands: for each choice of that half, those equal
    in it lie beside each other once sorted. Time grows as N log N, not as its square, but for hashes of which many are
    equal in 32 of their bits; of such a heap of more than LARGEST_BUCKET, neighbours alone are compared. Of hashes that
    are equal in all bits each is paired with the first.
    """
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    found = [np.stack([first[inverse[repeated]], repeated], axis=1)]
    bands = _bands(values)
    threads = min(MOST_THREADS, available_cores())  # sorting goes on without Python's lock
    with ThreadPoolExecutor(threads) as pool:
        for pairs in pool.map(
            lambda chosen: _near_and_equal_in(values, bands[list(chosen)]),
            combinations(range(BANDS), BANDS - MOST_BITS),
        ):
            found.append(np.sort(first[pairs], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _near_and_equal_in(values: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """int64 (P, 2): places in `values`, uint64 (N,), that are near and equal in all of these of their `bands`."""
    key = np.zeros(len(values), np.uint32)
    for band in bands:
        key = (key << np.uint32(8)) | band
    order, key = _sorted_repeats(key)
    found = [np.empty((0, 2), np.int64)]
    for a, b in _pairs_of_equals(key):
        a, b = order[a], order[b]
        near = np.bitwise_count(values[a] ^ values[b]) <= MOST_BITS
        found.append(np.stack([a[near], b[near]], axis=1))
    return np.concatenate(found)


def _sorted_repeats(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places int64 (R,) of those of `keys`, uint32 (N,), that are there more than once, by key and place; and the keys.

    Sorted as one number of key and place: NumPy sorts numbers several times faster than it finds their order.
    """
    numbered = np.sort((keys.astype(np.uint64) << np.uint64(32)) | np.arange(len(keys), dtype=np.uint64))
    keys = (numbered >> np.uint64(32)).astype(np.uint32)
    same = keys[1:] == keys[:-1]
    repeated = np.flatnonzero(np.r_[same, False] | np.r_[False, same]) if len(keys) else np.empty(0, np.int64)
    return (numbered[repeated] & np.uint64(0xFFFFFFFF)).astype(np.int64), keys[repeated]


def _bands(values: np.ndarray) -> np.ndarray:
    """uint32 (BANDS, N): every eighth bit is a band, so that each holds bits of the whole picture's height."""
    bits = np.unpackbits(values.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1).reshape(-1, 8, BANDS)
    return np.packbits(bits, axis=1)[:, 0].T.astype(np.uint32)


def _pairs_of_equals(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places (P,) and (P,) in sorted `keys` of pairs of equal keys, about PAIRS_AT_ONCE at a time."""
    n = len(keys)
    new = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if n else np.empty(0, np.int64)
    lengths = np.diff(np.r_[new, n])
    last = np.repeat(new + lengths, lengths) - 1  # of each key's equals
    last = np.where(np.repeat(lengths, lengths) > LARGEST_BUCKET, np.minimum(last, np.arange(n) + 1), last)
    partners = last - np.arange(n)
    starts = np.flatnonzero(partners)
    ends = np.cumsum(partners[starts])
    for low, high in _runs(ends, PAIRS_AT_ONCE):
        chosen, counts = starts[low:high], partners[starts[low:high]]
        a = np.repeat(chosen, counts)
        step = np.arange(len(a)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        yield a, a + step


def _runs(ends: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Stretches of `ends`, a rising sum, that add up to about `most` each."""
    low = 0
    while low < len(ends):
        before = ends[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield low, high
        low = high


def _alike(pixels: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """bool (P,): whether the pictures of each pair look alike, light and contrast set aside a little."""
    places, inverse = np.unique(pairs, return_inverse=True)
    inverse = inverse.reshape(pairs.shape)
    small = np.empty((len(places), THUMBNAIL * THUMBNAIL * 3), np.float32)
    for start in range(0, len(places), PICTURES_AT_ONCE):
        small[start : start + PICTURES_AT_ONCE] = _thumbnails(
            pixels[places[start : start + PICTURES_AT_ONCE]]
        )
    alike = np.empty(len(pairs), bool)
    for start in range(0, len(pairs), PICTURES_AT_ONCE):
        chosen = inverse[start : start + PICTURES_AT_ONCE]
        alike[start : start + PICTURES_AT_ONCE] = _look_alike(small[chosen[:, 0]], small[chosen[:, 1]])
    return alike


def _look_alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    close = np.abs(a - b).mean(axis=1) <= LARGEST_DIFFERENCE
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    spread = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    correlation = np.divide((a * b).sum(axis=1), spread, out=np.ones(len(a), np.float32), where=spread > 0)
    return close & (correlation >= SMALLEST_CORRELATION)


def _thumbnails(pixels: np.ndarray) -> np.ndarray:
    return _cells(pixels, THUMBNAIL, THUMBNAIL).reshape(len(pixels), -1)


def _cells(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """float32 (N, rows, columns, 3): means of the cells of a grid over uint8 (N, S, S, 3), S no less than either."""
    n, height, width, channels = pixels.shape
    down, across = _membership(height, rows), _membership(width, columns)
    by_column = np.kron(across.T, np.eye(channels, dtype=np.float32))
    sums = down @ pixels.reshape(n, height, width * channels).astype(np.float32)
    sums = (sums.reshape(n * rows, -1) @ by_column).reshape(n, rows, columns, channels)
    counts = down.sum(axis=1)[:, None] * across.sum(axis=1)
    return sums / counts[:, :, None]


def _membership(length: int, cells: int) -> np.ndarray:
    """float32 (cells, length): 1 where a place belongs to a cell."""
    cell = np.searchsorted(np.arange(cells) * length // cells, np.arange(length), side="right") - 1
    return (cell == np.arange(cells)[:, None]).astype(np.float32)
