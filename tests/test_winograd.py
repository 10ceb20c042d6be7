"""Convolutions by Winograd's method: PyTorch's results, but for rounding, whatever the shape and the processor."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cifarlab import training, winograd
from cifarlab.models.layers import LayerSequence
from cifarlab.recipe import override
from cifarlab.winograd import KERNELS, Kernels, convolve_then_pool, winograd_convolutions
from tests.tiny import RECIPE, tiny_source, use_source

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(
    not winograd.kernels_here(), reason="no kernels: another processor, or installed without"
)


each_kind = pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels.name)


@contextmanager
def alone(kernels: Kernels) -> Iterator[torch.dtype]:
    """Within it these are the only ones that there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "KERNELS", (kernels,))
        winograd._chosen.cache_clear()
        try:
            if winograd.kernels_here() != (kernels.name,):
                pytest.skip(f"this processor has no {kernels.name}, or the package was installed without")
            yield kernels.dtype
        finally:
            winograd._chosen.cache_clear()


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def results(
    images: Tensor, weight: Tensor, bias: Tensor | None, gradient: Tensor, *, pooled: bool, padding: int = 1
) -> list[Tensor]:
    """The output, and the gradients of images, weight and bias."""
    layer = nn.Conv2d(*weight.shape[1::-1], 3, padding=padding, bias=bias is not None).to(images.dtype)
    layer.weight.data = weight.to(images.dtype)
    if bias is not None:
        layer.bias.data = bias.to(images.dtype)  # type: ignore[union-attr]
    images = images.to(memory_format=torch.channels_last).requires_grad_()
    output = convolve_then_pool(images, layer, nn.MaxPool2d(2)) if pooled else layer(images)
    output.backward(gradient.to(images.dtype))
    return [output.detach(), *(part.grad for part in (images, *layer.parameters()) if part.grad is not None)]


@each_kind
@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 5),
    channels=st.integers(1, 9),
    filters=st.integers(1, 9),
    height=st.integers(4, 14),
    width=st.integers(4, 14),
    seed=st.integers(0, 2**31),
    padding=st.integers(0, 1),
    pooled=st.booleans(),
    biased=st.booleans(),
    threads=st.integers(1, 3),
)
def test_whole_numbers_give_exactly_what_they_should(
    kernels: Kernels,
    n: int,
    channels: int,
    filters: int,
    height: int,
    width: int,
    seed: int,
    padding: int,
    pooled: bool,
    biased: bool,
    threads: int,
) -> None:
    """With numbers so small that nothing is rounded before the end: ties of the pool are among them."""
    if winograd.saving(height, width, padding) < winograd.LEAST_SAVING:
        return
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape: int, largest: int = 2) -> Tensor:
        return torch.randint(-largest, largest + 1, shape, generator=generator, dtype=torch.float64)

    images, weight = whole(n, 8 * channels, height, width), 4 * whole(8 * filters, 8 * channels, 3, 3)
    bias = whole(8 * filters) if biased else None
    outputs = (height + 2 * padding - 2, width + 2 * padding - 2)
    if pooled:
        outputs = (outputs[0] // 2, outputs[1] // 2)
    gradient = whole(n, 8 * filters, *outputs, largest=1)
    expected = results(images, weight, bias, gradient, pooled=pooled, padding=padding)
    with alone(kernels) as dtype, pytest.MonkeyPatch.context() as patch, winograd_convolutions(CPU):
        patch.setattr(torch, "get_num_threads", lambda: threads)
        patch.setattr(winograd, "TILES_OF_A_PART", 3)
        found = results(images.to(dtype), weight, bias, gradient, pooled=pooled, padding=padding)
    for ours, exact in zip(found, expected, strict=True):
        assert torch.equal(ours, exact.to(ours.dtype))


@each_kind
@pytest.mark.parametrize("size", [(6, 6), (7, 12), (27, 27)])
def test_rounding_is_about_that_of_pytorch(kernels: Kernels, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images, weight = torch.randn(3, 24, *size), torch.randn(40, 24, 3, 3) / 15
    gradient = torch.randn(3, 40, *size)
    with alone(kernels) as dtype:
        exact = results(images.double(), weight, None, gradient, pooled=False)
        theirs = results(images.to(dtype), weight, None, gradient, pooled=False)
        with winograd_convolutions(CPU):
            ours = results(images.to(dtype), weight, None, gradient, pooled=False)
    for mine, plain, true in zip(ours, theirs, exact, strict=True):
        assert 0 < (mine - true).norm() < 4 * (plain - true).norm()
        assert not torch.equal(mine, plain)  # so that it is not PyTorch that was asked


@needs_kernels
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, padding=(0, 1)),
        nn.Conv2d(8, 8, 5, padding=2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding="same"),
    ],
    ids=str,
)
def test_other_convolutions_are_pytorchs(layer: nn.Conv2d) -> None:
    images = channels_last(2, 8, 10, 10)
    expected = layer(images)
    with winograd_convolutions(CPU):
        assert torch.equal(layer(images), expected)


@needs_kernels
@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, stride=1)], ids=str
)
def test_other_pools_are_pytorchs(pool: nn.MaxPool2d) -> None:
    images, layer = channels_last(2, 8, 11, 11), nn.Conv2d(8, 8, 3, padding=1)
    expected = pool(layer(images))
    with winograd_convolutions(CPU):
        assert torch.equal(convolve_then_pool(images, layer, pool), expected)


@needs_kernels
def test_a_sequence_pools_with_the_convolution() -> None:
    torch.manual_seed(0)
    pool = nn.MaxPool2d(2)
    layers = [
        nn.Conv2d(8, 16, 3),
        pool,
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    images = channels_last(2, 8, 14, 14)
    expected = nn.Sequential(*layers)(images)
    assert torch.equal(LayerSequence(*layers)(images), expected)
    pool.register_forward_hook(lambda *_: pytest.fail("pooled apart"))
    with winograd_convolutions(CPU):
        torch.testing.assert_close(LayerSequence(*layers)(images), expected)


@needs_kernels
def test_a_mistake_is_told_as_ever() -> None:
    images, layer = channels_last(2, 64, 10, 10), nn.Conv2d(8, 8, 3, padding=1)
    with winograd_convolutions(CPU), pytest.raises(RuntimeError, match="channels"):
        layer(images)


@needs_kernels
@pytest.mark.parametrize(
    "images",
    [
        torch.randn(2, 8, 10, 10),
        torch.randn(2, 8, 10, 10, dtype=torch.float64).to(memory_format=torch.channels_last),
        torch.randn(2, 8, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(8, 10, 10),
    ],
    ids=["another layout", "another type", "small pictures", "no batch"],
)
def test_other_pictures_are_pytorchs(images: Tensor) -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1).to(images.dtype)
    expected = layer(images)
    with winograd_convolutions(CPU):
        assert torch.equal(layer(images), expected)


@needs_kernels
def test_they_are_used_within_and_on_the_cpu_alone() -> None:
    torch.manual_seed(0)
    images, layer = (
        channels_last(2, 8, 10, 10),
        nn.Conv2d(8, 8, 3, padding=1),
    )
    plain = layer(images)
    with winograd_convolutions(CPU):
        assert not torch.equal(layer(images), plain)
    for context in (winograd_convolutions(CPU, wanted=False), winograd_convolutions(torch.device("cuda"))):
        with context:
            assert torch.equal(layer(images), plain)
    assert torch.equal(layer(images), plain)


@each_kind
def test_autocast_decides_the_type(kernels: Kernels) -> None:
    images, layer = (
        channels_last(2, 8, 10, 10),
        nn.Conv2d(8, 8, 3, padding=1),
    )
    mixed = kernels.dtype == torch.bfloat16
    with (
        alone(kernels),
        winograd_convolutions(CPU),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed),
    ):
        output = layer(images)
        output.float().sum().backward()
    assert output.dtype == kernels.dtype
    torch.testing.assert_close(output.float(), layer(images), rtol=0.05, atol=0.05)
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


@each_kind
def test_numbers_that_are_not_finite_stay_so(kernels: Kernels) -> None:
    """A training that diverges has to be seen."""
    images = channels_last(1, 8, 7, 7).to(kernels.dtype)
    images[0, 3, 6, 6] = torch.nan  # beside the last four that are pooled
    layer = nn.Conv2d(8, 8, 3, padding=1).to(kernels.dtype)
    with alone(kernels), winograd_convolutions(CPU):
        assert layer(images)[:, :, 5:, 5:].isnan().all()
        assert convolve_then_pool(images, layer, nn.MaxPool2d(2))[:, :, 2, 2].isnan().all()


@needs_kernels
def test_threads_change_nothing_but_the_order_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    images, weight, gradient = (
        torch.randn(40, 24, 13, 13),
        torch.randn(16, 24, 3, 3),
        torch.randn(40, 16, 13, 13),
    )

    def with_threads(threads: int) -> list[Tensor]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        with winograd_convolutions(CPU):
            return results(images, weight, None, gradient, pooled=False)

    one, three, again = with_threads(1), with_threads(3), with_threads(3)
    for single, first, second in zip(one, three, again, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(single, first, rtol=1e-4, atol=1e-3)
    assert torch.equal(one[0], three[0]) and torch.equal(one[1], three[1])


@needs_kernels
def test_a_training_uses_them_unless_told_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch, tiny_source)
    recipe = override(RECIPE, {"epochs": 1, "batch_size": 240, "device.name": "cpu"})  # one step
    weights = {}
    for wanted in (True, False):
        run = training.train(
            recipe, data="demo", out=tmp_path / str(wanted), overrides={"device.winograd": wanted}
        )
        weights[wanted] = run.load_weights("last")[0]
        recorded = json.loads((run.path / "environment.json").read_text())["winograd"]
        assert recorded == (list(winograd.kernels_here()) if wanted else [])
    assert any(not torch.equal(tensor, weights[False][name]) for name, tensor in weights[True].items())
    for name, tensor in weights[True].items():
        torch.testing.assert_close(tensor, weights[False][name], rtol=1e-3, atol=1e-4)


def test_what_is_not_there_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another system, or where nothing could be compiled."""
    layer, images = (
        nn.Conv2d(8, 8, 3, padding=1),
        channels_last(2, 8, 10, 10),
    )
    expected = layer(images)
    for name, value in {
        "_library": lambda kernels: None,
        "_parallel_region": lambda: None,
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(winograd, name, value)
            winograd._chosen.cache_clear()
            assert winograd.kernels_here() == ()
            with winograd_convolutions(CPU):
                assert torch.equal(layer(images), expected)
    winograd._chosen.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="compiled on Linux alone")
def test_the_installation_compiled_them() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    if " avx2 " not in flags or " fma " not in flags:
        pytest.skip("this processor has no AVX2")
    assert winograd.kernels_here(), "run `make` again, or `python hatch_build.py` with ziglang installed"


def test_the_saving_is_what_the_arithmetic_says() -> None:
    """Counted: taps of a 3x3 kernel that fall into the picture, against 16 for each tile that is begun."""
    for height, width, padding in ((3, 3, 1), (6, 9, 1), (13, 13, 1), (12, 15, 0)):
        taps = F.conv2d(torch.ones(1, 1, height, width), torch.ones(1, 1, 3, 3), padding=padding)
        tiles = -(-taps.shape[2] // 2) * -(-taps.shape[3] // 2)
        assert winograd.saving(height, width, padding) == pytest.approx(taps.sum().item() / (16 * tiles))
