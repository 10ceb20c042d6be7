"""The optimisers against Keras's rules written out in NumPy, and their state there and back."""

import itertools

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from cifarlab.optim import (
    build_optimizer,
    clip_gradients,
    l2_penalty,
    load_state_tensors,
    set_learning_rate,
    state_tensors,
)
from cifarlab.recipe import SGD, Adam, AdamW, Regularization, RMSprop
from cifarlab.tensor_file import pieces

CPU = torch.device("cpu")
STEPS = 25
# Rates that change at every step, by little and by much, and once are 0
RATES = [0.01 * (1 + step % 5) * (0.1 if step > 12 else 1.0) * (step != 8) for step in range(STEPS)]


# Each rule: a generator that is sent (w, g, rate) and yields the new w. Keras 2, float64.


def keras_sgd(spec):
    velocity, weights = 0.0, None
    while True:
        w, g, rate = yield weights
        velocity = spec.momentum * velocity - rate * g
        weights = w + spec.momentum * velocity - rate * g if spec.nesterov else w + velocity


def keras_rmsprop(spec):
    mean_square, weights = 0.0, None
    while True:
        w, g, rate = yield weights
        mean_square = spec.rho * mean_square + (1 - spec.rho) * g**2
        weights = w - rate * g / (np.sqrt(mean_square) + spec.epsilon)


def keras_3_rmsprop(spec):
    mean_square, weights = 0.0, None
    while True:
        w, g, rate = yield weights
        mean_square = spec.rho * mean_square + (1 - spec.rho) * g**2
        weights = w - rate * g / np.sqrt(mean_square + spec.epsilon)


def keras_adam(spec):
    mean, mean_square, weights = 0.0, 0.0, None
    for t in itertools.count(1):
        w, g, rate = yield weights
        mean = spec.beta_1 * mean + (1 - spec.beta_1) * g
        mean_square = spec.beta_2 * mean_square + (1 - spec.beta_2) * g**2
        corrected_rate = rate * np.sqrt(1 - spec.beta_2**t) / (1 - spec.beta_1**t)
        weights = w - corrected_rate * mean / (np.sqrt(mean_square) + spec.epsilon)


def torch_adamw(spec):
    mean, mean_square, weights = 0.0, 0.0, None
    for t in itertools.count(1):
        w, g, rate = yield weights
        mean = spec.beta_1 * mean + (1 - spec.beta_1) * g
        mean_square = spec.beta_2 * mean_square + (1 - spec.beta_2) * g**2
        root = np.sqrt(mean_square / (1 - spec.beta_2**t))
        decayed = w * (1 - rate * spec.weight_decay)
        weights = decayed - rate * mean / (1 - spec.beta_1**t) / (root + spec.epsilon)


CASES = [
    (SGD(), keras_sgd),
    (SGD(momentum=0.9), keras_sgd),
    (SGD(momentum=0.9, nesterov=True), keras_sgd),
    (RMSprop(), keras_rmsprop),
    (RMSprop(rho=0.5, epsilon=0.1), keras_rmsprop),
    (RMSprop(epsilon_place="inside-root"), keras_3_rmsprop),
    (RMSprop(epsilon_place="inside-root", rho=0.5, epsilon=0.1), keras_3_rmsprop),
    (Adam(), keras_adam),
    (Adam(epsilon=0.1, beta_1=0.5, beta_2=0.9), keras_adam),
    (AdamW(weight_decay=0.1), torch_adamw),
]


class OneKernel(nn.Module):
    def __init__(self, shape=(4, 5), dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
        )


def gradients(shape=(4, 5), steps=STEPS):
    """Of very different sizes, from 1e-8 (below epsilon) to 10."""
    generator = np.random.default_rng(2)
    return [
        generator.normal(size=shape) * 10.0 ** generator.integers(-8, 2, size=shape) for _ in range(steps)
    ]


@pytest.mark.parametrize("rates", [RATES, [0.01] * STEPS], ids=["changing-rate", "constant-rate"])
@pytest.mark.parametrize(
    ("spec", "rule"), CASES, ids=lambda case: getattr(case, "__name__", None) or str(case)[:60]
)
def test_rule_is_kerass(spec, rule, rates):
    model = OneKernel()
    optimizer = build_optimizer(spec, model, CPU)
    expected = model.weight.detach().numpy().copy()
    steps = rule(spec)
    next(steps)
    for step, (gradient, rate) in enumerate(zip(gradients(), rates, strict=True)):
        model.weight.grad = torch.from_numpy(gradient)
        set_learning_rate(optimizer, spec, rate, step)
        optimizer.step()
        expected = steps.send((expected, gradient, rate))
        np.testing.assert_allclose(model.weight.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_adam_differs_from_torchs_own_where_epsilon_matters():
    """The test above would be of little use if both rules gave the same."""
    spec, model = Adam(epsilon=0.1), OneKernel()
    plain_model = OneKernel()
    plain = torch.optim.Adam(plain_model.parameters(), lr=0.01, eps=0.1)
    optimizer = build_optimizer(spec, model, CPU)
    for step, gradient in enumerate(gradients(steps=5)):
        model.weight.grad, plain_model.weight.grad = (
            torch.from_numpy(gradient),
            torch.from_numpy(gradient.copy()),
        )
        set_learning_rate(optimizer, spec, 0.01, step)
        optimizer.step()
        plain.step()
    assert (model.weight - plain_model.weight).abs().max() > 1e-3


def small_network(dtype=torch.float32):
    """Convolutions in channels_last, batch normalisation, linear layers: everything that a network here has."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8 * 16, 6), nn.ReLU(), nn.Linear(6, 4)).to(dtype)
    return model.to(memory_format=torch.channels_last)  # pyright: ignore


def train_steps(model, optimizer, spec, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(5, 3, 6, 6, generator=generator).to(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        model(images).square().mean().backward()
        set_learning_rate(optimizer, spec, 0.01 / (1 + step), step)
        optimizer.step()


SPECS = [
    SGD(),
    SGD(momentum=0.9),
    SGD(momentum=0.9, nesterov=True, weight_decay=1e-3),
    RMSprop(weight_decay=1e-3),
    RMSprop(weight_decay=1e-3, epsilon_place="inside-root"),
    Adam(weight_decay=1e-3),
    AdamW(),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.name}-{spec.weight_decay}")
def test_state_there_and_back_goes_on_with_the_same_bits(spec):
    model = small_network()
    optimizer = build_optimizer(spec, model, CPU)
    train_steps(model, optimizer, spec, range(7))
    saved = b"".join(pieces(state_tensors(optimizer)))
    saved_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_steps(model, optimizer, spec, range(7, 12))

    fresh_model = small_network()
    fresh_model.load_state_dict(saved_weights)
    fresh = build_optimizer(spec, fresh_model, CPU)
    load_state_tensors(fresh, safetensors.torch.load(saved))
    assert b"".join(pieces(state_tensors(fresh))) == saved
    train_steps(fresh_model, fresh, spec, range(7, 12))

    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh_model.state_dict()[name]), name
    assert b"".join(pieces(state_tensors(fresh))) == b"".join(pieces(state_tensors(optimizer)))


def test_state_is_what_the_optimiser_has_and_no_copy():
    spec, model = SGD(momentum=0.9), small_network()
    optimizer = build_optimizer(spec, model, CPU)
    train_steps(model, optimizer, spec, range(2))
    taken = state_tensors(optimizer)
    assert sorted(taken)[:2] == ["0.momentum_buffer", "1.momentum_buffer"]
    kept = [state["momentum_buffer"].data_ptr() for state in optimizer.state.values()]
    assert [taken[f"{number}.momentum_buffer"].data_ptr() for number in range(len(kept))] == kept


def test_state_of_another_network_is_refused():
    spec, model = SGD(momentum=0.9), small_network()
    optimizer = build_optimizer(spec, model, CPU)
    train_steps(model, optimizer, spec, range(1))
    tensors = state_tensors(optimizer)
    with pytest.raises(ValueError, match="shape"):
        load_state_tensors(
            build_optimizer(spec, OneKernel(), CPU), {**tensors, "0.momentum_buffer": torch.ones(3)}
        )
    with pytest.raises(ValueError, match="none of the 1 parameters"):
        load_state_tensors(build_optimizer(spec, OneKernel((8, 3, 3, 3)), CPU), tensors)


@pytest.mark.parametrize(
    "spec", [SGD(weight_decay=0.5), RMSprop(weight_decay=0.5), Adam(weight_decay=0.5), AdamW()]
)
def test_only_kernels_decay_and_frozen_parameters_are_left_out(spec):
    model = small_network()
    model[0].weight.requires_grad_(False)
    decay_of = {
        id(parameter): group["weight_decay"]
        for group in build_optimizer(spec, model, CPU).param_groups
        for parameter in group["params"]
    }
    assert id(model[0].weight) not in decay_of
    kernels = [model[3].weight, model[5].weight, model[7].weight]
    others = [model[0].bias, model[2].weight, model[2].bias, model[3].bias, model[5].bias, model[7].bias]
    assert [decay_of.pop(id(kernel)) for kernel in kernels] == [spec.weight_decay] * 3
    assert [decay_of.pop(id(other)) for other in others] == [0.0] * 6
    assert not decay_of


def test_sgd_weight_decay_is_coupled():
    spec, model = SGD(weight_decay=0.1, momentum=0.9), OneKernel()
    optimizer = build_optimizer(spec, model, CPU)
    weight, velocity = model.weight.detach().numpy().copy(), 0.0
    for step, rate in enumerate([0.1, 0.1, 0.02]):
        model.weight.grad = torch.zeros_like(model.weight)
        set_learning_rate(optimizer, spec, rate, step)
        optimizer.step()
        velocity = 0.9 * velocity - rate * 0.1 * weight
        weight = weight + velocity
    np.testing.assert_allclose(model.weight.detach().numpy(), weight, rtol=1e-12)


def test_every_optimizer_but_rmsprop_is_fused():
    fused = {type(spec): build_optimizer(spec, OneKernel(), CPU).defaults.get("fused") for spec in SPECS}
    assert fused == {SGD: True, RMSprop: None, Adam: True, AdamW: True}


@pytest.mark.parametrize(("clip_norm", "expected_norm"), [(0.5, 0.5), (100.0, 2.0), (None, 2.0)])
def test_clipping_scales_the_whole_gradient(clip_norm, expected_norm):
    model = small_network()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    for parameter in model.parameters():
        parameter.grad *= 2.0 / norm
    before = model[5].weight.grad.clone()
    clip_gradients(model, clip_norm)
    after = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert after.item() == pytest.approx(expected_norm, rel=1e-4)
    assert torch.allclose(model[5].weight.grad, before * expected_norm / 2.0, rtol=1e-4)


@pytest.mark.parametrize(
    ("layers", "places"), [("hidden", (0, 3, 5)), ("convolutions", (0, 3)), ("all", (0, 3, 5, 7))]
)
def test_l2_penalty_and_its_gradient(layers, places):
    model = small_network(torch.float64)
    penalty = l2_penalty(model, Regularization(l2=0.01, l2_layers=layers))
    expected = 0.01 * sum((model[place].weight ** 2).sum().item() for place in places)
    assert penalty.shape == () and penalty.item() == pytest.approx(expected, rel=1e-12)
    penalty.backward()
    for place in (0, 3, 5, 7):
        weight = model[place].weight
        if place in places:
            torch.testing.assert_close(weight.grad, 2 * 0.01 * weight.detach())
        else:
            assert weight.grad is None
    assert all(parameter.grad is None for parameter in model.parameters() if parameter.ndim < 2)


def test_l2_penalty_leaves_frozen_layers_out_and_may_be_nothing():
    model = small_network()
    model[0].weight.requires_grad_(False)
    penalty = l2_penalty(model, Regularization(l2=0.5, l2_layers="convolutions"))
    assert penalty.item() == pytest.approx(0.5 * model[3].weight.square().sum().item(), rel=1e-5)
    assert l2_penalty(model, Regularization()).item() == 0.0
