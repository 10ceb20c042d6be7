import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn

from cifarlab import robustness, tta
from cifarlab.data.augment import shift_pixels
from cifarlab.preparation import Preparation

AS_THEY_ARE = Preparation(6, 5, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def pictures(n: int = 9, height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


class FirstPixel(nn.Module):
    """Answers 1 where the pixel at the top left is brighter than 127 in red, else 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        red = inputs[:, 0, 0, 0] * self.weight - 127.5
        return torch.stack([-red, red], dim=1)


def test_shifts_repeat_the_edge() -> None:
    image = torch.arange(6, dtype=torch.uint8).view(1, 2, 3, 1)
    assert shift_pixels(image, 0, 1).view(2, 3).tolist() == [[0, 0, 1], [3, 3, 4]]
    assert shift_pixels(image, 1, 0).view(2, 3).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert shift_pixels(image, -5, -5).unique().tolist() == [5]


def test_four_pictures_go_four_ways() -> None:
    images = pictures(4)
    moved = robustness.shifted(images, 2)
    assert (moved[0, :, 2:] == images[0, :, :-2]).all()
    assert (moved[1, :, :-2] == images[1, :, 2:]).all()
    assert (moved[2, 2:] == images[2, :-2]).all()
    assert (moved[3, :-2] == images[3, 2:]).all()


def test_flips_and_brightness() -> None:
    images = pictures()
    assert (robustness.flipped(images, 1) == images[:, :, ::-1]).all()
    assert (robustness.flipped(images, 2) == images[:, ::-1]).all()
    doubled = robustness.brightened(images, 2)
    assert (doubled == np.minimum(images.astype(int) * 2, 255)).all()


def test_noise_has_its_deviation_and_is_the_same_every_time() -> None:
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    noisy = robustness.noisy(grey, 16)
    assert noisy.astype(float).std() == pytest.approx(16, rel=0.02)
    assert noisy.astype(float).mean() == pytest.approx(128, abs=0.3)
    assert (robustness.noisy(grey, 16) == noisy).all()


def test_blur_is_gaussian() -> None:
    dot = np.zeros((1, 31, 31, 3), np.uint8)
    dot[0, 15, 15] = 255
    ours = robustness.blurred(dot, 1.5)[0, :, :, 0].astype(float)
    across = (np.arange(31) - 15) ** 2 * ours.sum(0) / ours.sum()
    assert np.sqrt(across.sum()) == pytest.approx(1.5, rel=0.15)
    soft = robustness.blurred(pictures(1, 40, 40), 2)[0].astype(float)
    pillow = np.asarray(Image.fromarray(pictures(1, 40, 40)[0]).filter(ImageFilter.GaussianBlur(2)))
    assert np.abs(soft - pillow)[8:-8, 8:-8].mean() < 3  # Pillow's is made of boxes


def test_jpeg_is_that_of_pillow() -> None:
    images = pictures(2, 16, 16)
    file = io.BytesIO()
    Image.fromarray(images[1]).save(file, "JPEG", quality=30)
    assert (robustness.compressed(images, 30)[1] == np.asarray(Image.open(file))).all()
    assert robustness.compressed(images, 100) is images


@pytest.mark.parametrize("change", robustness.CHANGES, ids=lambda change: change.name)
def test_every_change_keeps_form_and_originals_and_has_a_level_that_changes_nothing(change) -> None:
    images = pictures(5, 16, 16)
    before = images.copy()
    for level in change.levels:
        changed = change.apply(images, level)
        assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
        assert (changed == images).all() == (level == change.as_it_is)
    assert (images == before).all()
    assert not change.words or len(change.words) == len(change.levels)


def test_a_curve_counts_what_is_right_at_each_level() -> None:
    images = pictures(40)
    labels = (images[:, 0, 0, 0] > 127).astype(np.int64)
    looked: list[int] = []
    curves = {
        curve.change.name: curve
        for curve in robustness.measure_robustness(FirstPixel(), AS_THEY_ARE, images, labels, looked.append)
    }
    for curve in curves.values():
        assert curve.n == 40
        for level, right in zip(curve.change.levels, curve.right, strict=True):
            answers = curve.change.apply(images, level)[:, 0, 0, 0] > 127
            assert right == (answers == labels).sum(), (curve.change.name, level)
    assert curves["Flip"].right[0] == 40 > curves["Flip"].right[1]
    assert looked == [40] * robustness.passes()


def test_averaging_over_views_by_hand() -> None:
    images = pictures(30)
    labels = np.random.default_rng(1).integers(0, 2, 30)
    found = {each.name: each for each in tta.measure_tta(FirstPixel(), AS_THEY_ARE, images, labels)}
    assert [each.views for each in found.values()] == [1, 2, 5, 10]
    red = images[..., 0].astype(float) - 127.5
    sure = 1 / (1 + np.exp(-2 * red))  # softmax of (-red, red)
    # The first pixel of a copy moved right or down is the first pixel again; left and up bring its neighbours.
    shifted = 3 * sure[:, 0, 0] + sure[:, 0, 1] + sure[:, 1, 0]
    mirrored = 3 * sure[:, 0, -1] + sure[:, 0, -2] + sure[:, 1, -1]
    expected = {
        "as it is": sure[:, 0, 0],
        "with its mirror image": (sure[:, 0, 0] + sure[:, 0, -1]) / 2,
        "with four shifts of one pixel": shifted / 5,
        "with both": (shifted + mirrored) / 10,
    }
    for name, mean in expected.items():
        assert (found[name].right == ((mean > 0.5) == labels)).all(), name
