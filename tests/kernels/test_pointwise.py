"""Dropout and ELU by our own kernels."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.only import only
from torch import Tensor
from torch.nn import functional as F

from cifarlab.kernels import dropout, own_kernels, pointwise

CPU = torch.device("cpu")
each_kind = pytest.mark.parametrize("name", pointwise.KERNELS)
FORMATS = (torch.contiguous_format, torch.channels_last)


def use(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    """These kernels alone, or none."""
    only(monkeypatch, pointwise, name, "_functions")


def dropped(values: Tensor, rate: float, seed: int) -> tuple[Tensor, Tensor]:
    """The values, and the gradient of ones."""
    values = values.detach().clone().requires_grad_()
    output = dropout(values, rate, seed)
    output.backward(torch.ones_like(output))
    assert values.grad is not None
    return output.detach(), values.grad


@settings(deadline=None, max_examples=25)
@given(
    shape=st.sampled_from([(1,), (7,), (5, 1000), (3, 5, 4, 6), (2, 16, 30, 31), (150, 1001)]),
    memory_format=st.sampled_from(FORMATS),
    rate=st.sampled_from([0.1, 0.25, 0.5, 0.999]),
    seed=st.integers(0, 2**64 - 1),
    threads=st.integers(1, 3),
)
@each_kind
def test_dropout_is_the_same_without_a_kernel(
    name: str,
    shape: tuple[int, ...],
    memory_format: torch.memory_format,
    rate: float,
    seed: int,
    threads: int,
) -> None:
    values = torch.rand(shape) + 1
    if len(shape) == 4:
        values = values.to(memory_format=memory_format)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        use(patch, name)
        ours = dropped(values, rate, seed)
    with pytest.MonkeyPatch.context() as patch:
        use(patch, None)
        plain = dropped(values, rate, seed)
    for one, other in zip(ours, plain, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == values.stride()
    assert torch.equal(ours[0], values * ours[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_keeps_the_mean(dtype: torch.dtype) -> None:
    values = torch.ones(1_000_000, dtype=dtype)
    for rate in (0.2, 0.5):
        output = dropout(values, rate, 5).double()
        assert output.dtype == torch.float64 and dropout(values, rate, 5).dtype == dtype
        five_deviations = 5 * math.sqrt(rate / (1 - rate) / len(values))
        assert output.mean().item() == pytest.approx(
            1.0, abs=five_deviations + (2e-3 if dtype == torch.bfloat16 else 0)
        )
        assert (output == 0).double().mean().item() == pytest.approx(rate, abs=5e-3)


def test_values_are_dropped_independently() -> None:
    """Of neighbours, of values four and a thousand apart, and of the same value in two steps."""
    ones = torch.ones(200_000)
    kept, next_step = (dropout(ones, 0.5, seed).bool().double() for seed in (1, 2))
    for other, mine in [(kept[shift:], kept[: -shift or None]) for shift in (1, 4, 1000)] + [
        (next_step, kept)
    ]:
        correlation = torch.corrcoef(torch.stack([other, mine]))[0, 1].item()
        assert abs(correlation) < 5 / math.sqrt(len(ones))


@each_kind
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", [(9,), (3, 8, 5, 7), (200_001,)])
def test_elu_is_pytorchs(
    name: str, shape: tuple[int, ...], inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, name)
    torch.manual_seed(0)
    for scale in (1e-4, 1.0, 60.0):
        values = scale * torch.randn(shape)
        if len(shape) == 4:
            values = values.to(memory_format=torch.channels_last)
        gradient = torch.randn(shape)
        exact = values.double().requires_grad_()
        F.elu(exact).backward(gradient.double())
        ours = values.clone().requires_grad_()
        with own_kernels(CPU):
            output = F.elu(ours * 1, inplace=inplace)
        assert type(output.grad_fn).__name__ == "_EluBackward"
        output.backward(gradient)
        torch.testing.assert_close(output.double(), F.elu(exact), rtol=3e-7, atol=0)
        assert exact.grad is not None and ours.grad is not None
        torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-6, atol=3e-7)


@each_kind
def test_elu_of_what_is_not_finite(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, name)
    with own_kernels(CPU):
        found = F.elu(torch.tensor([math.nan, math.inf, -math.inf, -0.0]))
    assert found[0].isnan() and found[1:].tolist() == [math.inf, -1.0, 0.0]


def test_other_values_are_pytorchs() -> None:
    values = torch.randn(4, 6)
    for other, alpha in ((values.double(), 1.0), (values.T, 1.0), (values, 0.5)):
        expected = F.elu(other, alpha)
        with own_kernels(CPU):
            assert torch.equal(F.elu(other, alpha), expected)
