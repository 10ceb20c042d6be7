"""The whitening layer and GELU by our own kernel: PyTorch's results, but for rounding."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.only import only
from torch import Tensor, nn

from cifarlab.kernels import own_kernels, run_operations, whiten, whitening
from cifarlab.models.airbench import Whitening

CPU = torch.device("cpu")
each_kind = pytest.mark.parametrize("name", whitening.KERNELS)
needs_kernels = pytest.mark.skipif(not whitening._chosen(), reason="no kernels")


def results(
    layer: nn.Module, images: Tensor, gradient: Tensor, gelu: nn.GELU | None = None
) -> dict[str, Tensor]:
    """The output, and the gradient of the bias."""
    layer = copy.deepcopy(layer).to(images.dtype)
    output = run_operations(images, [(whiten, layer, gelu or nn.GELU())])
    output.backward(gradient.to(output.dtype))
    return {"output": output.detach(), "gradient": layer.bias.grad}  # type: ignore[dict-item]


def layer_and_images(
    n: int, channels: int, size: int, height: int, width: int
) -> tuple[Whitening, Tensor, Tensor]:
    """With the gradient of what GELU gives."""
    layer = Whitening(channels, size)
    nn.init.normal_(layer.get_buffer("weight"), std=0.5)
    images = torch.randn(n, channels, height, width).to(memory_format=torch.channels_last)
    gradient = torch.randn(n, len(layer.bias), height - size + 1, width - size + 1)
    return layer, images, gradient.to(memory_format=torch.channels_last)


@each_kind
@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 70),
    channels=st.integers(1, 4),
    size=st.integers(2, 4),
    more_rows=st.integers(0, 6),
    more_columns=st.integers(0, 9),
    seed=st.integers(0, 2**31),
    threads=st.integers(1, 3),
)
def test_results_are_pytorchs_but_for_rounding(
    name: str, n: int, channels: int, size: int, more_rows: int, more_columns: int, seed: int, threads: int
) -> None:
    torch.manual_seed(seed)
    parts = layer_and_images(n, channels, size, size + more_rows, size + more_columns)
    exact = results(parts[0], parts[1].double(), parts[2])
    in_bfloat16 = name.endswith("bf16")
    with (
        pytest.MonkeyPatch.context() as patch,
        own_kernels(CPU),
        torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16),
    ):
        only(patch, whitening, name, "_chosen")
        patch.setattr(torch, "get_num_threads", lambda: threads)
        ours = results(*parts)
    assert ours["output"].dtype == (torch.bfloat16 if in_bfloat16 else torch.float32)
    assert ours["output"].is_contiguous(memory_format=torch.channels_last)
    for part, wanted in exact.items():
        difference = (ours[part].double() - wanted).norm()
        assert difference <= (1e-2 if in_bfloat16 else 1e-5) * max(wanted.norm(), 1), part


@needs_kernels
def test_it_is_used_within_and_only_where_it_suits() -> None:
    layer, images, _ = layer_and_images(2, 3, 2, 8, 8)

    def function(images: Tensor, gelu: nn.GELU | None = None, layer: Whitening = layer) -> str:
        with own_kernels(CPU):
            output = run_operations(images, [(whiten, layer, gelu or nn.GELU())])
        expected = run_operations(images, [(whiten, layer, gelu or nn.GELU())])
        torch.testing.assert_close(output, expected)
        return type(output.grad_fn).__name__

    assert function(images) == "_WhiteningBackward"
    assert function(images, nn.GELU("tanh")) != "_WhiteningBackward"
    assert function(images.contiguous()) != "_WhiteningBackward"
    assert function(images.clone().requires_grad_()) != "_WhiteningBackward"
    assert function(images.double(), layer=copy.deepcopy(layer).double()) != "_WhiteningBackward"


@each_kind
def test_threads_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, whitening, name, "_chosen")
    torch.manual_seed(0)
    parts, found = layer_and_images(70, 3, 2, 9, 9), []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with own_kernels(CPU), torch.autocast("cpu", torch.bfloat16, enabled=name.endswith("bf16")):
            found.append(results(*parts))
    for part in found[0]:
        assert torch.equal(found[0][part], found[1][part]) and torch.equal(found[0][part], found[2][part])


@needs_kernels
def test_a_bias_that_is_not_trained_has_no_gradient() -> None:
    layer, images, _ = layer_and_images(2, 3, 2, 8, 8)
    layer.bias.requires_grad_(False)
    with own_kernels(CPU):
        output = run_operations(images, [(whiten, layer, nn.GELU())])
    assert not output.requires_grad
    torch.testing.assert_close(output, nn.functional.gelu(layer(images)))
