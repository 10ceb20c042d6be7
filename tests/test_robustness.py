import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn
from torch.nn import functional as F

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


def airbench_views(images: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Logits (N, classes) as cifar10-airbench averages them: `infer_mirror_translate` of airbench94.py."""

    def mirror(inputs: torch.Tensor) -> torch.Tensor:
        return 0.5 * model(inputs) + 0.5 * model(inputs.flip(-1))

    padded = F.pad(images, (1, 1, 1, 1), "reflect")
    height, width = images.shape[2:]
    corners = [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
    return 0.5 * mirror(images) + 0.5 * torch.stack([mirror(corner) for corner in corners]).mean(0)


def test_six_views_are_those_of_airbench() -> None:
    images = torch.from_numpy(pictures(30))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * images.shape[1] * images.shape[2], 4))
    inputs = AS_THEY_ARE(images.permute(0, 3, 1, 2))
    with torch.no_grad():
        expected = airbench_views(inputs, network)
        plain, mirrored = network(inputs), network(inputs.flip(-1))
    logits = tta.view_logits(network, AS_THEY_ARE, images, "mirror-shift")
    assert logits.shape == (6, 30, 4)
    assert torch.allclose(logits[0], plain) and torch.allclose(logits[1], mirrored)
    assert torch.allclose(tta.averaged(logits, "mirror-shift"), expected, rtol=1e-4)
    assert torch.allclose(tta.averaged(logits, "mirror"), (plain + mirrored) / 2, rtol=1e-4)
    assert (tta.averaged(logits, "none") == logits[0]).all()


def test_averaging_in_the_report_counts_what_is_right() -> None:
    images = pictures(30)
    labels = np.random.default_rng(1).integers(0, 2, 30)
    looked: list[int] = []
    found = tta.measure_tta(FirstPixel(), AS_THEY_ARE, images, labels, looked.append)
    assert [(each.name, each.views) for each in found] == [
        ("as it is", 1),
        ("with its mirror image", 2),
        ("with both moved by one pixel too", 6),
    ]
    red = images[..., 0].astype(float) - 127.5
    # Where a copy is moved right and down, what comes in at the corner is the second pixel of the second row.
    inner, mirrored_inner = red[:, 1, 1], red[:, 1, -2]
    both = (red[:, 0, 0] + red[:, 0, -1]) / 2
    expected = [red[:, 0, 0], both, both / 2 + (inner + mirrored_inner) / 4]
    for each, logits in zip(found, expected, strict=True):
        assert (each.right == ((logits > 0) == labels)).all(), each.name
    assert looked == [30] * 6
