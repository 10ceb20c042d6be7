"""Steps of the optimisers by our own kernels."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.only import only
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from cifarlab.job import new_optimizer
from cifarlab.kernels import optimisers
from cifarlab.kernels.optimisers import OwnAdam, OwnAdamW, OwnRMSprop, OwnSGD
from cifarlab.optim import (
    OwnRMSpropInsideRoot,
    RMSpropInsideRoot,
    build_optimizer,
    load_state_tensors,
    state_tensors,
)
from cifarlab.recipe import SGD, Adam, AdamW, RMSprop, override
from cifarlab.recipes import get_recipe

CPU = torch.device("cpu")
each_kind = pytest.mark.parametrize("name", optimisers.KERNELS)
RULES: list[tuple[Any, Any, dict[str, Any]]] = [
    (OwnSGD, torch.optim.SGD, {}),
    (OwnSGD, torch.optim.SGD, {"momentum": 0.9}),
    (OwnSGD, torch.optim.SGD, {"momentum": 0.7, "nesterov": True}),
    (OwnRMSprop, torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-3}),
    (OwnRMSpropInsideRoot, RMSpropInsideRoot, {"alpha": 0.9, "eps": 1e-3}),
    (OwnAdam, torch.optim.Adam, {"betas": (0.9, 0.99), "eps": 1e-3}),
    (OwnAdam, torch.optim.Adam, {"betas": (0.3, 0.8), "eps": 1e-7}),
    (OwnAdamW, torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-7}),
]
each_rule = pytest.mark.parametrize(("own", "torchs", "options"), RULES)
SHAPES = [(), (1,), (17,), (5, 7), (6, 3, 3, 3), (8, 4, 1, 1), (1, 3, 5, 5), (32_768,), (37, 1001)]
SPECS = [
    SGD(weight_decay=1e-3),
    SGD(momentum=0.9, nesterov=True),
    RMSprop(),
    RMSprop(epsilon_place="inside-root"),
    Adam(),
    AdamW(),
]


def use(monkeypatch: pytest.MonkeyPatch, name: str | None, torchs: Any = None) -> None:
    """These kernels alone, and no step of `torchs`; or none."""
    only(monkeypatch, optimisers, name, "_functions")
    if torchs is not None:
        monkeypatch.setattr(torchs, "step", refuse)


def refuse(*_: Any) -> None:
    raise AssertionError("PyTorch took the step")


def weights(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    """Random ones, convolutions' in channels_last."""
    torch.manual_seed(0)
    made = [torch.randn(shape) for shape in shapes]
    return [
        nn.Parameter(each.to(memory_format=torch.channels_last) if each.ndim == 4 else each) for each in made
    ]


def in_groups(of: list[nn.Parameter], dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    """Copies of them, in two groups with other rates and decay."""
    copies = [nn.Parameter(weight.detach().clone().to(dtype)) for weight in of]
    slow = {"params": copies[1::2], "lr": 0.002, "weight_decay": 0.0}
    fast = {"params": copies[::2], "lr": 0.05, "weight_decay": 0.1}
    return [group for group in (fast, slow) if group["params"]]


def all_weights(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def set_gradients(optimizer: torch.optim.Optimizer, seed: int, without: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    """The same, but for rounding, in any type; none for the weights `without`."""
    generator = torch.Generator().manual_seed(seed)
    for number, weight in enumerate(all_weights(optimizer)):
        gradient = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        weight.grad = None if number in without else torch.empty_like(weight).copy_(gradient).detach()


def step(optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        set_gradients(optimizer, seed)
        optimizer.step()


def assert_close(found: Tensor, exact: Tensor) -> None:
    """As a whole: a gradient that its decay nearly cancels is small and known to few digits, and Adam divides by it."""
    assert (found.double() - exact.double()).norm() <= 2e-6 * (exact.double().norm() + 1)


def assert_same(ours: torch.optim.Optimizer, exact: torch.optim.Optimizer) -> None:
    """Weights and everything remembered, by name; `ours` in float32."""
    for one, other in zip(all_weights(ours), all_weights(exact), strict=True):
        assert_close(one, other)
        mine, theirs = ours.state.get(one, {}), exact.state.get(other, {})
        assert set(mine) == set(theirs)
        for name, value in mine.items():
            assert value.dtype == torch.float32
            assert_close(value, theirs[name])


@settings(deadline=None, max_examples=25)
@given(
    shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=6),
    without=st.lists(st.sets(st.integers(0, 5)), min_size=4, max_size=4),
    threads=st.integers(1, 3),
)
@each_kind
@each_rule
def test_steps_are_pytorchs(
    own: Any,
    torchs: Any,
    options: dict[str, Any],
    name: str,
    shapes: list[tuple[int, ...]],
    without: list[set[int]],
    threads: int,
) -> None:
    """Weights without a gradient stay as they are, and begin to be counted with their first one."""
    made = weights(shapes)
    exact = torchs(in_groups(made, torch.float64), **{"lr": 1.0} | options)
    for seed, absent in enumerate(without):
        set_gradients(exact, seed, absent)
        exact.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        use(patch, name, torchs)
        ours = own(in_groups(made), **{"lr": 1.0} | options)
        for seed, absent in enumerate(without):
            set_gradients(ours, seed, absent)
            ours.step()
    assert_same(ours, exact)


@each_kind
@each_rule
def test_threads_change_nothing(
    own: Any, torchs: Any, options: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, name, torchs)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        optimizer = own(in_groups(weights([(300, 301), (7,), (70_001,)])), **{"lr": 1.0} | options)
        step(optimizer, range(3))
        found.append(torch.cat([weight.detach().flatten() for weight in all_weights(optimizer)]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@each_kind
@each_rule
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_what_is_not_finite(
    own: Any, torchs: Any, options: dict[str, Any], decay: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = [0.0, -1.0, math.inf, -math.inf, math.nan]
    values = torch.tensor([(w, g) for w in odd for g in odd] * 2)
    found = []
    for kind in (torchs, own):
        weight = nn.Parameter(values[:, 0].clone())
        optimizer = kind([{"params": [weight], "weight_decay": decay}], **{"lr": 0.1} | options)
        if kind is own:
            use(monkeypatch, name, torchs)
        for gradient in (values[:, 1], torch.ones(len(values)), -values[:, 1]):
            weight.grad = gradient.clone()
            optimizer.step()
        found.append(weight.detach())
    torch.testing.assert_close(found[1], found[0], equal_nan=True)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(128, 99)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # pyright: ignore


@pytest.mark.parametrize("saved_by_own", [True, False])
@pytest.mark.parametrize("goes_on_by_own", [True, False])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_state_is_taken_up_with_and_without_kernels(
    spec: Any, saved_by_own: bool, goes_on_by_own: bool
) -> None:
    """By an optimiser that has stepped elsewhere before."""
    model = network()
    optimizer = build_optimizer(spec, model, CPU, own_kernels=saved_by_own)
    step(optimizer, range(3))
    other_model = network()
    other = build_optimizer(spec, other_model, CPU, own_kernels=goes_on_by_own)
    step(other, range(7, 9))
    other_model.load_state_dict(model.state_dict())
    load_state_tensors(other, state_tensors(optimizer))

    step(optimizer, range(3, 6))
    step(other, range(3, 6))
    tolerance = {"rtol": 0.0, "atol": 0.0} if saved_by_own == goes_on_by_own else {"rtol": 1e-5, "atol": 1e-6}
    for one, same in zip(all_weights(optimizer), all_weights(other), strict=True):
        torch.testing.assert_close(one, same, **tolerance)
    torch.testing.assert_close(state_tensors(optimizer), state_tensors(other), **tolerance)


def transposed(gradient: Tensor) -> Tensor:
    return gradient.T.contiguous().T


UNSUITED: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": transposed,
    "one-value": lambda gradient: gradient[:1, :1].expand_as(gradient),
    "slice": lambda gradient: torch.cat([gradient, gradient], dim=1)[:, : gradient.shape[1]],
}


@each_rule
@pytest.mark.parametrize("kind", UNSUITED)
def test_other_gradients_are_pytorchs(own: Any, torchs: Any, options: dict[str, Any], kind: str) -> None:
    """In turn with those that suit."""
    made, found = weights([(40, 50)]), []
    for optimizer in (optimizer_of(own, made, options), optimizer_of(torchs, made, options)):
        for seed in range(4):
            set_gradients(optimizer, seed)
            (weight,) = all_weights(optimizer)
            assert weight.grad is not None
            if seed % 2 == 0:
                weight.grad = UNSUITED[kind](weight.grad)
            optimizer.step()
        found.append(weight.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def optimizer_of(kind: Any, made: list[nn.Parameter], options: dict[str, Any]) -> Any:
    return kind(in_groups(made), **{"lr": 1.0} | options)


@each_rule
@pytest.mark.parametrize("without", ["kernels", "float32", "weights"])
def test_pytorch_takes_the_step_where_ours_cannot(
    own: Any, torchs: Any, options: dict[str, Any], without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = torch.float64 if without == "float32" else torch.float32
    if without == "kernels":
        use(monkeypatch, None)
    found = []
    for kind in (own, torchs):
        shapes = [(4, 5), (0, 4) if without == "weights" else (6,)]
        optimizer = kind(in_groups(weights(shapes), dtype), **{"lr": 1.0} | options)
        step(optimizer, range(3))
        found.append(all_weights(optimizer))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("own", "torchs", "options"),
    [
        (OwnSGD, torch.optim.SGD, {"maximize": True}),
        (OwnSGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
        (OwnAdam, torch.optim.Adam, {"amsgrad": True}),
        (OwnRMSprop, torch.optim.RMSprop, {"momentum": 0.9}),
        (OwnRMSprop, torch.optim.RMSprop, {"centered": True}),
    ],
)
def test_other_rules_are_pytorchs(own: Any, torchs: Any, options: dict[str, Any]) -> None:
    found = []
    for kind in (own, torchs):
        optimizer = optimizer_of(kind, weights([(4, 5), (6,)]), options)
        step(optimizer, range(4))
        found.append(all_weights(optimizer))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"maximize": True}])
def test_options_may_change_between_steps(options: dict[str, Any]) -> None:
    found = []
    for kind in (OwnSGD, torch.optim.SGD):
        optimizer = optimizer_of(kind, weights([(4, 5), (6,)]), {})
        step(optimizer, range(2))
        for group in optimizer.param_groups:
            group.update(options)
        step(optimizer, range(2, 5))
        found.append(all_weights(optimizer))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_momentum_that_is_told_to_be_none_begins_at_rest() -> None:
    """As PyTorch saves it before the first step."""
    found = []
    for kind in (OwnSGD, torch.optim.SGD):
        optimizer = optimizer_of(kind, weights([(4, 5)]), {"momentum": 0.9})
        state = {
            "state": {0: {"momentum_buffer": None}},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
        optimizer.load_state_dict(state)
        step(optimizer, range(3))
        found.append(all_weights(optimizer)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_tensors_that_were_replaced_are_found() -> None:
    made = weights([(30, 40), (9,)])
    ours, exact = OwnAdam(in_groups(made), lr=1.0), torch.optim.Adam(in_groups(made, torch.float64), lr=1.0)
    for optimizer in (ours, exact):
        step(optimizer, range(2))
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step(optimizer, range(2, 3))
        for weight in all_weights(optimizer):
            weight.data = weight.data.clone()
        step(optimizer, range(5, 7))
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(5, dtype=weight.dtype))], "lr": 0.1})
        step(optimizer, range(3, 5))
    assert_same(ours, exact)


@each_kind
def test_strides_of_size_1_say_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, name, torch.optim.SGD)
    (made,) = weights([(8, 4, 1, 1)])
    weight = nn.Parameter(made.detach().clone())
    weight.grad = torch.arange(32.0).view(8, 4, 1, 1)
    assert weight.grad.stride() != weight.stride()
    OwnSGD([weight], lr=1.0).step()
    assert torch.equal(weight, made - weight.grad)


def test_a_copy_has_a_state_of_its_own() -> None:
    optimizer = OwnSGD(in_groups(weights([(8, 9)])), lr=1.0, momentum=0.9)
    step(optimizer, range(1))
    (before,) = (weight.detach().clone() for weight in all_weights(optimizer))
    other = copy.deepcopy(optimizer)
    step(other, range(1, 3))
    assert torch.equal(all_weights(optimizer)[0], before)
    assert not torch.equal(all_weights(other)[0], before)


def test_a_backward_pass_through_weights_that_have_changed_is_refused() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = OwnSGD([weight], lr=0.1)
    loss = (weight * weight).sum()
    weight.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_are_cleared(to_none: bool) -> None:
    optimizer = OwnSGD(in_groups(weights([(3, 4), (5,)])), lr=0.1)
    set_gradients(optimizer, 0, without={1})
    optimizer.zero_grad(set_to_none=to_none)
    first, second = all_weights(optimizer)
    assert second.grad is None
    if to_none:
        assert first.grad is None
    else:
        assert first.grad is not None and not first.grad.any()


def test_hooks_closures_and_the_profiler_see_the_step() -> None:
    optimizer = OwnSGD(in_groups(weights([(3, 4)])), lr=0.1)
    set_gradients(optimizer, 0)
    called = []
    handle = optimizer.register_step_post_hook(lambda *_: called.append("hook"))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert optimizer.step(lambda: called.append("closure") or 1.5) == 1.5
    assert called == ["hook", "closure"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        optimizer.step()
        optimizer.zero_grad()
    names = {event.name for event in profiler.events() or []}
    assert {"Optimizer.step#OwnSGD.step", "Optimizer.zero_grad#OwnSGD.zero_grad"} <= names


@each_rule
def test_hooks_see_a_step_once_where_pytorch_takes_it(
    own: Any, torchs: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, None)
    optimizer_of(torchs, weights([(2, 3)]), options)  # after which PyTorch's own step calls hooks, too
    optimizer, called = optimizer_of(own, weights([(3, 4)]), options), []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    everywhere = register_optimizer_step_post_hook(lambda *_: called.append("after"))
    step(optimizer, range(2))
    everywhere.remove()
    assert called == ["before", "after"] * 2


def test_a_gradient_of_another_size_is_told_as_ever() -> None:
    whole = torch.ones(8, 9)
    weight = nn.Parameter(whole[:4])
    weight.grad = torch.ones(4, 9)
    optimizer = OwnSGD([weight], lr=1.0)
    weight.data = whole
    with pytest.raises(RuntimeError, match="size"):
        optimizer.step()


def test_weights_that_became_fewer_are_found() -> None:
    found = []
    for kind in (OwnSGD, torch.optim.SGD):
        optimizer = optimizer_of(kind, weights([(8, 9)]), {})
        step(optimizer, range(1))
        (weight,) = all_weights(optimizer)
        behind = weight.data[4:]
        weight.data = weight.data[:4]
        step(optimizer, range(1, 3))
        found.append((all_weights(optimizer)[0], behind))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_recipe_switches_them_off(spec: Any) -> None:
    recipe = get_recipe("demo").model_copy(update={"optimizer": spec})
    model = network()
    assert isinstance(new_optimizer(recipe, model, CPU), optimisers.OwnStep)
    plain = new_optimizer(override(recipe, {"device.winograd": False}), model, CPU)
    assert not isinstance(plain, optimisers.OwnStep)
    assert not isinstance(new_optimizer(recipe, model, torch.device("cuda")), optimisers.OwnStep)
