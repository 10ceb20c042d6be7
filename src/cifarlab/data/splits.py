"""Cutting validation pictures from the training set: pure functions of labels and settings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from cifarlab import text
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
    *,
    groups: np.ndarray | None = None,
    given: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
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

    Where the data set says itself which pictures validate, `given`, indices, they are what "stratified" holds out.
    `groups`, int64 (N,), are of near duplicates: the pictures of a group are held out together or not at all, by the
    kinds that draw. `classes` are names for messages.

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
    if kind == "stratified" and given is not None:
        return _cut(len(labels), given)
    if kind == "fold":
        return _fold(labels, folds, fold, seed, groups, classes)
    held_out = _held_out(len(labels), fraction, images)
    if kind == "first":
        return every[held_out:], every[:held_out]
    if kind == "last":
        return every[: len(every) - held_out], every[len(every) - held_out :]
    drawn = hold_out(labels, held_out, seed, groups, classes, exactly=images is not None)
    if len(drawn) == 0:
        raise UserError(
            "the pictures of every class are near duplicates of each other, so that none can be held out to validate"
            " on: add others, or set data.validation to none"
        )
    return _cut(len(labels), drawn)


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


def hold_out(
    labels: np.ndarray,
    held_out: int,
    seed: int,
    groups: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    *,
    exactly: bool = False,
) -> np.ndarray:
    """About `held_out` of the indices of `labels` (N,), every class in proportion, drawn with `seed`.

    Of a class with two pictures or more at least one is held out and one is left, and of `groups` each as a whole: of
    a class that is one group, nothing. Raises UserError for a class with one picture, and, where it shall be `exactly`
    so many, for one with too few to share in them.
    """
    names, counts = np.unique(labels, return_counts=True)
    shares = largest_remainder(counts, held_out)
    if not exactly:
        shares = np.clip(shares, 1, counts - 1)
    for label, count, share in zip(names, counts, shares, strict=True):
        if not 0 < share < count:
            raise UserError(
                f"class {_named(label, classes)} has {text.count(int(count), 'training picture')}, too few for a"
                f" stratified cut of {held_out:,} in {len(labels):,}: {share:,} would be held out; change the size, or"
                " set data.validation to first, last or none"
            )
    order = _shuffled(len(labels), seed)
    if groups is not None:
        return _whole_groups(labels, dict(zip(names.tolist(), shares.tolist(), strict=True)), order, groups)
    chosen = [order[labels[order] == label][:share] for label, share in zip(names, shares, strict=True)]
    return np.concatenate(chosen)


def _whole_groups(
    labels: np.ndarray, shares: dict[int, int], order: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Indices by whole groups, in `order`, each taken if it goes over no class's share; then, of a class whose groups
    are all larger than its share, the smallest that leaves some pictures of every class."""
    everywhere, held_out = Counter(labels.tolist()), Counter[int]()
    taken: list[int] = []

    def take(members: list[int], most: Mapping[int, int]) -> bool:
        needed = Counter(labels[members].tolist())
        if any(held_out[label] + n > most[label] for label, n in needed.items()):
            return False
        held_out.update(needed)
        taken.extend(members)
        return True

    found = _members(groups, order)
    for members in found:
        take(members, shares)
    all_but_one = {label: n - 1 for label, n in everywhere.items()}
    for label in shares:
        if not held_out[label]:
            of_class = [members for members in found if label in labels[members]]
            next((members for members in sorted(of_class, key=len) if take(members, all_but_one)), None)
    return np.array(taken, np.int64)


def _members(groups: np.ndarray, order: np.ndarray) -> list[list[int]]:
    """The indices of each group, by the first of them in `order`."""
    found: dict[int, list[int]] = {}
    for index, group in zip(order.tolist(), groups[order].tolist(), strict=True):
        found.setdefault(group, []).append(index)
    return list(found.values())


def _named(label: int, classes: Sequence[str] | None) -> str:
    return str(label) if classes is None else f"'{classes[label]}'"


def _fold(
    labels: np.ndarray,
    folds: int,
    fold: int,
    seed: int,
    groups: np.ndarray | None,
    classes: Sequence[str] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled pictures, class by class, are dealt to the folds in turn, from one class to the next without a break."""
    names, counts = np.unique(labels, return_counts=True)
    if not 2 <= folds <= counts.min():
        raise UserError(
            f"{folds:,} folds: there must be 2 or more, and no more than the {counts.min():,} training pictures of"
            f" class {_named(names[counts.argmin()], classes)}, the smallest"
        )
    if not 0 <= fold < folds:
        raise UserError(f"fold {fold}: of {folds} folds there are 0 to {folds - 1}")
    order = _shuffled(len(labels), seed)
    by_class = order[np.argsort(labels[order], kind="stable")]
    if groups is None:
        return _cut(len(labels), by_class[fold::folds])
    return _cut(len(labels), np.array(_deal_groups(labels, folds, by_class, groups)[fold], np.int64))


def _deal_groups(labels: np.ndarray, folds: int, order: np.ndarray, groups: np.ndarray) -> list[list[int]]:
    """Indices of each fold: groups, the largest first, go to the fold that has the fewest of the class they begin with,
    then the fewest in all."""
    dealt: list[list[int]] = [[] for _ in range(folds)]
    of_class = [Counter[int]() for _ in range(folds)]
    for members in sorted(_members(groups, order), key=len, reverse=True):
        label = int(labels[members[0]])
        fewest = min(range(folds), key=lambda fold: (of_class[fold][label], len(dealt[fold])))
        dealt[fewest] += members
        of_class[fewest].update(labels[members].tolist())
    return dealt


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
