"""Convolutions by Winograd's method: PyTorch's results, but for rounding, whatever the shape and the processor."""

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import RECIPE, tiny_source, use_source
from torch import Tensor, nn
from torch.nn import functional as F

from cifarlab import training
from cifarlab.kernels import compiled, convolve, kernels_here, own_kernels, run_operations, winograd
from cifarlab.kernels.winograd import KERNELS, Kernels
from cifarlab.models.layers import LayerSequence, SameConv2d
from cifarlab.recipe import override

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(
    not kernels_here(), reason="no kernels: another processor, or installed without"
)
each_kind = pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels.name)
# On whole numbers: between the transforms of larger tiles they become too large.
EXACT = [kernels for kernels in KERNELS if kernels.side < 8]
exactly = pytest.mark.parametrize("kernels", EXACT, ids=lambda kernels: kernels.name)
in_float32 = pytest.mark.parametrize("kernels", KERNELS[1:], ids=lambda kernels: kernels.name)


@contextmanager
def alone(kernels: Kernels) -> Iterator[torch.dtype]:
    """Within it these are the only ones that there are, and they are used whether they gain or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "KERNELS", (kernels,))
        patch.setattr(winograd, "LEAST_SAVING", 0)
        patch.setattr(winograd, "LEAST_TILES", 0)
        forget_plans()
        try:
            if not winograd.chosen():
                pytest.skip(f"this processor has no {kernels.name}, or the package was installed without")
            yield kernels.dtype
        finally:
            forget_plans()


def forget_plans() -> None:
    for function in (winograd.chosen, winograd.suited, winograd.geometry):
        function.cache_clear()


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Case:
    """A convolution and what follows it."""

    layer: nn.Conv2d
    images: Tensor
    gradient: Tensor
    pooled: bool
    relu: bool

    def results(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The output, and the gradients of weight and bias, and of the images where they can have one."""
        layer = copy.deepcopy(self.layer).to(dtype, memory_format=torch.channels_last)
        images = self.images.to(dtype, memory_format=torch.channels_last)
        images.requires_grad_(images.shape[1] % 8 == 0)
        pool, relu = nn.MaxPool2d(2) if self.pooled else None, nn.ReLU() if self.relu else None
        output = run_operations(images, [(convolve, layer, pool, relu)])
        output.backward(self.gradient.to(dtype))
        gradients = {"images": images.grad} | {name: part.grad for name, part in layer.named_parameters()}
        return {"output": output.detach()} | {
            name: part for name, part in gradients.items() if part is not None
        }


@st.composite
def cases(draw: st.DrawFn, kernel_size: int, *, unit: int | None = None) -> Case:
    """Of any shape, normally distributed, or in whole numbers so small that nothing is rounded before the end: weights
    and biases are multiples of `unit`, which what transforms divide by divides."""
    size = draw(st.sampled_from((2, 3))) if kernel_size == 3 else kernel_size
    channels = draw(st.sampled_from((1, 3, 8, 13, 16, 24) if unit else (1, 3, 8, 13, 16, 32, 72)))
    filters, padding = 8 * draw(st.integers(1, 9)), draw(st.integers(0, kernel_size - 1))
    pooled, relu, n = draw(st.booleans()), draw(st.booleans()), draw(st.integers(1, 5))
    side = st.integers(kernel_size + 1, 14)
    height, width = draw(side), draw(side)
    if size == 2:
        layer: nn.Conv2d = SameConv2d(channels, filters, 2, 1)
    else:
        layer = nn.Conv2d(channels, filters, size, padding=padding, bias=draw(st.booleans()))
    torch.manual_seed(draw(st.integers(0, 2**31)))

    def numbers(*shape: int) -> Tensor:
        if unit is None:
            return torch.randn(shape, dtype=torch.float64)
        return torch.randint(-1, 2, shape, dtype=torch.float64)

    layer.double()
    for part in layer.parameters():
        part.data = numbers(*part.shape) * (unit or 1)
    images = numbers(n, channels, height, width)
    shape = layer(images[:1]).shape[1:]
    shape = (shape[0], shape[1] // 2, shape[2] // 2) if pooled else tuple(shape)
    return Case(layer, images, numbers(n, *shape), pooled, relu)


THREADS = st.integers(1, 3)


def own_results(case: Case, kernels: Kernels, threads: int) -> dict[str, Tensor]:
    with alone(kernels) as dtype, pytest.MonkeyPatch.context() as patch, own_kernels(CPU):
        patch.setattr(torch, "get_num_threads", lambda: threads)
        patch.setattr(winograd, "TILES_OF_A_PART", 1)
        patch.setattr(F, "conv2d", lambda *_: pytest.fail("PyTorch was asked"))
        return case.results(dtype)


@exactly
@settings(deadline=None, max_examples=60)
@given(data=st.data(), threads=THREADS)
def test_whole_numbers_give_exactly_what_they_should(
    kernels: Kernels, data: st.DataObject, threads: int
) -> None:
    """Ties of the pool are among them, and zeros before ReLU. A float32 gradient of weights is divided last."""
    of_float32 = kernels.dtype == torch.float32
    case = data.draw(cases(kernels.kernel_size, unit=24 * 24 if of_float32 else 4))
    expected = case.results(torch.float64)
    for name, found in own_results(case, kernels, threads).items():
        wanted = expected[name].to(found.dtype)
        if of_float32 and name == "weight":
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-3)
        else:
            assert torch.equal(found, wanted), name


@in_float32
@settings(deadline=None, max_examples=60)
@given(data=st.data(), threads=THREADS)
def test_results_are_pytorchs_but_for_rounding(kernels: Kernels, data: st.DataObject, threads: int) -> None:
    case = data.draw(cases(kernels.kernel_size))
    expected = case.results(torch.float64)
    # What is the largest of four, or above 0, can be another one by rounding: a few values of a gradient then differ.
    most = 0.05 if case.pooled or case.relu else 1e-5
    for name, found in own_results(case, kernels, threads).items():
        wanted = expected[name]
        assert (found - wanted).norm() <= (1e-5 if name == "output" else most) * wanted.norm() + 1e-5, name


@in_float32
def test_rounding_is_small(kernels: Kernels) -> None:
    """Larger tiles lose a few bits more than PyTorch does: about those of sums in another order, of 24."""
    torch.manual_seed(0)
    size = kernels.kernel_size
    layer = nn.Conv2d(64, 64, size, padding=size // 2)
    case = Case(layer, torch.randn(8, 64, 16, 16), torch.randn(8, 64, 16, 16), pooled=False, relu=False)
    exact, found = case.results(torch.float64), own_results(case, kernels, 2)
    for name, part in found.items():
        assert 0 < (part - exact[name]).norm() < 5e-6 * exact[name].norm(), name


@in_float32
@pytest.mark.parametrize("threads", [1, 3])
def test_many_channels_make_several_blocks(kernels: Kernels, threads: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(520, 104, kernels.kernel_size, padding=kernels.kernel_size // 2)
    case = Case(layer, torch.randn(70, 520, 6, 6), torch.randn(70, 104, 6, 6), pooled=False, relu=False)
    exact = case.results(torch.float64)
    for name, part in own_results(case, kernels, threads).items():
        assert (part - exact[name]).norm() < 1e-5 * exact[name].norm(), name


@each_kind
def test_the_first_of_four_equal_ones_has_the_gradient(kernels: Kernels) -> None:
    layer = nn.Conv2d(8, 8, kernels.kernel_size, padding=kernels.kernel_size // 2)
    nn.init.zeros_(layer.weight)
    nn.init.ones_(layer.bias)  # type: ignore[arg-type]
    case = Case(layer, torch.ones(1, 8, 8, 8), torch.rand(1, 8, 4, 4), pooled=True, relu=True)
    found, expected = own_results(case, kernels, 1), case.results(torch.float64)
    torch.testing.assert_close(found["weight"], expected["weight"].to(kernels.dtype), rtol=2e-2, atol=1e-5)


@each_kind
def test_nothing_comes_through_a_relu_at_zero(kernels: Kernels) -> None:
    layer = nn.Conv2d(8, 8, kernels.kernel_size, padding=kernels.kernel_size // 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    for pooled, side in ((True, 4), (False, 8)):
        case = Case(layer, torch.ones(1, 8, 8, 8), torch.rand(1, 8, side, side), pooled=pooled, relu=True)
        found = own_results(case, kernels, 1)
        assert not found["weight"].any() and not found["bias"].any()


@needs_kernels
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, padding=(0, 1)),
        nn.Conv2d(8, 8, 7, padding=3),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 12, 3, padding=1),
        SameConv2d(8, 8, 4, 1),
        SameConv2d(8, 8, 2, 2),
    ],
    ids=str,
)
def test_other_convolutions_are_pytorchs(layer: nn.Conv2d) -> None:
    images = channels_last(20, 8, 10, 10)
    expected = layer(images)
    with own_kernels(CPU):
        assert torch.equal(layer(images), expected)


@needs_kernels
@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, stride=1)], ids=str
)
def test_other_pools_are_pytorchs(pool: nn.MaxPool2d) -> None:
    images, layer = channels_last(20, 8, 11, 11), nn.Conv2d(8, 8, 3, padding=1)
    expected = pool(layer(images))
    with own_kernels(CPU):
        assert torch.equal(run_operations(images, [(convolve, layer, pool)]), expected)


@needs_kernels
def test_a_sequence_does_the_pool_and_the_relu_with_the_convolution() -> None:
    torch.manual_seed(0)
    apart = [nn.MaxPool2d(2), nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)]
    layers = [
        *(nn.Conv2d(8, 16, 3), *apart[:2]),
        *(nn.Conv2d(16, 8, 3, padding=1), apart[2], nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), apart[3]),
    ]
    images = channels_last(20, 8, 34, 34)
    expected = nn.Sequential(*layers)(images)
    assert torch.equal(LayerSequence(*layers)(images), expected)
    for layer in apart:
        layer.register_forward_hook(lambda *_: pytest.fail("apart"))
    with own_kernels(CPU):
        torch.testing.assert_close(LayerSequence(*layers)(images), expected)


@needs_kernels
def test_gradients_that_nobody_wants_are_left_out() -> None:
    """As where layers are frozen."""
    torch.manual_seed(0)
    images, layer = channels_last(20, 8, 12, 12).requires_grad_(), nn.Conv2d(8, 16, 3)
    run_operations(images, [(convolve, layer, None, nn.ReLU())]).sum().backward()
    whole = {"images": images.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}  # type: ignore[union-attr]
    for name, wanted in whole.items():
        parts = {"images": images, "weight": layer.weight, "bias": layer.bias}
        for other, part in parts.items():
            part.requires_grad_(other == name).grad = None  # type: ignore[union-attr]
        with own_kernels(CPU):
            run_operations(images, [(convolve, layer, None, nn.ReLU())]).sum().backward()
        torch.testing.assert_close(parts[name].grad, wanted, rtol=1e-3, atol=1e-3)  # type: ignore[union-attr]
        assert all(part.grad is None for other, part in parts.items() if other != name)  # type: ignore[union-attr]


@needs_kernels
def test_paddings_in_every_form() -> None:
    torch.manual_seed(0)
    images, weight = channels_last(20, 8, 12, 12), torch.randn(8, 8, 3, 3)
    for padding in ("valid", "same", [1], (2, 2), 1):
        expected = F.conv2d(images, weight, padding=padding)
        with own_kernels(CPU):
            found = F.conv2d(images, weight, padding=padding)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        assert not torch.equal(found, expected)


@needs_kernels
def test_biases_and_types_that_do_not_fit_are_told_as_ever() -> None:
    images, weight = channels_last(20, 8, 12, 12), torch.randn(8, 8, 3, 3)
    with own_kernels(CPU):
        with pytest.raises(RuntimeError, match="bias"):
            F.conv2d(images, weight, torch.zeros(4), padding=1)
        with pytest.raises(RuntimeError, match="type"):
            F.conv2d(images, weight.double(), padding=1)
        with pytest.raises(RuntimeError, match="padding"):
            F.conv2d(images, weight, padding="sam")


@needs_kernels
def test_a_bias_that_does_not_lie_side_by_side_is_pytorchs() -> None:
    images, weight = channels_last(20, 8, 12, 12), torch.randn(8, 8, 3, 3)
    bias = torch.randn(16)[::2]
    expected = F.conv2d(images, weight, bias, padding=1)
    with own_kernels(CPU):
        assert torch.equal(F.conv2d(images, weight, bias, padding=1), expected)


@needs_kernels
def test_a_mistake_is_told_as_ever() -> None:
    images, layer = channels_last(2, 64, 10, 10), nn.Conv2d(8, 8, 3, padding=1)
    with own_kernels(CPU), pytest.raises(RuntimeError, match="channels"):
        layer(images)


@needs_kernels
@pytest.mark.parametrize(
    "images",
    [
        torch.randn(20, 8, 10, 10),
        torch.randn(20, 8, 10, 10, dtype=torch.float64).to(memory_format=torch.channels_last),
        torch.randn(90, 8, 2, 2).to(memory_format=torch.channels_last),
        torch.randn(2, 8, 10, 10).to(memory_format=torch.channels_last),
        torch.randn(8, 10, 10),
    ],
    ids=["another layout", "another type", "small pictures", "few pictures", "no batch"],
)
def test_other_pictures_are_pytorchs(images: Tensor) -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1).to(images.dtype)
    expected = layer(images)
    with own_kernels(CPU):
        assert torch.equal(layer(images), expected)


@needs_kernels
def test_pictures_of_three_channels_that_need_a_gradient_are_pytorchs() -> None:
    images, layer = channels_last(20, 3, 10, 10).requires_grad_(), nn.Conv2d(3, 8, 3, padding=1)
    expected = layer(images)
    with own_kernels(CPU):
        assert torch.equal(layer(images), expected)
        assert not torch.equal(layer(images.detach()), expected)


@needs_kernels
def test_they_are_used_within_and_on_the_cpu_alone() -> None:
    torch.manual_seed(0)
    images, layer = (
        channels_last(20, 8, 10, 10),
        nn.Conv2d(8, 8, 3, padding=1),
    )
    plain = layer(images)
    with own_kernels(CPU):
        assert not torch.equal(layer(images), plain)
    for context in (own_kernels(CPU, wanted=False), own_kernels(torch.device("cuda"))):
        with context:
            assert torch.equal(layer(images), plain)
    assert torch.equal(layer(images), plain)


@each_kind
def test_autocast_decides_the_type(kernels: Kernels) -> None:
    images, layer = channels_last(2, 8, 10, 10), nn.Conv2d(8, 8, kernels.kernel_size, padding=1)
    mixed = kernels.dtype == torch.bfloat16
    with alone(kernels), own_kernels(CPU), torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        output = layer(images)
        output.float().sum().backward()
    assert output.dtype == kernels.dtype
    torch.testing.assert_close(output.float(), layer(images), rtol=0.05, atol=0.05)
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


@each_kind
@pytest.mark.parametrize("relu", [None, nn.ReLU()], ids=["", "relu"])
def test_numbers_that_are_not_finite_stay_so(kernels: Kernels, relu: nn.ReLU | None) -> None:
    """A training that diverges has to be seen."""
    images = channels_last(1, 8, 7, 7).to(kernels.dtype)
    images[0, 3, 6, 6] = torch.nan  # beside the last four that are pooled
    layer = nn.Conv2d(8, 8, kernels.kernel_size, padding=kernels.kernel_size // 2).to(kernels.dtype)
    with alone(kernels), own_kernels(CPU):
        assert run_operations(images, [(convolve, layer, None, relu)])[:, :, 5:, 5:].isnan().all()
        assert run_operations(images, [(convolve, layer, nn.MaxPool2d(2), relu)])[:, :, 2, 2].isnan().all()


@each_kind
def test_threads_change_nothing_but_the_order_of_sums(kernels: Kernels) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 16, kernels.kernel_size, padding=kernels.kernel_size // 2)
    case = Case(layer, torch.randn(40, 24, 13, 13), torch.randn(40, 16, 13, 13), pooled=False, relu=True)
    one, three, again = (own_results(case, kernels, threads) for threads in (1, 3, 3))
    for name in one:
        assert torch.equal(three[name], again[name])
        torch.testing.assert_close(one[name], three[name], rtol=1e-2, atol=1e-2)
    assert torch.equal(one["output"], three["output"]) and torch.equal(one["images"], three["images"])


@needs_kernels
def test_a_training_uses_them_unless_told_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch, tiny_source)
    # One step, without what PyTorch's batch norm loses in channels_last where it has no AVX-512
    settings = {"epochs": 1, "batch_size": 240, "device.name": "cpu", "model.batch_norm": False}
    recipe = override(RECIPE, settings)
    weights = {}
    for wanted in (True, False):
        run = training.train(
            recipe, data="demo", out=tmp_path / str(wanted), overrides={"device.winograd": wanted}
        )
        weights[wanted] = run.load_weights("last")[0]
        recorded = json.loads((run.path / "environment.json").read_text())["winograd"]
        assert recorded == (list(kernels_here()) if wanted else [])
    assert any(not torch.equal(tensor, weights[False][name]) for name, tensor in weights[True].items())
    for name, tensor in weights[True].items():
        torch.testing.assert_close(tensor, weights[False][name], rtol=1e-3, atol=1e-4)


def forget_what_is_here() -> None:
    for function in (compiled.library, kernels_here, winograd.chosen):
        function.cache_clear()


def test_what_is_not_there_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another system, or where nothing could be compiled."""
    layer, images = nn.Conv2d(8, 8, 3, padding=1), channels_last(20, 8, 10, 10)
    expected = layer(images)
    for name, value in {"_file": lambda name: Path("nowhere"), "parallel_region": lambda: None}.items():
        with monkeypatch.context() as patch:
            patch.setattr(compiled, name, value)
            forget_what_is_here()
            assert kernels_here() == ()
            with own_kernels(CPU):
                assert torch.equal(layer(images), expected)
    forget_what_is_here()


@pytest.mark.skipif(sys.platform != "linux", reason="compiled on Linux alone")
def test_the_installation_compiled_them() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    if " avx2 " not in flags or " fma " not in flags:
        pytest.skip("this processor has no AVX2")
    assert kernels_here(), "run `make` again, or `python hatch_build.py` with ziglang installed"


@pytest.mark.parametrize("pooled", [False, True], ids=["", "pooled"])
@pytest.mark.parametrize(
    ("side", "wide"), [(3, False), (5, True), (6, True), (7, False), (12, False), (18, True), (32, False)]
)
def test_large_tiles_are_taken_where_they_fit(
    side: int, wide: bool, pooled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [kernels for kernels in KERNELS if kernels.name.startswith("winograd-avx2-3x3")]
    monkeypatch.setattr(winograd, "chosen", lambda: {(torch.float32, 3): several})
    winograd.suited.cache_clear()
    found = winograd.suited(torch.float32, 3, (64, 8, side, side), (8, 8, 3, 3), 1, pooled)
    winograd.suited.cache_clear()
    assert found is not None
    assert (found.side == 8) == wide  # of 7 pooling takes 6, but the gradient is of 7


@pytest.mark.parametrize("kernels", KERNELS[:3], ids=lambda kernels: kernels.name)
def test_the_saving_is_what_the_arithmetic_says(kernels: Kernels) -> None:
    """Counted: taps of a kernel that fall into the picture, against a square for each tile that is begun."""
    for height, width, padding in ((3, 5, 2), (3, 3, 1), (6, 9, 1), (13, 13, 1), (12, 15, 0)):
        if min(height, width) + 2 * padding < kernels.kernel_size:
            continue
        taps = F.conv2d(
            torch.ones(1, 1, height, width),
            torch.ones(1, 1, kernels.kernel_size, kernels.kernel_size),
            padding=padding,
        )
        tiles = -(-taps.shape[2] // kernels.outputs) * -(-taps.shape[3] // kernels.outputs)
        found = winograd.saving(kernels, height, width, padding)
        assert found == pytest.approx(taps.sum().item() / (kernels.side**2 * tiles))
