"""Optimisers with Keras's rules, gradient clipping, the L2 penalty, and state as tensors."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cifarlab.kernels.optimisers import Numbers, OwnAdam, OwnAdamW, OwnRMSprop, OwnSGD, OwnStep
from cifarlab.recipe import SGD, Adam, AdamW, Muon, Optimizer, Regularization, RMSprop

# Stands in for a rate of 0, which momentum kept in units of the rate could not be carried across.
_SMALLEST_LEARNING_RATE = 1e-20


def build_optimizer(
    spec: Optimizer,
    model: nn.Module,
    device: torch.device,
    rate_factors: Mapping[str, float] | None = None,
    *,
    own_kernels: bool = True,
) -> torch.optim.Optimizer:
    """The optimiser of `spec` over the trainable parameters of `model`.

    Kernels (two dimensions or more) get the weight decay, biases and normalisation do not. Parameters that do not
    require a gradient are left out. `rate_factors` says, by name, which parameters' learning rate is multiplied by
    what; 1 where it says nothing. `own_kernels`: on the CPU, step by them where they suit. `set_learning_rate` must be
    called before every step.
    """
    if isinstance(spec, Muon):
        return MuonOptimizer(spec, model)
    fused = device.type in ("cpu", "cuda")
    own = own_kernels and device.type == "cpu"
    groups = _parameter_groups(model, spec.weight_decay, rate_factors or {})
    match spec:
        case SGD():
            optimizer = (OwnSGD if own else torch.optim.SGD)(
                groups, lr=spec.learning_rate, momentum=spec.momentum, nesterov=spec.nesterov, fused=fused
            )
            return _from_rest(optimizer) if spec.momentum > 0.0 else optimizer
        case RMSprop():  # torch has no fused one
            if spec.epsilon_place == "inside-root":
                kind = OwnRMSpropInsideRoot if own else RMSpropInsideRoot
            else:
                kind = OwnRMSprop if own else torch.optim.RMSprop
            return kind(groups, lr=spec.learning_rate, alpha=spec.rho, eps=spec.epsilon)
        case Adam() | AdamW():
            ours, torchs = (
                (OwnAdam, torch.optim.Adam) if isinstance(spec, Adam) else (OwnAdamW, torch.optim.AdamW)
            )
            betas = (spec.beta_1, spec.beta_2)
            return (ours if own else torchs)(
                groups, lr=spec.learning_rate, betas=betas, eps=spec.epsilon, fused=fused
            )
    raise AssertionError(f"no optimiser for {spec!r}")


def _from_rest(optimizer: torch.optim.SGD) -> torch.optim.SGD:
    """With a velocity of 0 for every weight: torch's fused kernel cannot add those of layers that thaw later."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class RMSpropInsideRoot(torch.optim.Optimizer):
    """Keras 3's rule: w -= lr * g / sqrt(v + eps), where v = alpha * v + (1 - alpha) * g^2."""

    def __init__(self, groups: list[dict], lr: float, alpha: float, eps: float) -> None:
        super().__init__(groups, {"lr": lr, "alpha": alpha, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                decay = group["weight_decay"]
                gradient = weight.grad + decay * weight if decay else weight.grad
                if weight not in self.state:
                    self.state[weight]["square_avg"] = torch.zeros_like(weight)
                mean_square = self.state[weight]["square_avg"]
                mean_square.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1.0 - group["alpha"])
                weight.addcdiv_(gradient, (mean_square + group["eps"]).sqrt_(), value=-group["lr"])


class OwnRMSpropInsideRoot(OwnStep, RMSpropInsideRoot):
    rule, not_ours = "rmsprop", ()

    def state_names(self, group: dict[str, Any]) -> dict[str, str]:
        return {"square": "square_avg"}

    def numbers(self, group: dict[str, Any]) -> Numbers:
        decay, rho, epsilon = group["weight_decay"], group["alpha"], group["eps"]
        return Numbers(group["lr"], decay, keep_square=rho, epsilon=epsilon, variant=True)


def _parameter_groups(model: nn.Module, weight_decay: float, rate_factors: Mapping[str, float]) -> list[dict]:
    """One group for each factor of the learning rate, the largest first: kernels, then the others."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((-rate_factors.get(name, 1.0), parameter.ndim < 2), []).append(parameter)
    return [
        {"params": groups[key], "weight_decay": 0.0 if key[1] else weight_decay, "rate_factor": -key[0]}
        for key in sorted(groups)
    ]


def set_learning_rate(
    optimizer: torch.optim.Optimizer,
    spec: Optimizer,
    learning_rate: float,
    step: int,
) -> None:
    """Make `optimizer` ready for `step`, counted from 0 over the run, so that its rule is Keras's.

    Each group has `learning_rate` times its own factor.

    - SGD: Keras's velocity has the rate of its own step in it (v = m v - lr g), torch's buffer has not, so that
      the buffer is rescaled when the rate changes.
    - Adam: Keras's epsilon stands outside the bias correction ("epsilon hat", arXiv 1412.6980, section 2), torch's
      inside, so that torch's is set to epsilon / sqrt(1 - beta_2^t).
    """
    for group in optimizer.param_groups:
        own_rate = learning_rate * group["rate_factor"]
        if isinstance(spec, SGD) and spec.momentum > 0.0:
            _rescale_momentum(optimizer, group, max(own_rate, _SMALLEST_LEARNING_RATE))
        else:
            group["lr"] = own_rate
        if isinstance(spec, Adam):
            group["eps"] = spec.epsilon / math.sqrt(1.0 - spec.beta_2 ** (step + 1))


def _rescale_momentum(optimizer: torch.optim.Optimizer, group: dict, learning_rate: float) -> None:
    if group["lr"] == learning_rate:
        return
    buffers = [optimizer.state[parameter].get("momentum_buffer") for parameter in group["params"]]
    buffers = [buffer for buffer in buffers if buffer is not None]
    if buffers:
        torch._foreach_mul_(buffers, group["lr"] / learning_rate)  # pyright: ignore[reportPrivateImportUsage]
    group["lr"] = learning_rate


# Muon: K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024), as in cifar10-airbench.
_QUINTIC = (3.4445, -4.7750, 2.0315)


class MuonOptimizer(torch.optim.Optimizer):
    """Muon on the kernels of convolutions, SGD with Nesterov momentum and weight decay on all else that is trained."""

    def __init__(self, spec: Muon, model: nn.Module) -> None:
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            (4, spec.learning_rate, spec.momentum, 0.0),
            (2, spec.head_learning_rate, spec.other_momentum, spec.weight_decay),
            (1, spec.bias_learning_rate, spec.other_momentum, spec.weight_decay),
        ]
        chosen = [
            {
                "params": [parameter for parameter in trainable if parameter.ndim == dimensions],
                "lr": rate,
                "rate_factor": rate / spec.learning_rate,
                "momentum": momentum,
                # Part of the gradient, so that the rate, which falls, multiplies it too.
                "weight_decay": weight_decay / rate,
                "orthogonalise_steps": spec.newton_schulz_steps if dimensions == 4 else 0,
            }
            for dimensions, rate, momentum, weight_decay in groups
        ]
        super().__init__([group for group in chosen if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
        gradient = gradient.add(parameter, alpha=group["weight_decay"]) if group["weight_decay"] else gradient
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        update = gradient.add(buffer, alpha=group["momentum"])
        if steps := group["orthogonalise_steps"]:
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
            update = orthogonalise(update.reshape(len(update), -1), steps).view_as(parameter)
        parameter.add_(update, alpha=-group["lr"])


def orthogonalise(matrix: Tensor, steps: int) -> Tensor:
    """About the nearest matrix with orthonormal rows or columns, float32 (M, N): `steps` of a quintic Newton-Schulz
    iteration, whose coefficients bring singular values quickly near 1 rather than exactly to it."""
    a, b, c = _QUINTIC
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    result = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        gram = result @ result.T
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result.T if matrix.shape[0] > matrix.shape[1] else result


def clip_gradients(model: nn.Module, clip_norm: float | None) -> None:
    """Scale all gradients together so that their joint 2-norm is at most `clip_norm`; none: leave them."""
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)


def l2_penalty(model: nn.Module, regularization: Regularization) -> Tensor:
    """c * sum(w^2) over the trainable kernels of the layers that `regularization` names: a scalar, as Keras's L2(c).

    The last layer, which "hidden" leaves out, is the last convolution or linear layer in the order of registration.
    """
    nothing = next(model.parameters()).new_zeros(())
    if regularization.l2 == 0.0:
        return nothing
    layers = [
        module for module in model.modules() if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
    ]
    if regularization.l2_layers == "hidden":
        layers = layers[:-1]
    elif regularization.l2_layers == "convolutions":
        layers = [layer for layer in layers if not isinstance(layer, nn.Linear)]
    weights = [layer.weight for layer in layers if layer.weight.requires_grad]
    return regularization.l2 * _SumOfSquares.apply(*weights) if weights else nothing


class _SumOfSquares(torch.autograd.Function):
    """Of all tensors together: one node for autograd in place of two for each."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return torch.stack(torch._foreach_norm(tensors)).square().sum()  # pyright: ignore[reportPrivateImportUsage]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return torch._foreach_mul(ctx.saved_tensors, 2.0 * gradient)  # pyright: ignore[reportPrivateImportUsage]


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything `optimizer` remembers, and goes on changing: "0.momentum_buffer", "0.step", ... and "learning_rate".

    Parameters are numbered in the order of the optimiser's groups. "learning_rate" (float64) is the rate of the last
    step, which the momentum of SGD is kept in units of: a scalar, or one for each group where they differ.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    tensors = {"learning_rate": torch.tensor(rates if len(set(rates)) > 1 else rates[0], dtype=torch.float64)}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"{number}.{name}"] = value.detach()
    return tensors


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put `optimizer`, which may never have stepped, where the one that `state_tensors` was taken from stood.

    Raises:
        KeyError: when "learning_rate" is missing.
        ValueError: when a tensor belongs to no parameter or has another shape than its parameter.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, tensors["learning_rate"].expand(len(groups)).tolist(), strict=True):
        group["lr"] = rate
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key == "learning_rate":
            continue
        number, _, name = key.partition(".")
        if not number.isdecimal() or int(number) >= len(parameters):
            raise ValueError(f"optimiser state '{key}' belongs to none of the {len(parameters)} parameters")
        parameter = parameters[int(number)]
        if tensor.ndim and tensor.shape != parameter.shape:
            raise ValueError(
                f"optimiser state '{key}' has shape {tuple(tensor.shape)}, its parameter {tuple(parameter.shape)}"
            )
        states.setdefault(int(number), {})[name] = (
            _laid_out_as(parameter, tensor) if tensor.ndim else tensor.clone()
        )
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A copy with the strides of `parameter`: the fused kernels walk both by raw memory order."""
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
