"""Validation cuts: what they hold, and that they never change."""

import hashlib

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cifarlab.data.splits import KINDS, hold_out, largest_remainder, split_validation
from cifarlab.errors import UserError

CIFAR_LIKE = np.tile(np.arange(10), 5_000)

label_arrays = st.lists(st.integers(0, 5), min_size=2, max_size=300).map(lambda x: np.array(x, np.int64))
fractions = st.floats(0.01, 0.99)
kinds = st.sampled_from(KINDS)


@given(label_arrays, kinds, fractions, st.integers(0, 2**63))
def test_every_picture_is_in_exactly_one_part(labels, kind, fraction, seed):
    try:
        train, validation = split_validation(labels, kind, fraction, None, seed)
    except UserError:
        assume(False)
        raise
    assert train.dtype == validation.dtype == np.int64
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(len(labels)))
    assert np.all(np.diff(train) > 0) and np.all(np.diff(validation) > 0)
    assert len(train) > 0


@given(
    st.lists(st.integers(1, 80), min_size=1, max_size=8),
    st.integers(0, 2**32),
    st.integers(1, 200),
    st.randoms(),
)
def test_stratified_keeps_every_class_within_one_picture_of_its_share(sizes, seed, images, shuffler):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    shuffler.shuffle(labels)
    try:
        train, validation = split_validation(labels, "stratified", 0.1, images, seed)
    except UserError:
        assume(False)
        raise
    assert len(validation) == images
    for label, size in enumerate(sizes):
        share = images * size / len(labels)
        assert abs(np.sum(labels[validation] == label) - share) < 1
        assert np.any(labels[train] == label) and np.any(labels[validation] == label)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=20), st.floats(0, 1))
def test_largest_remainder_shares_out_everything(counts, part):
    total = int(sum(counts) * part)
    shares = largest_remainder(np.array(counts), total)
    assert shares.sum() == total
    for count, share in zip(counts, shares, strict=True):
        exact = total * count / sum(counts)
        assert exact - 1 < share < exact + 1


def test_largest_remainder_by_hand():
    # 7 of 10 among 3, 3, 4: exact shares 2.1, 2.1, 2.8, so the last one is rounded up.
    assert largest_remainder(np.array([3, 3, 4]), 7).tolist() == [2, 2, 3]
    # A tie goes to the earlier class.
    assert largest_remainder(np.array([5, 5]), 5).tolist() == [3, 2]


def test_the_default_cut_of_cifar10_is_fixed_for_ever():
    """Results from different days are compared on this cut: a change here breaks every earlier one."""
    train, validation = split_validation(CIFAR_LIKE)
    assert (len(train), len(validation)) == (45_000, 5_000)
    assert np.bincount(CIFAR_LIKE[validation]).tolist() == [500] * 10
    digest = hashlib.sha256(validation.astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("e34f3c3b95c2e4f8")


def test_the_stratified_cut_follows_its_seed_alone():
    first = split_validation(CIFAR_LIKE, seed=1)[1]
    np.random.default_rng(5).random(3)
    assert np.array_equal(first, split_validation(CIFAR_LIKE, seed=1)[1])
    assert not np.array_equal(first, split_validation(CIFAR_LIKE, seed=2)[1])


@pytest.mark.parametrize("labels", [CIFAR_LIKE.astype(np.uint8), CIFAR_LIKE.astype(np.int32)])
def test_the_type_of_the_labels_does_not_matter(labels):
    assert np.array_equal(split_validation(labels)[1], split_validation(CIFAR_LIKE)[1])


def test_first_and_last_are_in_file_order():
    train, validation = split_validation(CIFAR_LIKE, "first", images=5_000)
    assert validation.tolist() == list(range(5_000)) and train[0] == 5_000 and len(train) == 45_000
    train, validation = split_validation(CIFAR_LIKE, "last", 0.25)
    assert validation.tolist() == list(range(37_500, 50_000)) and train[-1] == 37_499


@pytest.mark.parametrize(
    ("n", "fraction", "held_out"), [(10, 0.25, 3), (100, 0.9, 91), (50_000, 0.2, 10_000)]
)
def test_the_last_fraction_is_counted_as_keras_counts_it(n, fraction, held_out):
    """keras 3: split_at = floor(n * (1 - validation_split)); 100 * (1 - 0.9) is just under 10."""
    assert len(split_validation(np.zeros(n, np.int64), "last", fraction)[1]) == held_out


@pytest.mark.parametrize("kind", ["none", "test"])
def test_none_and_test_hold_nothing_out(kind):
    train, validation = split_validation(CIFAR_LIKE, kind)
    assert len(train) == 50_000 and len(validation) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "stratifed"}, "unknown kind of validation 'stratifed'; did you mean 'stratified'"),
        ({"images": 50_000}, "50,000 pictures from 50,000 training pictures leaves 0 to train on"),
        ({"images": 60_000, "kind": "first"}, "60,000 pictures from 50,000"),
        ({"images": 0, "kind": "last"}, "0 to validate on"),
        ({"fraction": 1.0}, "validation_fraction is 1.0"),
        ({"fraction": float("nan")}, "validation_fraction is nan"),
        ({"images": 5}, "class 5 has 5,000 training pictures, too few"),
    ],
)
def test_a_cut_that_cannot_be_made_says_why(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        split_validation(CIFAR_LIKE, **arguments)
    assert "\n" not in str(caught.value)


def test_a_class_too_small_is_named():
    labels = np.array([0] * 100 + [1])
    with pytest.raises(UserError, match="class 1 has 1 training picture, too few"):
        split_validation(labels)


@given(
    st.lists(st.integers(2, 60), min_size=1, max_size=8),
    st.integers(2, 12),
    st.integers(0, 2**32),
    st.randoms(),
)
def test_folds_share_out_every_picture_once_and_every_class_alike(sizes, folds, seed, shuffler):
    assume(folds <= min(sizes))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    shuffler.shuffle(labels)
    parts = [split_validation(labels, "fold", seed=seed, folds=folds, fold=fold)[1] for fold in range(folds)]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert {len(part) - len(labels) // folds for part in parts} <= {0, 1}
    for label, size in enumerate(sizes):
        assert {np.sum(labels[part] == label) - size // folds for part in parts} <= {0, 1}


def test_the_folds_of_cifar10_are_fixed_for_ever_and_are_no_runs_of_the_file():
    _, validation = split_validation(CIFAR_LIKE, "fold", fold=2)
    assert np.bincount(CIFAR_LIKE[validation]).tolist() == [1000] * 10
    assert hashlib.sha256(validation.astype("<i8").tobytes()).hexdigest().startswith("a44094c33e68102d")
    assert not np.array_equal(validation, split_validation(CIFAR_LIKE, "fold", fold=2, seed=1)[1])


def test_folds_that_cannot_be_made_say_why():
    with pytest.raises(UserError, match="no more than the 2 training pictures of class 1, the smallest"):
        split_validation(np.array([0] * 100 + [1] * 2), "fold", folds=3)
    with pytest.raises(UserError, match="fold 5: of 5 folds there are 0 to 4"):
        split_validation(CIFAR_LIKE, "fold", fold=5)


def test_groups_larger_than_a_share_are_held_out_all_the_same():
    """Bursts of five of each of three classes, of which a share of twelve is four: some of each class must be there."""
    labels = np.repeat([0, 1, 2], 20)
    bursts = np.arange(60) // 5
    held_out = hold_out(labels, 12, 2020, bursts)
    assert np.bincount(labels[held_out]).tolist() == [5, 5, 5]
    assert not set(bursts[held_out]) & set(np.delete(bursts, held_out))
    one_burst = np.where(labels == 0, 0, np.arange(60))
    assert np.bincount(labels[hold_out(labels, 12, 2020, one_burst)], minlength=3).tolist() == [0, 4, 4]


def test_classes_of_one_picture_again_and_again_cannot_be_validated():
    labels = np.repeat([0, 1, 2], 20)
    with pytest.raises(UserError, match="near duplicates of each other"):
        split_validation(labels, "stratified", groups=labels)
