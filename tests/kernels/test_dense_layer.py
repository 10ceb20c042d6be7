"""Dense layers by our own kernels: PyTorch's results, but for rounding, whatever the shape and the processor."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cifarlab.kernels import dense, kernels_here, own_kernels, run_operations
from cifarlab.kernels import dense_layer as own
from cifarlab.models.layers import LayerSequence

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(
    not any(name.startswith("dense") for name in kernels_here()),
    reason="no kernels: another processor, or installed without",
)
each_kind = pytest.mark.parametrize("kernels", own.KERNELS)
SHAPES = [  # batch, inputs, outputs
    (4, 33, 10),
    (7, 1, 1),
    (16, 256, 300),
    (31, 100, 70),
    (32, 512, 256),
    (33, 1000, 500),
    (64, 2048, 128),
    (200, 65, 130),
    (256, 96, 257),
]


@contextmanager
def alone(kernels: str | None = None, *, threads: int | None = None) -> Iterator[None]:
    """Within it these kernels are the only ones that there are, and take whatever size and batch they can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "LEAST_MULTIPLICATIONS", 0)
        patch.setattr(own, "LEAST_BATCH", 1)
        if threads is not None:
            patch.setattr(torch, "get_num_threads", lambda: threads)
        if kernels is not None:
            if kernels not in kernels_here():
                pytest.skip(f"this processor has no {kernels}, or the package was installed without")
            patch.setattr(own, "KERNELS", (kernels,))
        own._functions.cache_clear()
        try:
            yield
        finally:
            own._functions.cache_clear()


def results(
    values: Tensor,
    layer: nn.Linear,
    gradient: Tensor,
    *,
    relu: bool,
    wants_values: bool = True,
    wants_weight: bool = True,
) -> list[Tensor]:
    """The output, and the gradients that are wanted of values, weight and bias; in the type of `layer`."""
    dtype = layer.weight.dtype
    values = values.to(dtype, copy=True).requires_grad_(wants_values)
    layer.weight.requires_grad_(wants_weight)
    layer.zero_grad()
    output = run_operations(values, [(dense, layer, nn.ReLU() if relu else None)])
    output.backward(gradient.to(dtype))
    return [output.detach(), *(part.grad for part in (values, *layer.parameters()) if part.grad is not None)]


@each_kind
@settings(deadline=None, max_examples=60)
@given(
    batch=st.one_of(st.integers(1, 70), st.integers(71, 256)),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 150),
    seed=st.integers(0, 2**31),
    relu=st.booleans(),
    biased=st.booleans(),
    wants_values=st.booleans(),
    wants_weight=st.booleans(),
    threads=st.integers(1, 3),
)
def test_whole_numbers_give_exactly_what_they_should(
    kernels: str,
    batch: int,
    inputs: int,
    outputs: int,
    seed: int,
    relu: bool,
    biased: bool,
    wants_values: bool,
    wants_weight: bool,
    threads: int,
) -> None:
    """With numbers so small that nothing is rounded: outputs of exactly 0, which have no gradient, are among them."""
    if not (wants_values or wants_weight or biased):
        return
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator, dtype=torch.float64)

    values, gradient, layer = whole(batch, inputs), whole(batch, outputs), nn.Linear(inputs, outputs, biased)
    for parameter in layer.parameters():
        parameter.data = whole(*parameter.shape)
    wanted = {"relu": relu, "wants_values": wants_values, "wants_weight": wants_weight}
    expected = results(values, layer, gradient, **wanted)
    with alone(kernels, threads=threads), own_kernels(CPU):
        found = results(values, layer.float(), gradient, **wanted)
    for ours, exact in zip(found, expected, strict=True):
        assert torch.equal(ours, exact.float())


@each_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "plain"])
def test_rounding_is_about_that_of_pytorch(kernels: str, shape: tuple[int, int, int], relu: bool) -> None:
    torch.manual_seed(0)
    batch, inputs, outputs = shape
    values, gradient, layer = (
        torch.randn(batch, inputs),
        torch.randn(batch, outputs),
        nn.Linear(inputs, outputs),
    )
    theirs = results(values, layer, gradient, relu=relu)
    with alone(kernels), own_kernels(CPU):
        ours = results(values, layer, gradient, relu=relu)
    exact = results(values, layer.double(), gradient, relu=relu)
    for mine, plain, true in zip(ours, theirs, exact, strict=True):
        assert (mine - true).norm() <= 5 * (plain - true).norm() + 1e-6 * true.norm()


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_change_nothing(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    batch, inputs, outputs = shape
    values, gradient, layer = (
        torch.randn(batch, inputs),
        torch.randn(batch, outputs),
        nn.Linear(inputs, outputs),
    )
    found = []
    for threads in (1, 2, 3, 3):
        with alone(threads=threads), own_kernels(CPU):
            found.append(results(values, layer, gradient, relu=True))
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@each_kind
def test_a_gradient_written_past_the_caches_is_the_same(
    kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    values, gradient, layer = torch.randn(37, 272), torch.randn(37, 200), nn.Linear(272, 200)
    found = []
    for largest in (1 << 40, 0):
        monkeypatch.setattr(own, "LARGEST_CACHED", largest)
        with alone(kernels, threads=2), own_kernels(CPU):
            found.append(results(values, layer, gradient, relu=True))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@needs_kernels
def test_a_plain_call_and_a_layer_are_taken_over() -> None:
    torch.manual_seed(0)
    values, layer = torch.randn(64, 2048), nn.Linear(2048, 128)
    with own_kernels(CPU):
        outputs = (
            layer(values),
            F.linear(values, layer.weight, layer.bias),
            run_operations(values, [(dense, layer)]),
        )
        without = F.linear(values, layer.weight)
    for output in (*outputs, without):
        assert "_Dense" in type(output.grad_fn).__name__
        assert torch.equal(output, without if output is without else outputs[0])
    torch.testing.assert_close(outputs[0], layer(values), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(without + layer.bias, outputs[0], rtol=1e-4, atol=1e-5)


@needs_kernels
def test_a_sequence_takes_the_relu_with_the_layer() -> None:
    torch.manual_seed(0)
    relu = nn.ReLU(inplace=True)
    layers = [nn.Linear(1500, 200), relu, nn.Linear(200, 100)]
    values = torch.randn(64, 1500)
    expected = nn.Sequential(*layers)(values)
    assert torch.equal(LayerSequence(*layers)(values), expected)
    relu.register_forward_hook(lambda *_: pytest.fail("ReLU apart"))
    with own_kernels(CPU):
        torch.testing.assert_close(LayerSequence(*layers)(values), expected, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize(
    "values",
    [
        torch.randn(64, 2048, dtype=torch.float64),
        torch.randn(2048, 64).t(),
        torch.randn(2, 32, 2048),
        torch.randn(2048),
        torch.randn(257, 2048),
        torch.randn(2, 2048),
        torch.randn(0, 2048),
    ],
    ids=["another type", "another layout", "three dimensions", "no batch", "a large batch", "two", "none"],
)
def test_other_values_are_pytorchs(values: Tensor) -> None:
    layer = nn.Linear(2048, 512).to(values.dtype)
    expected = layer(values)
    with own_kernels(CPU):
        assert torch.equal(layer(values), expected)


@needs_kernels
def test_small_layers_are_pytorchs() -> None:
    values, layer = torch.randn(64, 128), nn.Linear(128, 10)
    with own_kernels(CPU):
        assert "_Dense" not in type(layer(values).grad_fn).__name__


@needs_kernels
def test_under_autocast_it_is_pytorchs() -> None:
    values, layer = torch.randn(64, 2048), nn.Linear(2048, 128)
    with own_kernels(CPU), torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            layer(values).dtype == run_operations(values, [(dense, layer, nn.ReLU())]).dtype == torch.bfloat16
        )


@needs_kernels
def test_a_mistake_is_told_as_ever() -> None:
    with own_kernels(CPU), pytest.raises(RuntimeError, match="cannot be multiplied"):
        nn.Linear(2048, 512)(torch.randn(64, 2047))


@each_kind
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_stay_so(kernels: str, number: float) -> None:
    """A training that diverges has to be seen."""
    torch.manual_seed(0)
    values, layer = torch.randn(33, 70).abs(), nn.Linear(70, 50)
    layer.weight.data.abs_()
    values[32, 69] = number
    gradient = torch.ones(33, 50)
    expected = results(values, layer, gradient, relu=True)
    with alone(kernels), own_kernels(CPU):
        found = results(values, layer, gradient, relu=True)
    assert not found[0][32].isfinite().any() and found[0][:32].isfinite().all()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_what_is_not_there_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernels could not be compiled."""
    values, layer = torch.randn(64, 2048), nn.Linear(2048, 128)
    expected = layer(values)
    monkeypatch.setattr(own, "first_of", lambda *_: None)
    own._functions.cache_clear()
    try:
        with own_kernels(CPU):
            assert torch.equal(layer(values), expected)
    finally:
        own._functions.cache_clear()


@needs_kernels
def test_they_are_used_within() -> None:
    values, layer = torch.randn(32, 512), nn.Linear(512, 512)
    with own_kernels(CPU):
        outputs = [
            run_operations(values, [(dense, layer, nn.ReLU())]),
            layer(values),
            F.linear(input=values, weight=layer.weight),
        ]
    for output in outputs:
        assert type(output.grad_fn).__name__ == "_DenseBackward"
    assert type(layer(values).grad_fn).__name__ != "_DenseBackward"


@each_kind
def test_no_thread_multiplies_what_is_not_packed_yet(kernels: str) -> None:
    """In memory that was never written; there is one stretch to pack, so that all but one thread have to wait."""
    torch.manual_seed(0)
    values, layer, gradient = torch.randn(32, 256), nn.Linear(256, 300), torch.randn(32, 300)
    expected = results(values, layer, gradient, relu=True)
    empty = torch.empty
    with alone(kernels), own_kernels(CPU), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 2)
        patch.setattr(torch, "empty", lambda *shape, **kind: empty(*shape, **kind).fill_(torch.nan))
        for _ in range(300):
            for ours, theirs in zip(results(values, layer, gradient, relu=True), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
