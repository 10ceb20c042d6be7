"""The stream of batches: every picture once a pass, and the same from any step on."""

import itertools
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from cifarlab.data.loader import BatchStream, derived_seed, sizes_of_passes
from cifarlab.preparation import Preparation
from cifarlab.recipe import Augment

SCALE = Preparation(4, 4, (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))


def stream(augment: Augment = Augment(), batch_size: int = 8, seed: int = 3) -> BatchStream:
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 4, 4, 3).contiguous()
    return BatchStream(images, torch.arange(20), batch_size, seed, augment, SCALE)


def test_a_pass_has_every_picture_once_and_a_short_last_batch() -> None:
    batches = list(itertools.islice(stream().from_step(0), 6))
    assert [len(labels) for _, labels in batches] == [8, 8, 4, 8, 8, 4]
    first, second = (
        torch.cat([labels for _, labels in batches[part]]) for part in (slice(0, 3), slice(3, 6))
    )
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(20))
    assert first.tolist() != second.tolist()


def test_pictures_stay_with_their_labels_and_are_prepared() -> None:
    images, labels = next(stream().from_step(0))
    assert images.dtype == torch.float32 and images.shape == (8, 3, 4, 4)
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images[:, 0, 0, 0] * 255, labels.float())


def test_from_any_step_on_it_is_the_same_stream() -> None:
    """Epochs of 2 steps over passes of 3 batches drift, as Keras's do; a resume starts anywhere."""
    augmented = stream(Augment(shift=0.3, flip=0.5))
    whole = list(itertools.islice(augmented.from_step(0), 12))
    for step in range(12):
        for (images, labels), (again, labels_again) in zip(
            whole[step:], augmented.from_step(step), strict=False
        ):
            assert torch.equal(images, again) and torch.equal(labels, labels_again)


def test_seeds_differ_by_seed_stream_and_index() -> None:
    places = list(itertools.product(range(3), range(4), range(50)))
    assert len({derived_seed(*place) for place in places}) == len(places)
    assert derived_seed(1, 2, 3) == derived_seed(1, 2, 3)
    assert not torch.equal(next(stream(seed=1).from_step(0))[1], next(stream(seed=2).from_step(0))[1])


def test_augmentation_is_drawn_anew_for_each_pass() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8))
    one = BatchStream(images, torch.zeros(1, dtype=torch.int64), 1, 0, Augment(shift=0.4), SCALE)
    first, second = itertools.islice(one.from_step(0), 2)
    assert not torch.equal(first[0], second[0])


def test_alternating_flips_toggle_every_picture_from_pass_to_pass() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), dtype=np.uint8)
    settings = Augment(flip=0.5, flip_rule="alternating")
    one = BatchStream(torch.from_numpy(pixels), torch.arange(64), 16, 0, settings, SCALE)
    batches = list(itertools.islice(one.from_step(0), 12))
    passes = [
        {
            int(label): image
            for images, labels in batches[i : i + 4]
            for image, label in zip(images, labels, strict=True)
        }
        for i in (0, 4, 8)
    ]
    for picture in range(64):
        assert torch.equal(passes[0][picture], passes[1][picture].flip(-1))
        assert torch.equal(passes[0][picture], passes[2][picture])
    as_stored = sum(
        torch.equal(passes[0][i] * 255, torch.from_numpy(pixels[i]).permute(2, 0, 1).float())
        for i in range(64)
    )
    assert 20 < as_stored < 44


def test_pictures_are_scaled_to_the_size_of_their_pass() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8))
    growing = BatchStream(
        pixels, torch.arange(6), 4, 0, Augment(), SCALE, sizes=sizes_of_passes((0.5, 0.75, 1.0), ())
    )
    batches = list(itertools.islice(growing.from_step(0), 8))
    assert [images.shape[2] for images, _ in batches] == [8, 8, 12, 12, 16, 16, 16, 16]
    images, labels = batches[0]
    for image, label in zip(images, labels, strict=True):
        by_pillow = Image.fromarray(pixels[label].numpy()).resize((8, 8), Image.Resampling.BILINEAR)
        assert np.abs(image.permute(1, 2, 0).numpy() * 255 - np.asarray(by_pillow, float)).max() <= 1.01
    again, _ = next(growing.from_step(2))
    assert torch.equal(again, batches[2][0])
    assert torch.equal(batches[4][0] * 255, pixels[batches[4][1]].permute(0, 3, 1, 2).float())


def test_edges_are_cut_off_after_augmentation() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8))
    whole = BatchStream(pixels, torch.arange(6), 6, 0, Augment(crop_padding=2, flip=0.5), SCALE)
    images, labels = next(whole.from_step(0))
    left, _ = next(replace(whole, sizes=sizes_of_passes((), (0.75,))).from_step(0))
    assert torch.equal(left, images[:, :, 2:14, 2:14])
    assert left.is_contiguous(memory_format=torch.channels_last)
    # None of it was reflected: it is a part of the picture, up to two pixels off the centre, mirrored or not.
    for image, label in zip(left, labels, strict=True):
        parts = (pixels[label].float().permute(2, 0, 1) / 255).unfold(1, 12, 1).unfold(2, 12, 1)
        assert any(
            (parts[:, y, x] == each).all() for y, x in np.ndindex(5, 5) for each in (image, image.flip(2))
        )


def test_edges_are_cut_off_after_scaling_and_of_each_side_its_part() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 16, 24, 3), dtype=np.uint8))
    scaled, cut = (
        BatchStream(
            pixels, torch.arange(6), 6, 0, Augment(), SCALE, sizes=sizes_of_passes((1.0, 0.75), crops)
        )
        for crops in ((), (1.0, 0.75))
    )
    in_full, in_parts = (list(itertools.islice(each.from_step(0), 3)) for each in (scaled, cut))
    assert [tuple(images.shape[2:]) for images, _ in in_full] == [(16, 24), (12, 18), (12, 18)]
    assert [tuple(images.shape[2:]) for images, _ in in_parts] == [(16, 24), (9, 14), (9, 14)]
    for (images, _), (left, _) in zip(in_full[1:], in_parts[1:], strict=True):
        assert torch.equal(left, images[:, :, 1:10, 2:16])


def test_squares_are_cut_out_where_they_are_once_pictures_are_resized() -> None:
    pixels = torch.full((64, 16, 16, 3), 255, dtype=torch.uint8)
    augment = Augment(cutout=4)
    whole, left, half = (
        next(BatchStream(pixels, torch.arange(64), 64, 0, augment, SCALE, sizes=sizes).from_step(0))[0]
        for sizes in map(sizes_of_passes, ((), (), (0.5,)), ((), (0.5,), ()))
    )
    assert torch.equal(left, whole[:, :, 4:12, 4:12])
    assert 0 < (left == 0).sum() < (whole == 0).sum()
    assert ((half == 0).sum((1, 2, 3)) == 3 * 2 * 2).all()


def classes_in_passes(labels: torch.Tensor, passes: int) -> list[torch.Tensor]:
    """The indices of the pictures in each pass of a balanced stream."""
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 3).contiguous()
    balanced = BatchStream(images, labels, 8, 3, Augment(), SCALE, sampling="balanced")
    batches = list(itertools.islice(balanced.from_step(0), passes * balanced.batches_per_pass))
    seen = [(images[:, 0, 0, 0] * 255).round().long() for images, _ in batches]
    for batch, (_, batch_labels) in zip(seen, batches, strict=True):
        assert torch.equal(labels[batch], batch_labels)
    n = balanced.batches_per_pass
    return [torch.cat(seen[first : first + n]) for first in range(0, len(seen), n)]


def test_balanced_sampling_gives_every_class_its_share_of_every_pass() -> None:
    labels = torch.tensor([0] * 30 + [1] * 9 + [3] * 2)  # no picture of class 2
    first, second = classes_in_passes(labels, 2)
    for one_pass in (first, second):
        counts = torch.bincount(labels[one_pass], minlength=4)
        assert len(one_pass) == 41 and counts[2] == 0 and set(counts[[0, 1, 3]].tolist()) <= {13, 14}
        uses = torch.bincount(one_pass, minlength=41)
        assert uses[:30].max() == 1  # of the large class, some
        assert uses[30:39].min() >= 1 and uses[30:39].max() <= 2  # of the small ones all, about equally often
        assert uses[39:].max() - uses[39:].min() <= 1
    assert set(first[first < 30].tolist()) != set(second[second < 30].tolist())


def test_balanced_sampling_starts_at_any_step() -> None:
    labels = torch.tensor([0] * 30 + [1] * 9)
    images = torch.arange(39, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 3).contiguous()
    balanced = BatchStream(images, labels, 8, 3, Augment(flip=0.5, shift=0.2), SCALE, sampling="balanced")
    whole = list(itertools.islice(balanced.from_step(0), 12))
    for step in (3, 5, 7):
        again, again_labels = next(balanced.from_step(step))
        assert torch.equal(whole[step][0], again) and torch.equal(whole[step][1], again_labels)


def test_copies_stand_in_one_batch_each_changed_in_its_own_way() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    copied = BatchStream(images, torch.arange(20), 8, 3, Augment(shift=0.3, copies=3), SCALE)
    batches = list(itertools.islice(copied.from_step(0), 3))
    assert [len(labels) for _, labels in batches] == [24, 24, 12] and copied.batches_per_pass == 3
    for pictures, labels in batches:
        counts = torch.bincount(labels, minlength=20)
        assert set(counts.tolist()) <= {0, 3}
        groups = pictures.view(-1, 3, *pictures.shape[1:])
        assert torch.equal(labels.view(-1, 3), labels.view(-1, 3)[:, :1].expand(-1, 3))
        assert not torch.equal(groups[:, 0], groups[:, 1]) and not torch.equal(groups[:, 1], groups[:, 2])
    again, _ = next(copied.from_step(1))
    assert torch.equal(again, batches[1][0])


def test_copies_of_alternating_flips_take_turns() -> None:
    images = torch.arange(2, dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3).contiguous()
    augmentation = Augment(flip=0.5, flip_rule="alternating", copies=2)
    one = BatchStream(images, torch.zeros(1, dtype=torch.int64), 1, 0, augmentation, SCALE)
    (first, _), (second, _) = itertools.islice(one.from_step(0), 2)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[0], second[1]) and torch.equal(first[1], second[0])
