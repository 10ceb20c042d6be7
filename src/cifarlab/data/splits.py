"""Cutting validation pictures from the training set: pure functions of labels and settings."""

from __future__ import annotations

import math

import numpy as np

from cifarlab.errors import UserError, nearest, one_of

KINDS = ("stratified", "first", "last", "none", "test", "fold")


def split_validation(
    labels: np.ndarray,
    kind: str = "stratified",
    fraction: float = 0.1,
    images: int | None = None,
    seed: int = 2020,
    folds: int = 5,
    fold: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices into the training set to train on, and to validate on: int64, ascending, disjoint, complete.

    labels: integers (N,). kind is one of
      "stratified"  every class in proportion, drawn with `seed`, which is apart from the training's own seed;
      "first"       the first pictures in file order;
      "last"        the last pictures in file order, as Keras's `validation_split` takes them;
      "none"        nothing is held out;
      "test"        nothing either: the test set serves as validation;
      "fold"        number `fold` (from 0) of `folds` parts that are disjoint, complete, and alike in size and in
                    every class to within one picture, drawn with `seed`: stratified cross-validation.
    The number held out is `images`, or else `fraction` of N (0 < fraction < 1), counted as Keras 3 counts it:
    N - floor(N * (1 - fraction)) (keras/src/trainers/data_adapters/array_slicing.py, train_validation_split).

    The same labels and settings give the same cut on every machine and with every version of NumPy.
    Raises UserError if the kind is unknown or the cut would leave nothing to train or to validate on.
    """
    if kind not in KINDS:
        raise UserError(
            f"unknown kind of validation '{kind}'{nearest(kind, KINDS)} (there are {one_of(KINDS)})"
        )
    every = np.arange(len(labels), dtype=np.int64)
    if kind in ("none", "test"):
        return every, every[:0]
    if kind == "fold":
        return _fold(labels, folds, fold, seed)
    held_out = _held_out(len(labels), fraction, images)
    if kind == "first":
        return every[held_out:], every[:held_out]
    if kind == "last":
        return every[: len(every) - held_out], every[len(every) - held_out :]
    return _stratified(labels, held_out, seed)


def _held_out(n: int, fraction: float, images: int | None) -> int:
    if images is None and not 0.0 < fraction < 1.0:
        raise UserError(f"validation_fraction is {fraction}; it must be above 0 and below 1")
    held_out = n - math.floor(n * (1.0 - fraction)) if images is None else images
    if not 0 < held_out < n:
        asked = f"a fraction of {fraction}" if images is None else f"{images:,} pictures"
        raise UserError(
            f"validation of {asked} from {n:,} training pictures leaves {n - held_out:,} to train on and "
            f"{held_out:,} to validate on; both must be above 0"
        )
    return held_out


def _stratified(labels: np.ndarray, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    classes, counts = np.unique(labels, return_counts=True)
    shares = largest_remainder(counts, held_out)
    for label, count, share in zip(classes, counts, shares, strict=True):
        if not 0 < share < count:
            raise UserError(
                f"class {label} has {count:,} training pictures, too few for a stratified validation cut of "
                f"{held_out:,} in {len(labels):,}: {share:,} would validate; change the size, or set "
                "validation to first, last or none"
            )
    order = _shuffled(len(labels), seed)
    chosen = [order[labels[order] == label][:share] for label, share in zip(classes, shares, strict=True)]
    return _cut(len(labels), np.concatenate(chosen))


def _fold(labels: np.ndarray, folds: int, fold: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled pictures, class by class, are dealt to the folds in turn, from one class to the next without a break."""
    classes, counts = np.unique(labels, return_counts=True)
    if not 2 <= folds <= counts.min():
        raise UserError(
            f"{folds:,} folds: there must be 2 or more, and no more than the {counts.min():,} training pictures of"
            f" class {classes[counts.argmin()]}, the smallest"
        )
    if not 0 <= fold < folds:
        raise UserError(f"fold {fold}: of {folds} folds there are 0 to {folds - 1}")
    order = _shuffled(len(labels), seed)
    by_class = order[np.argsort(labels[order], kind="stable")]
    return _cut(len(labels), by_class[fold::folds])


def _shuffled(n: int, seed: int) -> np.ndarray:
    """NumPy keeps the raw stream of a bit generator unchanged for ever (NEP 19), which it does not promise for the
    methods of Generator: the order of raw draws is a shuffle that stays."""
    return np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable")


def _cut(n: int, validation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    validates = np.zeros(n, bool)
    validates[validation] = True
    return np.flatnonzero(~validates).astype(np.int64), np.flatnonzero(validates).astype(np.int64)


def largest_remainder(counts: np.ndarray, total: int) -> np.ndarray:
    """Share out `total` in proportion to `counts` (K,): whole numbers (K,), each exact share rounded.

    Hamilton's method: down, and up where the remainders are largest, in order where they are equal. In
    integers throughout, so that it is exact.
    """
    whole = sum(int(count) for count in counts)
    shares = [total * int(count) // whole for count in counts]
    remainders = [total * int(count) % whole for count in counts]
    by_remainder = sorted(range(len(shares)), key=lambda i: (-remainders[i], i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return np.array(shares, dtype=np.int64)
