"""A convolution, ELU and batch norm by our own kernels, ELU with the one and its gradient with the other."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.test_convolution import alone
from tests.kernels.test_normalisation import use
from torch import Tensor, nn

from cifarlab.kernels import convolve_and_normalise, normalisation, own_kernels, run_operations
from cifarlab.kernels.winograd import KERNELS
from cifarlab.models.layers import BiasedBatchNorm2d, LayerSequence

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(normalisation._chosen() is None, reason="no kernels")
each_kind = pytest.mark.parametrize("processor", ("avx2", "avx512"))


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def results(layers: LayerSequence, images: Tensor) -> dict[str, Tensor]:
    """The output, all gradients and what the norm keeps, of a network of these layers alone."""
    layers = copy.deepcopy(layers).to(images.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = images.clone(memory_format=torch.preserve_format).requires_grad_(images.shape[1] % 8 == 0)
    output = layers(images)
    weights = torch.linspace(-1, 1, output.numel(), dtype=images.dtype).view(output.shape)
    (output * weights).sum().backward()
    gradients = {name: part.grad for name, part in layers.named_parameters()} | {"images": images.grad}
    found = {"output": output.detach(), **dict(layers.named_buffers())}
    return found | {f"gradient of {name}": part for name, part in gradients.items() if part is not None}


def close(found: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float) -> bool:
    """The gradient of the convolution's bias is one of rounding alone: a norm takes the mean away."""
    return found.keys() == exact.keys() and all(
        (found[name].double() - wanted.double()).norm() <= tolerance * max(wanted.double().norm(), 1)
        for name, wanted in exact.items()
    )


def network(
    *, channels: int = 8, filters: int = 16, inplace: bool = True, pooled: bool = False
) -> LayerSequence:
    layers = [nn.Conv2d(channels, filters, 3, padding=1), nn.ELU(inplace=inplace), nn.BatchNorm2d(filters)]
    return LayerSequence(*layers, *([nn.MaxPool2d(2)] if pooled else []))


@each_kind
@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 5),
    channels=st.sampled_from((3, 8, 24)),
    filters=st.sampled_from((16, 48, 64)),
    height=st.integers(3, 10),
    width=st.integers(3, 10),
    kind=st.sampled_from((nn.BatchNorm2d, BiasedBatchNorm2d)),
    inplace=st.booleans(),
    pooled=st.booleans(),
    shift=st.sampled_from((0.0, -30.0, 3.0)),
    seed=st.integers(0, 2**31),
    threads=st.integers(1, 3),
)
def test_results_are_pytorchs_but_for_rounding(
    processor: str,
    n: int,
    channels: int,
    filters: int,
    height: int,
    width: int,
    kind: type[nn.BatchNorm2d],
    inplace: bool,
    pooled: bool,
    shift: float,
    seed: int,
    threads: int,
) -> None:
    torch.manual_seed(seed)
    layers = network(channels=channels, filters=filters, inplace=inplace, pooled=pooled)
    layers[2] = kind(filters, momentum=0.2, eps=1e-3)
    nn.init.normal_(layers[2].weight)  # type: ignore[arg-type]
    layers[0].bias.data += shift  # type: ignore[operator]
    images = channels_last(n + 1, channels, height, width)
    exact = results(layers, images.double())
    kernels = next(kernels for kernels in KERNELS if kernels.name == f"winograd-{processor}-3x3")
    with alone(kernels), pytest.MonkeyPatch.context() as patch, own_kernels(CPU):
        use(patch, f"normalise-{processor}")
        patch.setattr(torch, "get_num_threads", lambda: threads)
        found = results(layers, images)
    assert close(
        found, exact, 2e-3
    )  # where all are near -1, the variance is small, and rounding is large beside it


@needs_kernels
@pytest.mark.parametrize("pooled", [False, True])
def test_each_of_them_is_ours_and_elu_is_nowhere(pooled: bool) -> None:
    layers, images = network(pooled=pooled), channels_last(8, 8, 12, 12).requires_grad_()
    for layer in layers[1::2]:
        layer.register_forward_hook(lambda *_: pytest.fail("done by itself"))
    with own_kernels(CPU):
        output = layers(images)
    norm = output.grad_fn
    assert type(norm).__name__ == "_BatchNormBackward"
    assert type(norm.next_functions[0][0]).__name__ == "_ConvolutionBackward"  # type: ignore[union-attr]


@needs_kernels
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers, images = network(filters=48), channels_last(40, 8, 13, 13)
    with own_kernels(CPU):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        one = results(layers, images)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        three = results(layers, images)
    for name in ("output", "2.running_mean", "2.running_var", "gradient of images", "gradient of 2.weight"):
        assert torch.equal(one[name], three[name]), name


@needs_kernels
def test_what_is_not_finite_is_seen() -> None:
    images, layers = channels_last(8, 8, 12, 12), network()
    images[1, 5, 3, 3] = torch.nan
    with own_kernels(CPU):
        assert (
            layers(images).isnan().all()
        )  # each filter has that channel, and a norm all of a filter's pixels


@needs_kernels
def test_where_one_does_not_suit_each_goes_its_own_way() -> None:
    torch.manual_seed(0)
    images = channels_last(8, 8, 12, 12)
    untracked = nn.BatchNorm2d(16)
    untracked.track_running_stats = False
    for convolution, elu, norm, pictures in (
        (nn.Conv2d(8, 16, 3, padding=1), nn.ELU(0.5), nn.BatchNorm2d(16), images),
        (nn.Conv2d(8, 16, 3, padding=1), nn.ELU(), nn.BatchNorm2d(16).eval(), images),
        (nn.Conv2d(8, 16, 3, padding=1), nn.ELU(), nn.BatchNorm2d(16, affine=False), images),
        (nn.Conv2d(8, 16, 3, padding=1), nn.ELU(), untracked, images),
        (nn.Conv2d(8, 24, 3, padding=1), nn.ELU(), nn.BatchNorm2d(24), images),
        (nn.Conv2d(8, 16, 3, stride=2), nn.ELU(inplace=True), nn.BatchNorm2d(16), images),
        (nn.Conv2d(8, 16, 3), nn.ELU(), nn.BatchNorm2d(16), images.contiguous()),
        (nn.Conv2d(8, 16, 3).double(), nn.ELU(), nn.BatchNorm2d(16).double(), images.double()),
    ):
        for pool in ([], [nn.MaxPool2d(2)]):
            layers = LayerSequence(convolution, elu, norm, *pool)
            exact = results(layers, pictures)
            with own_kernels(CPU):
                found = results(layers, pictures)
            assert close(found, exact, 1e-3)


@needs_kernels
def test_in_bfloat16_elu_is_pytorchs() -> None:
    torch.manual_seed(0)
    layers, images = network(), channels_last(8, 8, 12, 12)
    layers = layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = copy.deepcopy(layers)(images)
        with own_kernels(CPU):
            torch.testing.assert_close(layers(images), expected, rtol=0.1, atol=0.1)


@needs_kernels
def test_one_value_of_each_channel_is_refused_as_ever() -> None:
    layers = LayerSequence(nn.Conv2d(8, 16, 3), nn.ELU(), nn.BatchNorm2d(16))
    with (
        alone(KERNELS[1]),
        own_kernels(CPU),
        pytest.raises(ValueError, match="more than 1 value per channel"),
    ):
        layers(channels_last(1, 8, 3, 3))


@needs_kernels
def test_without_own_kernels_they_are_the_layers() -> None:
    torch.manual_seed(0)
    images, layers = channels_last(8, 8, 12, 12), network(inplace=False, pooled=True)
    expected = nn.Sequential(*copy.deepcopy(layers))(images)
    assert torch.equal(layers(images), expected)
    assert torch.equal(run_operations(images, [(convolve_and_normalise, *copy.deepcopy(layers))]), expected)
