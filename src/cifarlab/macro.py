"""Averages over classes, for data whose classes differ much in size."""

from collections.abc import Sequence

UNEVEN = 1.5  # times the smallest class; in CIFAR-10 and CIFAR-100 the largest has 1 times as many, in SVHN 3.2 times


def macro_mean(figures: Sequence[tuple[float, int]]) -> float:
    """The mean of (figure, pictures) over the classes that have pictures; 0 where none has."""
    there = [figure for figure, n in figures if n]
    return sum(there) / len(there) if there else 0.0


def uneven(counts: Sequence[int]) -> bool:
    """Whether the largest class has more than UNEVEN times as many pictures as the smallest."""
    return max(counts) > UNEVEN * min(counts)
