"""What somebody's pictures hold, and what is wrong with them, told before anything long."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cifarlab.data.duplicates import exact_groups
from cifarlab.data.listing import Listing
from cifarlab.errors import UserError
from cifarlab.pictures import read_picture
from cifarlab.text import count

if TYPE_CHECKING:
    from cifarlab.data.decoded import Decoded

UNSPLIT = "all"
SAMPLE_PIXELS = 96  # a side, of pictures in the figure
FEWEST = 3  # pictures of a class: to train on, to validate on and to test on
UNEVEN = 3  # times as many pictures in the largest class as in the smallest
MOST_NAMES = 4  # of a group of duplicates, in a line


@dataclass(frozen=True)
class Duplicates:
    """Groups of pictures that are the same or nearly so, by name, the largest first."""

    groups: list[list[str]]
    across_splits: int
    """How many of the groups have pictures in more than one split."""
    across_classes: int

    @property
    def pictures(self) -> int:
        return sum(map(len, self.groups))


@dataclass(frozen=True)
class Problem:
    """One sentence, and what it is about, one line each."""

    line: str
    examples: list[str]


@dataclass(frozen=True)
class Survey:
    """Everything `cifarlab data PATH` tells. Sizes are [width, height] in pixels, as stored in the files.

    Attributes:
        splits: of each given split, or of "all", n and how many of each class.
        sizes: smallest, median and largest by area, and how many different ones there are.
        modes: how many pictures of each of Pillow's modes, most first.
        unreadable: [{path, reason}].
        exact_duplicates: files with the same bytes.
        near_duplicates: groups in which not all files have the same bytes.
        alike_classes: those whose pictures, two or more, are all near duplicates of each other.
        label_clashes: classes whose names differ only in case, space or Unicode form.
        left_out: by reason, the files that are not among the pictures.
    """

    location: str
    layout: str
    classes: list[str]
    splits: dict[str, dict[str, Any]]
    sizes: dict[str, Any]
    modes: dict[str, int]
    unreadable: list[dict[str, str]]
    exact_duplicates: Duplicates
    near_duplicates: Duplicates
    empty_classes: list[str]
    alike_classes: list[str]
    label_clashes: list[list[str]]
    left_out: dict[str, list[str]]

    @property
    def problems(self) -> list[Problem]:
        """What a person should look at before training, the worst first."""
        return [problem for problem in _problems(self) if problem is not None]

    def to_dict(self) -> dict[str, Any]:
        """All of it, and `problems` as sentences, for JSON."""
        return asdict(self) | {"problems": [problem.line for problem in self.problems]}


def survey(listing: Listing, decoded: Decoded) -> Survey:
    """What there is in the pictures of `listing`, of which `decoded` tells what was in the files."""
    exact = exact_groups(decoded.sha256)
    read = np.array([place not in decoded.reasons for place in range(len(listing.entries))], bool)
    left_out: dict[str, list[str]] = defaultdict(list)
    for name, reason in listing.left_out:
        left_out[reason].append(name)
    return Survey(
        location=str(listing.location),
        layout=listing.layout,
        classes=list(listing.classes),
        splits=_splits(listing),
        sizes=_sizes(decoded.sizes[read]),
        modes=dict(Counter(decoded.modes[read].tolist()).most_common()),
        unreadable=[
            {"path": listing.entries[place].name, "reason": reason}
            for place, reason in sorted(decoded.reasons.items())
        ],
        exact_duplicates=_duplicates(listing, exact),
        near_duplicates=_duplicates(listing, decoded.groups, exact),
        empty_classes=list(listing.empty_classes),
        alike_classes=_alike_classes(listing, decoded.groups[read], read),
        label_clashes=label_clashes((*listing.classes, *listing.empty_classes)),
        left_out=dict(left_out),
    )


def label_clashes(names: Sequence[str]) -> list[list[str]]:
    """Groups of names that differ only in case, in space, `_` and `-`, or in how Unicode writes the same characters."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folded = unicodedata.normalize("NFKC", name).casefold()
        alike["".join(c for c in folded if not c.isspace() and c not in "_-")].append(name)
    return [sorted(group) for group in alike.values() if len(group) > 1]


def class_samples(listing: Listing, per_class: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`per_class` pictures of each class, drawn by `seed` from those that can be read: uint8 (N, 96, 96, 3), between
    grey bars where they are not square, and their labels int64 (N,)."""
    by_class: dict[int, list[int]] = defaultdict(list)
    for place, entry in enumerate(listing.entries):
        by_class[entry.label].append(place)
    generator = np.random.default_rng(seed)
    images, labels = [], []
    for label, places in sorted(by_class.items()):
        wanted = per_class
        for place in generator.permutation(places).tolist():
            if wanted == 0:
                break
            try:
                data = listing.read(listing.entries[place])
                images.append(read_picture(data, SAMPLE_PIXELS, SAMPLE_PIXELS, "letterbox"))
            except UserError:
                continue
            labels.append(label)
            wanted -= 1
    return np.array(images, np.uint8).reshape(-1, SAMPLE_PIXELS, SAMPLE_PIXELS, 3), np.array(labels, np.int64)


def _splits(listing: Listing) -> dict[str, dict[str, Any]]:
    counts = Counter((entry.split or UNSPLIT, entry.label) for entry in listing.entries)
    found = {}
    for split in listing.splits or (UNSPLIT,):
        per_class = [counts[split, label] for label in range(len(listing.classes))]
        found[split] = {"n": sum(per_class), "per_class": per_class}
    return found


def _sizes(sizes: np.ndarray) -> dict[str, Any]:
    """Of int32 (N, 2), widths and heights."""
    if len(sizes) == 0:
        return {}
    order = np.lexsort((sizes[:, 0], sizes.prod(axis=1, dtype=np.int64)))
    smallest, median, largest = (sizes[order[at]].tolist() for at in (0, len(order) // 2, -1))
    different = len(np.unique(sizes, axis=0))
    return {"smallest": smallest, "median": median, "largest": largest, "different": different}


def _alike_classes(listing: Listing, groups: np.ndarray, read: np.ndarray) -> list[str]:
    labels = np.array([entry.label for entry in listing.entries], np.int64)[read]
    of_class = (groups[labels == label] for label in range(len(listing.classes)))
    return [
        name
        for name, found in zip(listing.classes, of_class, strict=True)
        if len(found) > 1 and len(np.unique(found)) == 1
    ]


def _duplicates(listing: Listing, groups: np.ndarray, exact: np.ndarray | None = None) -> Duplicates:
    """The groups of two or more; where `exact` is given, those that are not of the same bytes throughout."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(groups[order]) != 0]) if len(order) else order
    found = [places for places in np.split(order, starts[1:]) if len(places) > 1]
    if exact is not None:
        found = [places for places in found if len(np.unique(exact[places])) > 1]
    members = [
        [listing.entries[place] for place in places] for places in sorted(found, key=len, reverse=True)
    ]
    return Duplicates(
        groups=[[entry.name for entry in group] for group in members],
        across_splits=sum(len({entry.split for entry in group}) > 1 for group in members),
        across_classes=sum(len({entry.label for entry in group}) > 1 for group in members),
    )


# --- what is wrong, in words ---


def _problems(found: Survey) -> Iterator[Problem | None]:
    if found.unreadable:
        files = [f"{each['path']} {each['reason']}" for each in found.unreadable]
        n = count(len(files), "picture")
        yield Problem(f"{n} cannot be read; --skip-unreadable trains without", files)
    if len(found.classes) == 1:
        yield Problem(f"there is one class only, {found.classes[0]}: two or more are needed to train", [])
    if found.empty_classes:
        yield Problem(
            f"{count(len(found.empty_classes), 'class', 'classes')} without a picture", found.empty_classes
        )
    if found.label_clashes:
        names = [" / ".join(map(repr, group)) for group in found.label_clashes]
        yield Problem("classes whose names differ only in case or space: are they the same?", names)
    yield from _balance(found)
    yield _told(found.exact_duplicates, "the same file more than once", "files")
    yield _told(found.near_duplicates, "nearly the same picture more than once", "pictures")
    if found.alike_classes:
        line = "near duplicates stay together, so that none is held out to judge by"
        yield Problem(
            f"{count(len(found.alike_classes), 'class', 'classes')} with one picture again and again: {line}",
            found.alike_classes,
        )
    for reason, names in found.left_out.items():
        yield Problem(f"{count(len(names), 'file')} left out: {reason}", names)


def _balance(found: Survey) -> Iterator[Problem]:
    training = found.splits.get("train") or found.splits.get(UNSPLIT)
    if training is None:
        yield Problem("there are no training pictures", [])
        return
    counts = dict(zip(found.classes, training["per_class"], strict=True))
    few = [f"{name}: {n:,}" for name, n in counts.items() if n < (FEWEST if UNSPLIT in found.splits else 1)]
    if few:
        needed = f"fewer than {FEWEST} pictures" if UNSPLIT in found.splits else "no training picture"
        yield Problem(f"{count(len(few), 'class', 'classes')} with {needed}", few)
    smallest, largest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[smallest] and counts[largest] >= UNEVEN * counts[smallest]:
        times = counts[largest] / counts[smallest]
        line = f"classes are uneven: {largest} has {times:.1f} times the training pictures of {smallest}"
        yield Problem(line, [])


def _told(found: Duplicates, what: str, things: str) -> Problem | None:
    if not found.groups:
        return None
    line = f"{what}: {found.pictures:,} {things} in {count(len(found.groups), 'group')}"
    if found.across_splits:
        line += f"; {found.across_splits:,} across splits: what is tested on was trained on"
    if found.across_classes:
        line += f"; {found.across_classes:,} across classes: one of the labels is wrong"
    return Problem(line, [_equals(group) for group in found.groups])


def _equals(group: Sequence[str]) -> str:
    """In one line, however many there are; the survey's JSON has all of them."""
    more = len(group) - MOST_NAMES
    return " = ".join(group[:MOST_NAMES]) + (f" = {more:,} more" if more > 0 else "")
