"""Preparation: fitted to training pictures, the same everywhere, stored with the weights."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from cifarlab.preparation import Preparation

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 3)).astype(np.uint8) // np.array(
    [1, 2, 4], np.uint8
)


def prepared(kind: str) -> np.ndarray:
    preparation = Preparation.from_training_images(kind, IMAGES)
    assert (preparation.height, preparation.width) == (6, 5)
    again = Preparation.from_dict(json.loads(json.dumps(asdict(preparation))))
    assert again == preparation
    return again(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).numpy()


def test_scale() -> None:
    np.testing.assert_allclose(prepared("scale"), IMAGES.transpose(0, 3, 1, 2) / 255, rtol=1e-6)


def test_center() -> None:
    scaled = IMAGES.transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(prepared("center"), scaled - scaled.mean((0, 2, 3), keepdims=True), atol=1e-6)


def test_standardize_has_one_mean_and_one_deviation() -> None:
    """T2: (x - mean) / (std + 1e-7) over all pixels and channels."""
    raw = IMAGES.transpose(0, 3, 1, 2).astype(np.float64)
    np.testing.assert_allclose(prepared("standardize"), (raw - raw.mean()) / (raw.std() + 1e-7), atol=1e-5)


def test_standardize_channels() -> None:
    result = prepared("standardize-channels")
    np.testing.assert_allclose(result.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(result.std((0, 2, 3)), 1, atol=1e-5)


def test_a_constant_channel_is_no_division_by_zero() -> None:
    preparation = Preparation.from_training_images("standardize-channels", np.full((3, 2, 2, 3), 9, np.uint8))
    assert torch.equal(preparation(torch.full((1, 3, 2, 2), 9, dtype=torch.uint8)), torch.zeros(1, 3, 2, 2))


def test_pictures_given_are_not_changed() -> None:
    images = torch.full((1, 3, 2, 2), 100.0)
    Preparation(2, 2, (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))(images)
    assert torch.equal(images, torch.full((1, 3, 2, 2), 100.0))


@pytest.mark.parametrize("text", ["{}", "[]", '{"height": 1, "width": 1, "mean": [1], "std": [1]}'])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Preparation.from_dict(json.loads(text))
