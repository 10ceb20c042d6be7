"""Batch normalisation by our own kernels: PyTorch's results, but for rounding."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.only import only
from torch import Tensor, nn

from cifarlab.kernels import normalisation, normalise, own_kernels, run_operations
from cifarlab.models.airbench import BiasBatchNorm2d
from cifarlab.models.layers import BiasedBatchNorm2d, LayerSequence

CPU = torch.device("cpu")
each_kind = pytest.mark.parametrize("name", normalisation.KERNELS)
needs_kernels = pytest.mark.skipif(not normalisation._chosen(), reason="no kernels")


def use(patch: pytest.MonkeyPatch, name: str) -> None:
    """These kernels alone."""
    only(patch, normalisation, name, "_chosen")


def results(
    layer: nn.Module, images: Tensor, gradient: Tensor, *, pooled: bool, gelu: bool = False
) -> dict[str, Tensor]:
    """The output, all gradients, and what the layer keeps."""
    layer = copy.deepcopy(layer).to(torch.promote_types(images.dtype, torch.float32))
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    following = nn.MaxPool2d(2) if pooled else None, nn.GELU() if gelu else None
    output = run_operations(images * 1, [(normalise, layer, *following)])
    output.backward(gradient.to(images.dtype))
    gradients = {name: part.grad for name, part in layer.named_parameters()} | {"images": images.grad}
    return {
        "output": output.detach(),
        **layer.state_dict(),
        **{f"gradient of {k}": v for k, v in gradients.items()},
    }


@each_kind
@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 9),
    channels=st.sampled_from((16, 48, 64, 128)),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    kind=st.sampled_from((nn.BatchNorm2d, BiasedBatchNorm2d, BiasBatchNorm2d, nn.BatchNorm1d)),
    following=st.sampled_from(("", "pool", "gelu")),
    mean=st.sampled_from((0.0, 3.0)),
    seed=st.integers(0, 2**31),
    threads=st.integers(1, 3),
)
def test_results_are_pytorchs_but_for_rounding(
    name: str,
    n: int,
    channels: int,
    height: int,
    width: int,
    kind: type[nn.Module],
    following: str,
    mean: float,
    seed: int,
    threads: int,
) -> None:
    torch.manual_seed(seed)
    shape, pooled, gelu = (n + 1, channels, height, width), following == "pool", following == "gelu"
    if kind is nn.BatchNorm1d:
        shape, pooled = shape[:2], False
    elif pooled:
        shape = (*shape[:2], 2 * height, 2 * width)
    layer = kind(channels)
    layer.momentum, layer.eps = 0.2, 1e-3  # type: ignore[assignment]
    for part in layer.parameters():
        nn.init.normal_(part)  # negative weights too: the largest is another one then
    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    images = (torch.randn(shape) + mean).to(dtype)
    if len(shape) == 4:
        images = images.to(memory_format=torch.channels_last)
    gradient = torch.randn(shape[0], channels, height, width) if pooled else torch.randn(shape)
    gradient = gradient.to(dtype)
    exact = results(layer, images.double(), gradient, pooled=pooled, gelu=gelu)
    with pytest.MonkeyPatch.context() as patch, own_kernels(CPU):
        use(patch, name)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        ours = results(layer, images, gradient, pooled=pooled, gelu=gelu)
    assert ours["output"].dtype == ours["gradient of images"].dtype == dtype
    for part, wanted in exact.items():
        wanted, found = wanted.double(), ours[part].double()  # one of them is a count
        rounding = 5e-3 if ours[part].dtype == torch.bfloat16 else 1e-4
        assert (found - wanted).norm() <= rounding * max(wanted.norm(), 1), part
        assert (
            found.is_contiguous(memory_format=torch.channels_last)
            if found.ndim == 4
            else found.is_contiguous()
        )


@needs_kernels
def test_they_are_used_within() -> None:
    images = torch.randn(2, 16, 6, 6).to(memory_format=torch.channels_last)
    layer, pool = nn.BatchNorm2d(16), nn.MaxPool2d(2)
    with own_kernels(CPU):
        outputs = layer(images), run_operations(images, [(normalise, layer, pool)])
    for output in outputs:
        assert type(output.grad_fn).__name__ == "_BatchNormBackward"
    assert type(layer(images).grad_fn).__name__ != "_BatchNormBackward"


@needs_kernels
def test_odd_sides_are_pooled_apart() -> None:
    images = torch.randn(2, 16, 7, 6).to(memory_format=torch.channels_last)
    with own_kernels(CPU):
        output = run_operations(images, [(normalise, nn.BatchNorm2d(16), nn.MaxPool2d(2))])
    function = output.grad_fn.next_functions[0][0]  # type: ignore[union-attr]  # what the pool was given
    assert type(function).__name__ == "_BatchNormBackward"


@needs_kernels
def test_statistics_that_are_not_tracked_are_pytorchs() -> None:
    images, layer = torch.randn(2, 16, 6, 6).to(memory_format=torch.channels_last), nn.BatchNorm2d(16)
    layer.track_running_stats = False
    with own_kernels(CPU):
        found = run_operations(images, [(normalise, layer, nn.MaxPool2d(2))])
    torch.testing.assert_close(found, nn.MaxPool2d(2)(layer(images)))


@needs_kernels
@pytest.mark.parametrize("outlier", [30.0, 300.0])
def test_a_pixel_far_from_the_others_costs_no_digits(outlier: float) -> None:
    torch.manual_seed(0)
    images = torch.randn(16, 16, 32, 32).to(memory_format=torch.channels_last)
    images[0, :, 0, 0] = outlier
    ours, exact = nn.BatchNorm2d(16, momentum=1.0), nn.BatchNorm2d(16, momentum=1.0).double()
    with own_kernels(CPU):
        ours(images)
    exact(images.double())
    torch.testing.assert_close(ours.running_var.double(), exact.running_var, rtol=2e-5, atol=0)  # type: ignore[union-attr]


@each_kind
@pytest.mark.parametrize(("pooled", "gelu"), [(False, False), (True, False), (False, True)])
def test_threads_change_nothing(name: str, pooled: bool, gelu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, name)
    torch.manual_seed(0)
    images = torch.randn(40, 96, 12, 12).to(memory_format=torch.channels_last)
    images = images.bfloat16() if name.endswith("bf16") else images
    gradient = torch.randn(40, 96, 12 // (1 + pooled), 12 // (1 + pooled))
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with own_kernels(CPU):
            found.append(results(nn.BatchNorm2d(96), images, gradient, pooled=pooled, gelu=gelu))
    for part in found[0]:
        assert torch.equal(found[0][part], found[1][part]) and torch.equal(found[0][part], found[2][part])


@needs_kernels
def test_the_first_of_four_equal_ones_has_the_gradient() -> None:
    layer = nn.BatchNorm2d(16)
    nn.init.zeros_(layer.weight)
    images, gradient = torch.rand(3, 16, 4, 4).to(memory_format=torch.channels_last), torch.rand(3, 16, 2, 2)
    expected = results(layer, images.double(), gradient, pooled=True)
    with own_kernels(CPU):
        found = results(layer, images, gradient, pooled=True)
    for part in ("gradient of weight", "gradient of bias", "output"):
        torch.testing.assert_close(found[part].double(), expected[part], rtol=1e-4, atol=1e-4)


@needs_kernels
def test_numbers_that_are_not_finite_stay_so() -> None:
    images = torch.rand(2, 16, 4, 4).to(memory_format=torch.channels_last)
    for value in (torch.nan, torch.inf):
        images[1, 5, 3, 3] = value
        with own_kernels(CPU):
            for following in ((None,), (nn.MaxPool2d(2),), (None, nn.GELU())):
                output = run_operations(images, [(normalise, nn.BatchNorm2d(16), *following)])
                assert output[:, 5].isnan().any() and output[:, :5].isfinite().all()
                assert output[:, 5].isnan().all() or value == torch.inf


@needs_kernels
def test_other_layers_are_pytorchs() -> None:
    torch.manual_seed(0)
    last = torch.channels_last
    for layer, images in (
        (nn.BatchNorm2d(16).eval(), torch.randn(2, 16, 4, 4).to(memory_format=last)),
        (nn.BatchNorm2d(12), torch.randn(2, 12, 4, 4).to(memory_format=last)),
        (nn.BatchNorm2d(16, affine=False), torch.randn(2, 16, 4, 4).to(memory_format=last)),
        (nn.BatchNorm2d(16, track_running_stats=False), torch.randn(2, 16, 4, 4).to(memory_format=last)),
        (nn.BatchNorm2d(16), torch.randn(2, 16, 4, 4)),
        (nn.BatchNorm2d(16).double(), torch.randn(2, 16, 4, 4).double().to(memory_format=last)),
    ):
        expected = copy.deepcopy(layer)(images)
        with own_kernels(CPU):
            assert torch.equal(layer(images), expected)


@needs_kernels
def test_running_statistics_of_all_steps_have_the_same_weight_without_a_momentum() -> None:
    torch.manual_seed(0)
    ours = nn.BatchNorm2d(16, momentum=None)
    exact = copy.deepcopy(ours).double()
    for _ in range(3):
        images = torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last)
        exact(images.double())
        with own_kernels(CPU):
            ours(images)
    for name, wanted in exact.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name].double(), wanted.double(), rtol=1e-5, atol=1e-6)


@needs_kernels
def test_parameters_that_do_not_lie_side_by_side_are_pytorchs() -> None:
    torch.manual_seed(0)
    images, layer = torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last), nn.BatchNorm2d(16)
    layer.weight = nn.Parameter(torch.randn(32)[::2])
    layer.running_var = torch.rand(32)[::2]
    theirs = copy.deepcopy(layer)
    expected = theirs(images)
    with own_kernels(CPU):
        torch.testing.assert_close(layer(images), expected)
    torch.testing.assert_close(layer.running_var, theirs.running_var)


@needs_kernels
def test_parameters_for_other_channels_are_refused() -> None:
    images, layer = torch.randn(2, 32, 4, 4).to(memory_format=torch.channels_last), nn.BatchNorm2d(16)
    with own_kernels(CPU), pytest.raises(RuntimeError, match="should contain 32 elements"):
        layer(images)


@needs_kernels
def test_a_sequence_pools_with_the_norm_where_pictures_have_even_sides() -> None:
    torch.manual_seed(0)
    pool = nn.MaxPool2d(2)
    layers = LayerSequence(nn.BatchNorm2d(16), pool)
    even, odd = (torch.randn(2, 16, side, side).to(memory_format=torch.channels_last) for side in (6, 7))
    expected = [copy.deepcopy(layers)(images) for images in (even, odd)]
    with own_kernels(CPU):
        torch.testing.assert_close(copy.deepcopy(layers)(odd), expected[1])
        pool.register_forward_hook(lambda *_: pytest.fail("pooled apart"))
        torch.testing.assert_close(layers(even), expected[0])


@needs_kernels
def test_gelu_is_computed_with_the_norm_or_after_it() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 16, 6, 6).to(memory_format=torch.channels_last)
    pool, gelu, approximate = nn.MaxPool2d(2), nn.GELU(), nn.GELU("tanh")
    for following, function in (
        ((None, gelu), "_BatchNormBackward"),
        ((None, approximate), "GeluBackward0"),
        ((pool, gelu), "GeluBackward0"),
    ):
        layer = nn.BatchNorm2d(16)
        expected = run_operations(images, [(normalise, copy.deepcopy(layer), *following)])
        with own_kernels(CPU):
            found = run_operations(images, [(normalise, layer, *following)])
        assert type(found.grad_fn).__name__ == function
        torch.testing.assert_close(found, expected)


@each_kind
def test_gelu_is_as_exact_as_its_type_far_from_zero_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, name)
    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    layer = nn.BatchNorm2d(16)
    layer.weight.data.fill_(3.0)
    images = torch.linspace(-4, 4, 1000).repeat_interleave(16).view(1000, 1, 1, 16).permute(0, 3, 1, 2)
    images = images.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    expected = nn.functional.gelu(copy.deepcopy(layer).double()(images.double()))
    with own_kernels(CPU):
        found = run_operations(images * 1, [(normalise, layer, None, nn.GELU())])
    assert (found.double() - expected).abs().max() < {torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
