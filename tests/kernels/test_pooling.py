"""2x2 max-pooling, and dropout before it, by our own kernels."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.only import only
from torch import Tensor, nn

from cifarlab.kernels import own_kernels, pooling
from cifarlab.models.layers import Dropout, LayerSequence

CPU = torch.device("cpu")
each_kind = pytest.mark.parametrize("name", pooling.KERNELS)
SHAPES = st.tuples(st.integers(1, 4), st.sampled_from([16, 48]), st.integers(2, 33), st.integers(2, 33))


@contextmanager
def kernel(name: str | None, threads: int = 2) -> Iterator[None]:
    """This one alone, or none, whatever the size; within `own_kernels`."""
    with pytest.MonkeyPatch.context() as patch:
        only(patch, pooling, name, "_chosen")
        patch.setattr(pooling, "LEAST_VALUES", 0)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        with own_kernels(CPU):
            yield


def pictures(shape: tuple[int, ...], *, ties: bool = False) -> Tensor:
    """Of few different values, with `ties`; not all finite."""
    values = torch.randint(-1, 2, shape).float() if ties else torch.randn(shape)
    for value in (math.nan, math.inf, -math.inf):
        values[torch.rand(shape) < 0.02] = value
    return values.contiguous(memory_format=torch.channels_last)


def results(network: nn.Module, images: Tensor, gradient: Tensor | None = None) -> tuple[Tensor, Tensor, str]:
    """The output, the gradient of `images`, and what computed them, from the same state of the generator."""
    images = images.detach().requires_grad_()
    torch.manual_seed(5)
    output = network(images)
    if gradient is None:
        gradient = torch.arange(1.0, output.numel() + 1, dtype=output.dtype).view(output.shape)
    output.backward(gradient)
    assert images.grad is not None and output.grad_fn is not None
    return output.detach(), images.grad, output.grad_fn.name()


def assert_equal(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@settings(deadline=None, max_examples=40)
@given(
    shape=SHAPES,
    rate=st.sampled_from([0.0, 1e-6, 0.25, 0.9, 1 - 1e-6]),
    ties=st.booleans(),
    threads=st.integers(1, 3),
)
@each_kind
def test_dropout_and_pool_are_what_they_are_one_by_one(
    name: str, shape: tuple[int, ...], rate: float, ties: bool, threads: int
) -> None:
    """Whatever is dropped, of equal values and of values that are not finite; and so are the gradients."""
    torch.manual_seed(0)
    images = pictures(shape, ties=ties)
    drop, pool = Dropout(rate), nn.MaxPool2d(2)
    expected = results(nn.Sequential(drop, pool), images)
    with kernel(name, threads):
        found = results(LayerSequence(drop, pool), images)
    assert found[2] == ("MaxPool2DWithIndicesBackward0" if rate == 0.0 else "_DropoutPoolBackward")
    assert_equal(found[:2], expected[:2])
    assert all(values.is_contiguous(memory_format=torch.channels_last) for values in found[:2])


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, ties=st.booleans(), threads=st.integers(1, 3))
@each_kind
def test_pool_alone_is_pytorchs(name: str, shape: tuple[int, ...], ties: bool, threads: int) -> None:
    torch.manual_seed(0)
    images = pictures(shape, ties=ties)
    expected = results(nn.MaxPool2d(2), images)
    with kernel(name, threads):
        found = results(nn.MaxPool2d(2), images)
    assert found[2] == "_MaxPoolBackward"
    assert_equal(found[:2], expected[:2])


@each_kind
def test_large_batches(name: str) -> None:
    """Which several threads take parts of."""
    images = pictures((32, 32, 28, 27))
    drop, pool = Dropout(0.25), nn.MaxPool2d(2)
    expected = results(nn.Sequential(drop, pool), images)
    for threads in (1, 2, 5):
        with kernel(name, threads):
            assert_equal(results(LayerSequence(drop, pool), images)[:2], expected[:2])


@each_kind
def test_a_gradient_in_another_layout(name: str) -> None:
    images, gradient = pictures((2, 16, 6, 5)), torch.randn(2, 16, 3, 2)
    drop, pool = Dropout(0.5), nn.MaxPool2d(2)
    expected = results(nn.Sequential(drop, pool), images, gradient)
    with kernel(name):
        assert_equal(results(LayerSequence(drop, pool), images, gradient)[:2], expected[:2])


@each_kind
def test_evaluation_drops_nothing(name: str) -> None:
    images = pictures((2, 16, 6, 6))
    network = LayerSequence(Dropout(0.5), nn.MaxPool2d(2)).eval()
    expected = nn.functional.max_pool2d(images, 2)
    state = torch.get_rng_state()
    with kernel(name):
        assert_equal((network(images),), (expected,))
    assert torch.equal(torch.get_rng_state(), state)


@each_kind
def test_the_generator_goes_on_as_without(name: str) -> None:
    """So that what is drawn after it is the same."""
    network, images = LayerSequence(Dropout(0.5), nn.MaxPool2d(2)), pictures((2, 16, 6, 6))
    states = []
    for kind in (name, None):
        torch.manual_seed(5)
        with kernel(kind):
            network(images)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


OTHER_IMAGES = {
    "float64": pictures((2, 16, 6, 6)).double(),
    "bfloat16": pictures((2, 16, 6, 6)).bfloat16(),
    "contiguous": pictures((2, 16, 6, 6)).contiguous(),
    "few channels": pictures((2, 12, 6, 6)),
    "one picture": pictures((2, 16, 6, 6))[0],
    "a part of channels": pictures((2, 32, 6, 6))[:, :16],
    "none": torch.empty(0, 16, 6, 6).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("kind", OTHER_IMAGES)
def test_other_images_are_pytorchs(kind: str) -> None:
    images, drop, pool = OTHER_IMAGES[kind], Dropout(0.5), nn.MaxPool2d(2)
    for layers in ([drop, pool], [pool]):
        expected = results(nn.Sequential(*layers), images)
        with own_kernels(CPU), pytest.MonkeyPatch.context() as patch:
            patch.setattr(pooling, "LEAST_VALUES", 0)
            found = results(LayerSequence(*layers), images)
        assert found[2] == expected[2]
        assert_equal(found[:2], expected[:2])


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3),
        nn.MaxPool2d(2, stride=1),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d((2, 3)),
    ],
    ids=str,
)
@each_kind
def test_other_pools_are_pytorchs(name: str, pool: nn.MaxPool2d) -> None:
    images = pictures((2, 16, 7, 7))
    for layers in ([Dropout(0.5), pool], [pool]):
        expected = results(nn.Sequential(*layers), images)
        with kernel(name):
            assert_equal(results(LayerSequence(*layers), images)[:2], expected[:2])


@each_kind
def test_a_pool_with_indices_is_pytorchs(name: str) -> None:
    images = pictures((2, 16, 7, 7))
    with kernel(name):
        found = nn.functional.max_pool2d(images, 2, return_indices=True)
    assert_equal(found, nn.functional.max_pool2d(images, 2, return_indices=True))


@each_kind
def test_pictures_too_small_are_refused_as_by_pytorch(name: str) -> None:
    images = torch.zeros(2, 16, 1, 4).to(memory_format=torch.channels_last)
    with kernel(name), pytest.raises(RuntimeError, match="Output size is too small"):
        nn.functional.max_pool2d(images, 2)
