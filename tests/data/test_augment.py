"""Augmentation against SciPy picture by picture, and for what any batch of pictures can rely on."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cifarlab.data import augment as augment_module
from cifarlab.data.augment import Draws, apply, cut_out, draw
from cifarlab.recipe import Augment

# float32 places of up to 32 are off by up to 2e-6 pixels, noise has slopes of up to 255 a pixel in both directions
TOLERANCE = 1.5e-3


def noise(n: int, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """uint8 (N, 3, H, W), channels_last: every pixel its own, so that no slip of the look-up stays unseen."""
    values = np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def nothing_drawn(n: int, rotated: bool = False) -> dict:
    return {
        "shift_y": torch.zeros(n),
        "shift_x": torch.zeros(n),
        "angle": torch.zeros(n) if rotated else None,
        "scale": torch.ones(n),
        "flip": torch.zeros(n, dtype=torch.bool),
    }


def by_scipy(image: np.ndarray, draws: Draws, i: int) -> np.ndarray:
    """One picture (C, H, W) rotated, zoomed, shifted about (size - 1) / 2, then flipped, in float64."""
    angle = 0.0 if draws.angle is None else float(draws.angle[i])
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = float(draws.scale[i]) * rotation
    center = (np.array(image.shape[1:]) - 1) / 2
    shift = np.array([float(draws.shift_y[i]), float(draws.shift_x[i])])
    offset = center - matrix @ (center + shift)
    planes = [
        scipy.ndimage.affine_transform(plane.astype(np.float64), matrix, offset, order=1, mode="nearest")
        for plane in image
    ]
    changed = np.stack(planes)
    return changed[:, :, ::-1] if draws.flip[i] else changed


@pytest.mark.parametrize(
    "augment",
    [
        Augment(shift=0.1),
        Augment(shift=0.1, flip=0.5),
        Augment(zoom=0.3),
        Augment(rotation=15.0),
        Augment(rotation=180.0, flip=0.5),
        Augment(shift=0.3, rotation=30.0, zoom=0.4, flip=0.5),
        Augment(shift=0.9, zoom=0.9, flip=0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(32, 32), (9, 20)])
def test_equals_scipy(augment, size):
    images = noise(12, *size)
    draws = draw(augment, 12, *size, seed=3)
    assert draws is not None
    changed = apply(images, draws).numpy()
    for i in range(12):
        assert np.abs(changed[i] - by_scipy(images[i].numpy(), draws, i)).max() < TOLERANCE


def test_both_ways_of_looking_up_agree():
    images = noise(16)
    draws = draw(Augment(shift=0.2, zoom=0.2, flip=0.5), 16, 32, 32, seed=1)
    assert draws is not None and draws.angle is None
    by_places = Draws(draws.shift_y, draws.shift_x, torch.zeros(16), draws.scale, draws.flip)
    assert torch.allclose(apply(images, draws), apply(images, by_places), atol=TOLERANCE)


@pytest.mark.parametrize("rotated", [False, True])
def test_nothing_drawn_is_the_same_picture(rotated):
    images = noise(4, 7, 10)
    assert torch.equal(apply(images, Draws(**nothing_drawn(4, rotated))), images.float())


@pytest.mark.parametrize("rotated", [False, True])
def test_flip_turns_left_to_right_and_back(rotated):
    images = noise(4, 7, 10)
    flip = Draws(**nothing_drawn(4, rotated) | {"flip": torch.tensor([True, False, True, True])})
    once = apply(images, flip)
    assert torch.equal(once[0], images[0].float().flip(-1)) and torch.equal(once[1], images[1].float())
    assert torch.equal(apply(once, flip), images.float())


@given(down=st.integers(-9, 9), right=st.integers(-9, 9), rotated=st.booleans())
@settings(max_examples=40)
def test_whole_shift_moves_down_and_right_and_repeats_the_edge(down, right, rotated):
    image = noise(1, 8, 11)
    shift = {"shift_y": torch.tensor([float(down)]), "shift_x": torch.tensor([float(right)])}
    moved = apply(image, Draws(**nothing_drawn(1, rotated) | shift))
    rows, columns = np.clip(np.arange(8) - down, 0, 7), np.clip(np.arange(11) - right, 0, 10)
    assert np.array_equal(moved[0].numpy(), image[0].numpy()[:, rows][:, :, columns])


def test_quarter_turn():
    image = noise(1, 9, 9)
    turned = apply(image, Draws(**nothing_drawn(1) | {"angle": torch.tensor([math.pi / 2])}))
    assert np.allclose(turned[0].numpy(), np.rot90(image[0].numpy(), k=-1, axes=(1, 2)), atol=TOLERANCE)


def test_scale_above_one_shows_more_of_the_scene():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 2:7, 2:7] = 1.0
    smaller = apply(image, Draws(**nothing_drawn(1) | {"scale": torch.tensor([2.0])}))
    assert 0.0 < smaller.sum() < image.sum()


@given(
    shift=st.floats(0, 0.99),
    rotation=st.floats(0, 180),
    zoom=st.floats(0, 0.99),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=60)
def test_values_stay_in_the_range_of_the_picture(shift, rotation, zoom, size, seed):
    images = noise(3, *size, seed=seed)
    draws = draw(Augment(shift=shift, rotation=rotation, zoom=zoom, flip=0.5), 3, *size, seed=seed)
    assert draws is not None
    changed = apply(images, draws)
    assert changed.shape == images.shape
    assert changed.dtype == (torch.float32 if shift or rotation or zoom else torch.uint8)
    changed = changed.float()
    low, high = images.float().amin((2, 3), keepdim=True), images.float().amax((2, 3), keepdim=True)
    assert (changed >= low - TOLERANCE).all() and (changed <= high + TOLERANCE).all()


@pytest.mark.parametrize(
    "augment", [Augment(shift=0.1, flip=0.5), Augment(shift=0.1, rotation=20.0)], ids=str
)
def test_memory_format_and_dtype_of_the_input_do_not_matter(augment):
    images = noise(5, 8, 12)
    draws = draw(augment, 5, 8, 12, seed=0)
    assert draws is not None
    changed = apply(images, draws)
    assert changed.is_contiguous(memory_format=torch.channels_last)
    planar = apply(images.contiguous(), draws)
    assert planar.is_contiguous()
    assert torch.equal(changed, planar) and torch.equal(changed, apply(images.float(), draws))


@pytest.mark.parametrize(("height", "width"), [(128, 20), (129, 20), (20, 131)])
def test_large_pictures_take_another_way_to_the_same_result(height, width, monkeypatch):
    images = noise(3, height, width)
    draws = draw(Augment(shift=0.2, zoom=0.1, flip=0.5), 3, height, width, seed=0)
    assert draws is not None
    taken = []
    look_up = augment_module._look_up_lines
    monkeypatch.setattr(augment_module, "_look_up_lines", lambda *given: taken.append(1) or look_up(*given))
    changed = apply(images, draws)
    assert len(taken) == (max(height, width) <= augment_module.LARGEST_FOR_LINES)
    monkeypatch.setattr(augment_module, "LARGEST_FOR_LINES", 0 if taken else 1000)
    assert torch.allclose(changed, apply(images, draws), atol=TOLERANCE)


@pytest.mark.parametrize(
    "augment", [Augment(shift=0.1, flip=0.5), Augment(shift=0.1, rotation=20.0)], ids=str
)
def test_a_picture_does_not_depend_on_its_batch(augment):
    images = noise(10)
    draws = draw(augment, 10, 32, 32, seed=0)
    assert draws is not None and len(draws) == 10
    part = apply(images[4:7], draws.slice(4, 7).to("cpu"))
    assert torch.allclose(apply(images, draws)[4:7], part, atol=1e-4)


@pytest.mark.parametrize("affine", [False, True])
def test_a_crop_is_of_the_picture_with_its_edges_reflected(affine):
    images = noise(40, 9, 12)
    settings = Augment(crop_padding=3, flip=0.5, shift=1e-9 if affine else 0.0)
    draws = draw(settings, 40, 9, 12, seed=2)
    assert draws is not None
    changed = apply(images, draws)
    assert changed.dtype == (torch.float32 if affine else torch.uint8)
    assert changed.is_contiguous(memory_format=torch.channels_last)
    corners = set()
    for i in range(40):
        image = images[i].numpy()[:, :, ::-1] if draws.flip[i] else images[i].numpy()
        padded = np.pad(image, ((0, 0), (3, 3), (3, 3)), mode="reflect")
        y, x = int(draws.crop_y[i]) + 3, int(draws.crop_x[i]) + 3
        expected = padded[:, y : y + 9, x : x + 12]
        corners.add((y, x))
        assert np.allclose(changed[i].numpy(), expected, atol=TOLERANCE)
    ys, xs = zip(*corners, strict=True)
    assert {*ys} == {*xs} == {*range(7)}


def test_cutout_sets_a_whole_square_of_each_prepared_picture_to_zero():
    images = torch.rand(200, 3, 10, 14) + 0.5
    draws = draw(Augment(cutout=4), 200, 10, 14, seed=1)
    assert draws is not None and torch.equal(apply(images, draws), images)
    cut = cut_out(images, draws, 4) == 0.0
    assert (cut.sum((1, 2, 3)) == 3 * 4 * 4).all()
    for i in range(200):
        rows, columns = cut[i].any(0).any(1).nonzero(), cut[i].any(0).any(0).nonzero()
        assert rows.max() - rows.min() == columns.max() - columns.min() == 3
    assert {*draws.cut_y.tolist()} == {*range(7)} and {*draws.cut_x.tolist()} == {*range(11)}


def test_nothing_to_draw():
    assert draw(Augment(), 10, 32, 32, seed=0) is None


def test_draws_cover_what_was_asked_for():
    draws = draw(Augment(shift=0.1, rotation=15.0, zoom=0.2, flip=0.3), 20_000, 32, 40, seed=5)
    assert draws is not None and draws.angle is not None
    for values, low, high in [
        (draws.shift_y, -3.2, 3.2),
        (draws.shift_x, -4.0, 4.0),
        (draws.angle, -math.radians(15), math.radians(15)),
        (draws.scale, 0.8, 1.2),
    ]:
        span = high - low
        assert low <= values.min() < low + 0.001 * span and high - 0.001 * span < values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.01 * span)
        assert values.std().item() == pytest.approx(span / math.sqrt(12), rel=0.02)  # uniform
        assert values.round(decimals=3).unique().numel() > 100  # real-valued
    assert draws.flip.float().mean().item() == pytest.approx(0.3, abs=0.015)
    assert abs(np.corrcoef(draws.shift_y, draws.shift_x)[0, 1]) < 0.03


def test_same_seed_same_draws_and_each_change_its_own():
    one = draw(Augment(shift=0.1), 100, 32, 32, seed=7)
    two = draw(Augment(shift=0.1, flip=0.5, rotation=10.0), 100, 32, 32, seed=7)
    other = draw(Augment(shift=0.1), 100, 32, 32, seed=8)
    assert one is not None and two is not None and other is not None
    assert torch.equal(one.shift_y, two.shift_y) and not torch.equal(one.shift_y, other.shift_y)
    assert one.shift_y[:3].tolist() == pytest.approx(PINNED_SHIFTS)


PINNED_SHIFTS = [0.80061096, 2.54216838, 1.76438844]  # pixels; the same on every platform
