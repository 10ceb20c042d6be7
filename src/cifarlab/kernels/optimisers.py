"""PyTorch's optimisers, whose step on all weights is one call of our own kernels: see optimise.c."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd import _profiler_enabled  # pyright: ignore[reportPrivateImportUsage]
from torch.autograd.graph import increment_version
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from cifarlab.kernels.compiled import first_of, parallel_region

KERNELS = ("optimise-avx512", "optimise-avx2")  # the first that can run is taken


class _Weights(ctypes.Structure):
    """As in optimise.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "mean", "square", "steps")),
        *((name, ctypes.c_long) for name in ("count", "group")),
    ]


class _Task(ctypes.Structure):
    """As in optimise.c."""

    _fields_ = [
        ("parallel", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("threads", "tensors")),
        *((name, ctypes.c_void_p) for name in ("tensor", "gradient", "group")),
        ("taken", ctypes.c_long),
        ("rule", ctypes.c_void_p),
    ]


class Numbers(NamedTuple):
    """Of a group of weights, as in optimise.c."""

    rate: float
    decay: float
    keep_mean: float = 0.0
    keep_square: float = 0.0
    epsilon: float = 0.0
    variant: bool = False


@cache
def _functions() -> ctypes.CDLL | None:
    chosen = first_of(KERNELS, _Task, "sgd", "rmsprop", "adam")
    return None if chosen is None else chosen.functions


class OwnStep(torch.optim.Optimizer):
    """Stands before one of PyTorch's optimisers among the bases, which takes the steps that do not suit our kernels.

    The state has that one's names and meaning, and only `load_state_dict` may replace its tensors.
    """

    rule: ClassVar[str]  # of optimise.c
    not_ours: ClassVar[tuple[str, ...]]  # options of PyTorch's that make it another rule
    _plan: "_Plan | None" = None

    def state_names(self, group: dict[str, Any]) -> dict[str, str]:
        """What `steps`, `mean` and `square` of optimise.c, those that the rule has, are called in the state."""
        raise NotImplementedError

    def numbers(self, group: dict[str, Any]) -> Numbers:
        raise NotImplementedError

    def step(self, closure: Any = None) -> Any:
        hooks = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        )
        return self._watched_step(closure) if hooks or _profiler_enabled() else self._step(closure)

    # PyTorch would wrap it as it does `_watched_step`, which takes a tenth of a small network's step.
    step.hooked = True  # type: ignore[attr-defined]

    @torch.optim.Optimizer.profile_hook_step
    def _watched_step(self, closure: Any) -> Any:
        return self._step(closure)

    def _step(self, closure: Any) -> Any:
        if closure is None and self._own_step():
            return None
        step: Any = super().step.__func__  # pyright: ignore[reportFunctionMemberAccess]
        # Once one of PyTorch's own was made, its step is wrapped to call hooks: `_watched_step` has called them.
        return (step.__wrapped__ if getattr(step, "hooked", False) else step)(self, closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not set_to_none or _profiler_enabled():
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._plan = None

    def __setstate__(self, state: dict[str, Any]) -> None:  # `load_state_dict` calls it, too
        super().__setstate__(state)
        self._plan = None

    def _own_step(self) -> bool:
        """Whether our kernels suited, and so took the step."""
        functions = _functions()
        if functions is None:
            return False
        if self._plan is None or self._plan.options != self._options() or not self._plan.holds():
            self._plan = self._new_plan()
        gradients = None if self._plan is None else self._plan.gradients()
        if self._plan is None or gradients is None:
            return False
        numbers = [number for group in self.param_groups for number in self.numbers(group)]
        getattr(functions, self.rule)(self._plan.task(gradients, numbers))
        changed = [weight for weight, place in zip(self._plan.weights, gradients, strict=True) if place]
        increment_version(changed)
        return True

    def _options(self) -> tuple[list[Any], list[dict[str, str]]]:
        """That decide whether the rule is ours, and the names of the state that there is in each group."""
        asked = [group.get(option) for group in self.param_groups for option in self.not_ours]
        return asked, [self.state_names(group) for group in self.param_groups]

    def _new_plan(self) -> "_Plan | None":
        """None where our kernels do not suit."""
        asked, names = options = self._options()
        weights = (weight for group in self.param_groups for weight in group["params"])
        if any(asked) or not all(map(_is_dense, weights)):
            return None
        parts = [
            _Part(weight, number, self._state_of(weight, names[number]))
            for number, group in enumerate(self.param_groups)
            for weight in group["params"]
        ]
        return _Plan(parts, options) if all(part.suits() for part in parts) else None

    def _state_of(self, weight: Tensor, names: dict[str, str]) -> dict[str, Tensor | None]:
        """By the names of optimise.c. It begins with the first gradient, as in PyTorch, and is None until then."""
        if weight.grad is not None:
            for field, name in names.items():
                if self.state[weight].get(name) is None:
                    counted = field == "steps"
                    self.state[weight][name] = torch.zeros(()) if counted else torch.zeros_like(weight)
        state = self.state.get(weight, {})
        return {field: state.get(name) for field, name in names.items()}


class _Part(NamedTuple):
    weight: Tensor
    group: int
    state: dict[str, Tensor | None]

    def tensors(self) -> dict[str, Tensor]:
        state = {field: tensor for field, tensor in self.state.items() if tensor is not None}
        return {"weight": self.weight, **state}

    def lacks(self) -> bool:
        return any(tensor is None for tensor in self.state.values())

    def suits(self) -> bool:
        return all(
            _is_plain(tensor) and (field == "steps" or _lies_as(self.weight, tensor))
            for field, tensor in self.tensors().items()
        )


class _Plan:
    """What stays as it is from step to step: where the tensors are."""

    def __init__(self, parts: Sequence[_Part], options: tuple[list[Any], list[dict[str, str]]]) -> None:
        self.options = options
        self.weights = [part.weight for part in parts]
        self._strides = [weight.stride() for weight in self.weights]
        self._counts = [weight.numel() for weight in self.weights]
        self._lacking = [part.weight for part in parts if part.lacks()]
        self._tensors = [tensor for part in parts for tensor in part.tensors().values()]
        self._places = [tensor.data_ptr() for tensor in self._tensors]
        self._rows = (_Weights * len(parts))(*map(_row, parts))
        self._gradients = (ctypes.c_void_p * len(parts))()
        self._numbers = (ctypes.c_double * (len(options[1]) * len(Numbers._fields)))()
        self._task = _Task(
            parallel=parallel_region(),
            tensors=len(parts),
            tensor=ctypes.addressof(self._rows),
            gradient=ctypes.addressof(self._gradients),
            group=ctypes.addressof(self._numbers),
        )

    def holds(self) -> bool:
        unmoved = self._places == [tensor.data_ptr() for tensor in self._tensors]
        as_they_lay = self._strides == [weight.stride() for weight in self.weights]
        as_many = self._counts == [weight.numel() for weight in self.weights]
        return unmoved and as_they_lay and as_many and all(weight.grad is None for weight in self._lacking)

    def gradients(self) -> list[int | None] | None:
        """Where they are, None of a weight without; None in place of all where one does not suit our kernels."""
        places: list[int | None] = []
        for weight, strides in zip(self.weights, self._strides, strict=True):
            gradient = weight.grad
            if gradient is None:
                places.append(None)
            elif (
                _is_plain(gradient)
                and gradient.shape == weight.shape
                and (gradient.stride() == strides or _lies_as(weight, gradient))
            ):
                places.append(gradient.data_ptr())
            else:
                return None
        return places

    def task(self, gradients: list[int | None], numbers: list[float]) -> _Task:
        self._gradients[:] = gradients
        self._numbers[:] = numbers
        self._task.threads = torch.get_num_threads()
        return self._task


def _row(part: _Part) -> _Weights:
    places = {field: tensor.data_ptr() for field, tensor in part.tensors().items()}
    return _Weights(count=part.weight.numel(), group=part.group, **places)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.layout == torch.strided and tensor.is_cpu


def _is_dense(weight: Tensor) -> bool:
    """And not empty, which has no place in memory."""
    return (
        _is_plain(weight)
        and weight.numel() > 0
        and (
            weight.is_contiguous()
            or (weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last))
        )
    )


def _lies_as(weight: Tensor, other: Tensor) -> bool:
    """Whether they have the same order in memory; the stride of a dimension of size 1 says nothing of that."""
    strides = zip(weight.shape, weight.stride(), other.stride(), strict=True)
    return weight.shape == other.shape and all(size == 1 or ours == theirs for size, ours, theirs in strides)


class OwnSGD(OwnStep, torch.optim.SGD):
    rule = "sgd"
    not_ours = ("dampening", "maximize", "differentiable")

    def state_names(self, group: dict[str, Any]) -> dict[str, str]:
        return {"mean": "momentum_buffer"} if group["momentum"] else {}

    def numbers(self, group: dict[str, Any]) -> Numbers:
        momentum, nesterov = group["momentum"], group["nesterov"]
        return Numbers(group["lr"], group["weight_decay"], keep_mean=momentum, variant=nesterov)


class OwnAdam(OwnStep, torch.optim.Adam):
    rule = "adam"
    not_ours = ("amsgrad", "maximize", "differentiable")

    def state_names(self, group: dict[str, Any]) -> dict[str, str]:
        return {"steps": "step", "mean": "exp_avg", "square": "exp_avg_sq"}

    def numbers(self, group: dict[str, Any]) -> Numbers:
        mean, square = group["betas"]
        apart = group["decoupled_weight_decay"]
        return Numbers(group["lr"], group["weight_decay"], mean, square, group["eps"], apart)


class OwnAdamW(OwnAdam, torch.optim.AdamW):
    pass


class OwnRMSprop(OwnStep, torch.optim.RMSprop):
    rule = "rmsprop"
    not_ours = ("momentum", "centered", "maximize", "differentiable")

    def state_names(self, group: dict[str, Any]) -> dict[str, str]:
        return {"steps": "step", "square": "square_avg"}

    def numbers(self, group: dict[str, Any]) -> Numbers:
        return Numbers(group["lr"], group["weight_decay"], keep_square=group["alpha"], epsilon=group["eps"])
